"""The tracing seam: every span of spanflow is started and ended here, and nowhere else.

A ``Scope`` is an open span and the OpenTelemetry context in which its children and the user's code run. Its ids
follow from the run, the path and the attempt, so another process can name the parent of a span it never saw.
Whatever the application's sampler, processors or exporters do, nothing in here raises, and ending never waits.
"""

import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from functools import partial
from typing import Any, ClassVar

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram as Histogram
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, Span, SpanContext, Status, StatusCode, Tracer
from opentelemetry.trace import Link as Link
from opentelemetry.trace.span import TraceFlags

from spanflow.errors import SpanflowError
from spanflow.tracing import metrics, names
from spanflow.tracing.backpressure import BOUNDLESS, ExportRoom, ending
from spanflow.tracing.content import capture, capture_enabled
from spanflow.tracing.ending import SpanEnder
from spanflow.tracing.ids import SpanIds, pin_span
from spanflow.tracing.leaving_out import LeftOut
from spanflow.tracing.metadata import clean
from spanflow.tracing.source import Source
from spanflow.tracing.starting import StartChild, StartRoot

_INTERNAL = trace.SpanKind.INTERNAL
_ender = SpanEnder()
_LONGEST_MESSAGE = 8192  # characters of an exception's text; a receiver refuses batches of some megabytes


class RunSpans:
    """What the spans of one run share: the tracer, the run id, and the count of spans."""

    __slots__ = (
        "captures_input",
        "captures_output",
        "ended",
        "ends_inline",
        "ids",
        "left_out",
        "lost",
        "lost_on_the_way",
        "max_step_spans",
        "measures",
        "pins",
        "room",
        "start_child",
        "start_new_trace",
        "steps",
        "tracer",
    )

    def __init__(
        self,
        source: Source | None,
        run_id: str,
        *,
        hide_input: bool = False,
        hide_output: bool = False,
        max_step_spans: int | None = None,
    ) -> None:
        self.ids = SpanIds(run_id)
        self.measures = metrics.are_collected()
        self.ended = 0
        self.lost = self.lost_on_the_way = 0
        self.steps = 0
        self.max_step_spans = sys.maxsize if max_step_spans is None else max_step_spans
        self.left_out = LeftOut()
        self.room: ExportRoom = BOUNDLESS
        self.captures_input = self.captures_output = self.pins = self.ends_inline = False
        self.tracer: Tracer | None = None
        self.start_child: StartChild | None = None
        self.start_new_trace: StartRoot | None = None
        if source is not None:
            self.start_child, self.start_new_trace = source.start_child, source.start_root
            self.room = source.room
            self.tracer, self.pins, self.ends_inline = source.tracer, source.pins, source.ends_inline
            if capture_enabled():
                self.captures_input, self.captures_output = not hide_input, not hide_output

    def start(
        self,
        name: str,
        parent: Context,
        span_id: int,
        attributes: Mapping[str, Any],
        at: int,
        links: Sequence[Link] | None = None,
    ) -> Span:
        """Start a span; where the application's telemetry raises, a stand-in with the same ids takes its place."""
        tracer = self.tracer
        if tracer is None:
            return INVALID_SPAN
        if self.pins:
            pin_span(span_id)
        try:
            span = tracer.start_span(name, parent, _INTERNAL, attributes, links, at)
        except Exception as error:
            return self.stand_in(error, trace.get_current_span(parent).get_span_context(), span_id)
        return span

    def start_root(self, name: str, parent: Context, span_id: int, attributes: Mapping[str, Any], at: int) -> Span:
        """Start the root of a run: a child of the span in ``parent``, or the root of a new trace."""
        above = trace.get_current_span(parent).get_span_context()
        if self.start_new_trace is None or above.is_valid:
            return self.start(name, parent, span_id, attributes, at)
        try:
            return self.start_new_trace(name, parent, span_id, attributes, at)
        except Exception as error:
            return self.stand_in(error, above, span_id)

    def stand_in(self, error: Exception, above: SpanContext, span_id: int) -> Span:
        """Return what takes the place of a span that could not be started: its ids, and nothing else."""
        metrics.warn_once("Starting a span raised; the run goes on without it: %r", error)
        self.lost += 1
        trace_id = above.trace_id or random.getrandbits(128) or 1
        return NonRecordingSpan(SpanContext(trace_id, span_id or 1, False, above.trace_flags, above.trace_state))

    def finish(self, span: Span, at: int) -> None:
        """End a span."""
        if not span.is_recording():
            return
        self.ended += 1
        if self.ends_inline:
            ending.owner = self
            try:
                span.end(at)
            except Exception as error:
                metrics.warn_once("A span processor raised; the run goes on without it: %r", error)
        elif not _ender.put(span, at, self):
            self.lost += 1

    def lose(self, number: int) -> None:
        """Count spans of this run that ended and will not arrive. The queue calls this, holding its lock."""
        self.lost_on_the_way += number

    @property
    def dropped(self) -> int:
        """How many spans of this run will not arrive, as far as it is known."""
        return self.lost + self.lost_on_the_way

    async def settle(self) -> None:
        """Let processors that export on the spot catch up, within bounds."""
        if not self.ends_inline and self.tracer is not None:
            await _ender.drain()


