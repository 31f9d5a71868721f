"""The tree of each finished run, printed to the terminal as soon as the run ends."""

import logging
import os
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple, TextIO

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanContext, format_trace_id

from spanflow.tracing import names
from spanflow.tracing.lines import duration_of, failed, printable
from spanflow.tracing.tree import render

_logger = logging.getLogger(__name__)

_RUN_PREFIX = "invoke_workflow"


class _Place(NamedTuple):
    """Where an open span stands."""

    parent: int | None
    of_a_run: bool


@dataclass(slots=True)
class _Trace:
    """What is held of one trace."""

    open: OrderedDict[int, _Place] = field(default_factory=OrderedDict[int, _Place])
    ended: OrderedDict[int, ReadableSpan] = field(default_factory=OrderedDict[int, ReadableSpan])
    dropped: int = 0

    def is_inside_a_run(self, span: ReadableSpan) -> bool:
        """Tell whether a run is nested in another, or in a step whose run's own span is made only at its end."""
        if names.STEP_PATH in (span.attributes or {}):
            return True
        current, seen = _parent_id(span), set[int]()
        while current is not None and current not in seen:
            seen.add(current)
            place = self._place_of(current)
            if place is None:
                return False
            if place.of_a_run:
                return True
            current = place.parent
        return False

    def take(self, root: ReadableSpan) -> list[ReadableSpan]:
        """Remove a span and what is below it."""
        children: dict[int | None, list[int]] = {}
        for span_id, span in self.ended.items():
            children.setdefault(_parent_id(span), []).append(span_id)
        taken: list[ReadableSpan] = []
        waiting = [root.context.span_id] if root.context is not None else []
        while waiting:
            span_id = waiting.pop()
            if span_id in self.ended:
                taken.append(self.ended.pop(span_id))
                waiting.extend(children.get(span_id, ()))
        return taken

    def has_runs(self) -> bool:
        """Tell whether spans of other runs are held."""
        return any(place.of_a_run for place in self.open.values()) or any(map(_is_of_a_run, self.ended.values()))

    def _place_of(self, span_id: int) -> _Place | None:
        place = self.open.get(span_id)
        if place is not None:
            return place
        span = self.ended.get(span_id)
        return _Place(_parent_id(span), _is_of_a_run(span)) if span is not None else None


class ConsoleTreeProcessor(SpanProcessor):
    """Print the tree of a run when its outermost span ends; a request span above it is not waited for.

    Args:
        stream: where to print; None is what ``sys.stderr`` is at that time. Colours only on a terminal, and not where
            ``NO_COLOR`` is set.
        max_traces: traces that are held at a time. Beyond, the one that was quiet for longest is forgotten.
        max_spans: spans that are held of one trace. Beyond, the oldest are dropped and counted.
    """

    def __init__(self, stream: TextIO | None = None, *, max_traces: int = 256, max_spans: int = 5000) -> None:
        self._stream = stream
        self._max_traces = max_traces
        self._max_spans = max_spans
        self._traces: OrderedDict[int, _Trace] = OrderedDict()
        self._lock = threading.Lock()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        context = span.context
        if context is None:
            return
        with self._lock:
            trace = self._trace(context, create=_is_ours(span))
            if trace is not None:
                trace.open[context.span_id] = _Place(_parent_id(span), _is_of_a_run(span))
                if len(trace.open) > self._max_spans:
                    trace.open.popitem(last=False)

    def on_end(self, span: ReadableSpan) -> None:
        try:
            finished = self._collect(span)
            if finished is not None:
                self._print(span, *finished)
        except Exception:  # a broken terminal is no reason for a run to fail
            _logger.debug("Could not print the tree of %r.", span.name, exc_info=True)

    def shutdown(self) -> None:
        with self._lock:
            self._traces.clear()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def _collect(self, span: ReadableSpan) -> tuple[list[ReadableSpan], int] | None:
        """Keep a span. Return all spans of its trace, and how many were dropped, when it ends an outermost run."""
        context = span.context
        if context is None:
            return None
        with self._lock:
            trace = self._trace(context, create=_is_ours(span))
            if trace is None:
                return None
            trace.open.pop(context.span_id, None)
            trace.ended[context.span_id] = span
            if len(trace.ended) > self._max_spans:
                trace.ended.popitem(last=False)
                trace.dropped += 1
            if not _is_run(span) or trace.is_inside_a_run(span):
                return None
            finished = trace.take(span), trace.dropped
            if not trace.has_runs():
                del self._traces[context.trace_id]
            return finished

    def _trace(self, context: SpanContext, *, create: bool) -> _Trace | None:
        """Find what is held of a trace; spans of traces without any run are not held."""
        trace = self._traces.get(context.trace_id)
        if trace is None and create:
            trace = self._traces[context.trace_id] = _Trace()
            if len(self._traces) > self._max_traces:
                self._traces.popitem(last=False)
        elif trace is not None:
            self._traces.move_to_end(context.trace_id)
        return trace

    def _print(self, root: ReadableSpan, spans: list[ReadableSpan], dropped: int) -> None:
        stream = self._stream if self._stream is not None else sys.stderr
        text = f"{_header(root, dropped)}\n{render(spans, root=root, color=_wants_color(stream))}\n\n"
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, errors="replace").decode(encoding))
        stream.flush()


def _is_ours(span: ReadableSpan) -> bool:
    scope = span.instrumentation_scope
    return scope is not None and scope.name == names.SCOPE


def _is_run(span: ReadableSpan) -> bool:
    return _is_ours(span) and span.name.startswith(_RUN_PREFIX)


def _is_of_a_run(span: ReadableSpan) -> bool:
    return _is_run(span) or (_is_ours(span) and names.STEP_PATH in (span.attributes or {}))


def _parent_id(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def _header(root: ReadableSpan, dropped: int) -> str:
    found = root.attributes or {}
    parts = [
        str(found.get(names.WORKFLOW_NAME) or root.name.removeprefix(_RUN_PREFIX).strip()),
        str(found.get(names.RUN_STATUS) or ("failed" if failed(root) else "success")),
        duration_of(root),
    ]
    if names.RUN_ID in found:
        parts.append(f"run {found[names.RUN_ID]!s}")
    if root.context is not None:
        parts.append(f"trace {format_trace_id(root.context.trace_id)}")
    if dropped:
        parts.append(f"{dropped} spans not shown")
    return printable(" · ".join(parts))


def _wants_color(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