class Scope:
    """An open span, and the context in which its children run."""

    __slots__ = ("_again", "_recorded", "_span_context", "context", "span", "span_id", "spans", "started_at")

    traced: ClassVar[bool] = True

    def __init__(self, spans: RunSpans, span: Span, parent: Context, started_at: int) -> None:
        self.spans = spans
        self.span = span
        self.context = trace.set_span_in_context(span, parent)
        self.started_at = started_at
        self._recorded: tuple[BaseException, ...] = ()
        self._again: Callable[[], Span] | None = None
        self._span_context = found = span.get_span_context()
        self.span_id: int | None = found.span_id

    def child(
        self,
        name: str,
        path: str,
        attempt: int,
        attributes: dict[str, Any],
        at: int,
        under: Context | None = None,
    ) -> "Scope":
        """Start a span below this one, or below the span that is current in ``under``."""
        spans = self.spans
        span_id = spans.ids.derive(path, attempt)
        if under is None:
            parent, above = self.context, self._span_context
        else:
            parent, above = under, trace.get_current_span(under).get_span_context()
        if spans.start_child is None or not above.trace_flags & TraceFlags.SAMPLED or above.is_remote:
            return Scope(spans, spans.start(name, parent, span_id, attributes, at), parent, at)
        try:
            return Scope(spans, spans.start_child(name, above, parent, span_id, attributes, at), parent, at)
        except Exception as error:
            return Scope(spans, spans.stand_in(error, above, span_id), parent, at)

    def reopened(self, name: str, path: str, attributes: dict[str, Any], started_at: int, attempt: int = 1) -> "Scope":
        """Stand in for a child that was started before, here or elsewhere, and is exported when it ends."""
        spans, above = self.spans, self.span.get_span_context()
        started_at = max(started_at, self.started_at)  # it may have been in a trace before this one
        span_id = spans.ids.derive(path, attempt)
        span = NonRecordingSpan(SpanContext(above.trace_id, span_id, False, above.trace_flags, above.trace_state))
        scope = Scope(spans, span, self.context, started_at)
        spans.left_out.begun_before(span_id)
        if above.trace_flags & TraceFlags.SAMPLED:
            scope._again = partial(spans.start, name, self.context, span_id, attributes, started_at)
        return scope

    def interval(
        self,
        name: str,
        path: str,
        attempt: int,
        attributes: dict[str, Any],
        start: int,
        end: int,
        error: BaseException | None = None,
        links: Sequence[Link] = (),
        span_id: int | None = None,
    ) -> int | None:
        """Record a span that is already over, such as a wait. Return its id.

        It lies within this one: what began in a trace before this one is in this trace from its start, and for 1 ns
        at least, since Jaeger takes no length for a negative one.
        """
        spans = self.spans
        if start < self.started_at:
            start, end = self.started_at, max(end, self.started_at + 1)
        span_id = spans.ids.derive(path, attempt) if span_id is None else span_id
        span = spans.start(name, self.context, span_id, attributes, start, links)
        if error is not None:
            _fail(span, error, end, record=True)
        spans.finish(span, end)
        return span.get_span_context().span_id

    def span_id_of(self, path: str, attempt: int) -> int | None:
        """Return the id that a span of this run has or will have."""
        return self.spans.ids.derive(path, attempt)

    def enter(self) -> Token[Context]:
        """Make this span current in the running task."""
        return context_api.attach(self.context)

    def exit(self, token: Token[Context]) -> None:
        context_api.detach(token)

    def note(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes that are known only at the end."""
        metrics.guarded(lambda: self.span.set_attributes(attributes))

    def capture_input(self, attribute: str, value: object, annotation: object = None) -> None:
        """Record an input as JSON, where that was asked for; ``annotation`` may mark parts of it as redacted."""
        if self.spans.captures_input and self.span.is_recording():
            self.note({attribute: capture(value, annotation=annotation)})

    def capture_output(self, attribute: str, value: object, annotation: object = None) -> None:
        """Record an output as JSON, where that was asked for."""
        if self.spans.captures_output and self.span.is_recording():
            self.note({attribute: capture(value, annotation=annotation)})

    def has_recorded(self, error: BaseException) -> bool:
        """Tell whether a span inside this one has the exception already."""
        return any(each is error for each in self._recorded)

    def recorded_inside(self, error: BaseException) -> None:
        """Remember that a span inside this one has the exception, so that it is recorded once."""
        self._recorded = (*self._recorded, error)

    def now(self) -> int:
        """Return the time for what has no run, and so no clock."""
        return time.time_ns()

    def end(self, at: int, error: BaseException | None = None, *, record: bool = True) -> None:
        """End the span; with an error as ERROR. ``record`` adds the exception, unless a span inside already has it."""
        if self._again is not None:
            self.revive()
        span, spans = self.span, self.spans
        if spans.left_out.total:
            self._note_left_out()
        if error is not None:
            _fail(span, error, at, record=record and not self.has_recorded(error))
        if not spans.ends_inline or not span.is_recording():
            spans.finish(span, at)
            return
        spans.ended += 1
        ending.owner = spans
        try:
            span.end(at)
        except Exception as raised:
            metrics.warn_once("A span processor raised; the run goes on without it: %r", raised)

    def _note_left_out(self) -> None:
        number = self.spans.left_out.take(self.span_id or 0)
        if number:
            self.note({names.SPANS_LEFT_OUT: number})

    def revive(self) -> None:
        """Make the span, if it was only stood in for until now: it is about to end."""
        if self._again is not None:
            self.span, self._again = self._again(), None

    def measure(
        self, histogram: Histogram, seconds: float, attributes: dict[str, Any], error: BaseException | None
    ) -> None:
        """Record a duration with this span as its exemplar."""
        if error is not None:
            attributes[names.ERROR_TYPE] = error_type(error)
        metrics.record(histogram, seconds, attributes, self.context)


def current_context() -> Context:
    """Return the ambient OpenTelemetry context."""
    return context_api.get_current()


def current_span() -> Span:
    """Return the active span, INVALID_SPAN where there is none."""
    return trace.get_current_span()


def current_ids() -> tuple[str, str] | None:
    """Return trace id and span id of the active span as hex, None where there is none."""
    found = trace.get_current_span().get_span_context()
    return (format(found.trace_id, "032x"), format(found.span_id, "016x")) if found.is_valid else None


def ambient_link() -> tuple[Link, ...]:
    """Return a link to the active span, if there is one."""
    found = trace.get_current_span().get_span_context()
    return (Link(found),) if found.is_valid else ()


def error_type(error: BaseException) -> str:
    """Return ``error.type`` as the conventions want it: bare for builtins, else module and qualified name."""
    kind = type(error)
    own: str | None = getattr(error if isinstance(error, SpanflowError) else kind, "error_type", None)
    if own is not None:
        return own
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def text_of(error: BaseException) -> str:
    """Return an exception's message, whatever its ``__str__`` does."""
    try:
        return str(error)
    except Exception as broken:
        return f"<{type(error).__name__} whose text raised {type(broken).__name__}>"


def _fail(span: Span, error: BaseException, at: int, *, record: bool) -> None:
    if not span.is_recording():
        return

    def fail() -> None:
        span.set_attribute(names.ERROR_TYPE, error_type(error))
        message = text_of(error)
        cleaned = clean(message if len(message) <= _LONGEST_MESSAGE else f"{message[: _LONGEST_MESSAGE - 1]}…")
        span.set_status(Status(StatusCode.ERROR, cleaned))
        if not record:
            return
        try:
            if cleaned is message:
                span.record_exception(error, timestamp=at)
                return
        except Exception:  # its text cannot be had the usual way
            pass
        # text that UTF-8 cannot carry, or of megabytes, would cost the exporter the whole batch
        stacktrace = clean("".join(traceback.format_tb(error.__traceback__)))
        texts = {"exception.type": error_type(error), "exception.message": cleaned, "exception.stacktrace": stacktrace}
        span.add_event("exception", texts, at)

    metrics.guarded(fail)
