"""The tracing seam: every span of spanflow is started and ended here, and nowhere else.

A ``Scope`` is an open span and the OpenTelemetry context in which its children and the user's code run. Its ids
follow from the run, the path and the attempt, so another process can name the parent of a span it never saw.
Whatever the application's sampler, processors or exporters do, nothing in here raises, and ending never waits.
"""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from functools import partial
from typing import Any, ClassVar, cast

from opentelemetry import baggage, trace
from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram
from opentelemetry.trace import INVALID_SPAN, Link, NonRecordingSpan, Span, SpanContext, Status, StatusCode, Tracer
from opentelemetry.trace.span import TraceFlags, TraceState

from spanflow.tracing import metrics, names
from spanflow.tracing.content import capture, capture_enabled
from spanflow.tracing.ending import SpanEnder, never_blocks
from spanflow.tracing.ids import SpanIds, adopt, pin_span, pinned_trace
from spanflow.tracing.metadata import clean, flatten
from spanflow.tracing.options import TracingContext, TracingOptions
from spanflow.tracing.record import UNTRACED, TraceRecord

_INTERNAL = trace.SpanKind.INTERNAL
_ender = SpanEnder()


class _Tracers:
    """The tracer of the provider last seen: to get it anew costs more than a span."""

    provider: trace.TracerProvider | None = None
    tracer: Tracer | None = None


_tracers = _Tracers()


class RunSpans:
    """What the spans of one run share: the tracer, the run id, and the count of spans."""

    __slots__ = (
        "attributes",
        "captures_input",
        "captures_output",
        "ends_inline",
        "ids",
        "lost",
        "measures",
        "pins",
        "started",
        "tracer",
    )

    def __init__(self, tracer: Tracer | None, run_id: str, provider: trace.TracerProvider | None) -> None:
        self.tracer = tracer
        self.ids = SpanIds(run_id)
        self.pins = tracer is not None and adopt(tracer)
        self.ends_inline = provider is not None and never_blocks(provider)
        self.captures_input = self.captures_output = False
        self.measures = metrics.are_collected()
        self.started = 0
        self.lost = 0

    def configure(self, hide_input: bool, hide_output: bool) -> None:
        captures = self.tracer is not None and capture_enabled()
        self.captures_input, self.captures_output = captures and not hide_input, captures and not hide_output

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
            metrics.warn_once("Starting a span raised; the run goes on without it: %r", error)
            self.lost += 1
            above = trace.get_current_span(parent).get_span_context()
            return NonRecordingSpan(SpanContext(above.trace_id, span_id, False, above.trace_flags, above.trace_state))
        self.started += 1
        return span

    def finish(self, span: Span, at: int) -> None:
        """End a span."""
        if not span.is_recording():
            return
        if self.ends_inline:
            try:
                span.end(at)
            except Exception as error:
                metrics.warn_once("A span processor raised; the run goes on without it: %r", error)
        elif not _ender.put(span, at):
            self.lost += 1

    async def settle(self) -> None:
        """Let processors that export on the spot catch up, within bounds."""
        if not self.ends_inline and self.tracer is not None:
            await _ender.drain()


class Scope:
    """An open span, and the context in which its children run."""

    __slots__ = ("_again", "_spans", "context", "recorded", "span", "span_id", "started_at")

    traced: ClassVar[bool] = True

    def __init__(self, spans: RunSpans, span: Span, parent: Context, started_at: int) -> None:
        self._spans = spans
        self.span = span
        self.context = trace.set_span_in_context(span, parent)
        self.started_at = started_at
        self.recorded: BaseException | None = None
        self._again: Callable[[], Span] | None = None
        found = span.get_span_context()
        self.span_id: int | None = found.span_id

    @property
    def measures(self) -> bool:
        """Whether there is a meter provider to measure for."""
        return self._spans.measures

    @property
    def captures_input(self) -> bool:
        return self._spans.captures_input

    @property
    def captures_output(self) -> bool:
        return self._spans.captures_output

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
        spans = self._spans
        parent = self.context if under is None else under
        span = spans.start(name, parent, spans.ids.derive(path, attempt), attributes, at)
        return Scope(spans, span, parent, at)

    def reopened(self, name: str, path: str, attributes: dict[str, Any], started_at: int) -> "Scope":
        """Stand in for a child that was started before, here or elsewhere, and is exported when it ends."""
        spans, above = self._spans, self.span.get_span_context()
        span_id = spans.ids.derive(path, 1)
        span = NonRecordingSpan(SpanContext(above.trace_id, span_id, False, above.trace_flags, above.trace_state))
        scope = Scope(spans, span, self.context, started_at)
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
    ) -> int | None:
        """Record a span that is already over, such as a wait. Return its id."""
        spans = self._spans
        span = spans.start(name, self.context, spans.ids.derive(path, attempt), attributes, start, links)
        if error is not None:
            _fail(span, error, end, record=True)
        spans.finish(span, end)
        return span.get_span_context().span_id

    def span_id_of(self, path: str, attempt: int) -> int | None:
        """Return the id that a span of this run has or will have."""
        return self._spans.ids.derive(path, attempt)

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
        if self._spans.captures_input and self.span.is_recording():
            self.note({attribute: capture(value, annotation=annotation)})

    def capture_output(self, attribute: str, value: object, annotation: object = None) -> None:
        """Record an output as JSON, where that was asked for."""
        if self._spans.captures_output and self.span.is_recording():
            self.note({attribute: capture(value, annotation=annotation)})

    def now(self) -> int:
        """Return the time for what has no run, and so no clock."""
        return time.time_ns()

    def end(self, at: int, error: BaseException | None = None, *, record: bool = True) -> None:
        """End the span; with an error as ERROR. ``record`` adds the exception, unless a span inside already has it."""
        self.revive()
        if error is not None:
            _fail(self.span, error, at, record=record and self.recorded is not error)
        self._spans.finish(self.span, at)

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


class RootScope(Scope):
    """The root span of a run. It is exported once, by whoever ends the run, also if another process started it."""

    __slots__ = ("_announced", "_parent", "record")

    def __init__(self, spans: RunSpans, record: TraceRecord, span: Span, parent: Context, *, live: bool) -> None:
        super().__init__(spans, span, parent, record.started_at)
        self.record = record
        self._parent = parent
        self._announced = not live
        if not live:
            self._again = self._make_again

    @property
    def trace_id(self) -> str | None:
        return self.record.trace_id

    @property
    def spans(self) -> RunSpans:
        return self._spans

    def announce(self) -> None:
        """Make the run visible before it ends: a zero-length child that carries the root's attributes. Once."""
        if not self._announced:
            self._announced = True
            at = self.record.started_at
            self.interval(names.RUN_STARTED, names.RUN_STARTED, 0, self.record.attributes, at, at)

    def finish(self, at: int, status: str, error: BaseException | None, *, record: bool) -> None:
        """End the root, making it again first where this process did not start it."""
        self.revive()
        self.note({names.RUN_STATUS: status})
        self.end(at, error, record=record)

    def _make_again(self) -> Span:
        record = self.record
        if record.span_id is None or record.trace_id is None or not record.trace_flags & TraceFlags.SAMPLED:
            return self.span
        with pinned_trace(int(record.trace_id, 16), sampled=True):
            return self._spans.start(
                record.name, self._parent, int(record.span_id, 16), record.attributes, record.started_at
            )


class Untraced(RootScope):
    """Stands in for every scope where no tracer provider is configured: all of it does nothing."""

    __slots__ = ()
    traced = False

    def __init__(self, run_id: str = "", record: TraceRecord = UNTRACED) -> None:
        super().__init__(RunSpans(None, run_id, None), record, INVALID_SPAN, Context(), live=True)
        self.span_id = None

    def child(
        self,
        name: str,
        path: str,
        attempt: int,
        attributes: dict[str, Any],
        at: int,
        under: Context | None = None,
    ) -> Scope:
        return self

    def reopened(self, name: str, path: str, attributes: dict[str, Any], started_at: int) -> Scope:
        return self

    def interval(self, *args: Any, **kwargs: Any) -> int | None:
        return None

    def span_id_of(self, path: str, attempt: int) -> int | None:
        return None

    def enter(self) -> Any:
        return None

    def exit(self, token: Any) -> None:
        return None

    def note(self, attributes: Mapping[str, Any]) -> None:
        return None

    def end(self, at: int, error: BaseException | None = None, *, record: bool = True) -> None:
        return None

    def finish(self, at: int, status: str, error: BaseException | None, *, record: bool) -> None:
        return None

    def announce(self) -> None:
        return None


def open_run(
    run_id: str,
    workflow_id: str,
    *,
    options: TracingOptions,
    tracing_context: TracingContext | None,
    runtime_context: Mapping[str, Any],
    at: int,
) -> RootScope:
    """Start the root span of a new run, in the context of the caller."""
    provider, tracer = _tracer()
    if tracer is None or provider is None:
        return Untraced(run_id, TraceRecord(metadata=dict(options.metadata)))
    spans = RunSpans(tracer, run_id, provider)
    spans.configure(options.hide_input, options.hide_output)
    attributes = _root_attributes(run_id, workflow_id, options, runtime_context)
    parent = _parent(options, tracing_context)
    name = f"invoke_workflow {workflow_id}"
    pinned = None if options.trace_id is None else int(options.trace_id, 16)
    with pinned_trace(pinned):
        span = spans.start(name, parent, spans.ids.derive("", 0), attributes, at)
    found, above = span.get_span_context(), trace.get_current_span(parent).get_span_context()
    if not found.is_valid:
        return Untraced(run_id, TraceRecord(metadata=dict(options.metadata)))
    record = TraceRecord(
        trace_id=format(found.trace_id, "032x"),
        span_id=format(found.span_id, "016x"),
        parent_span_id=format(above.span_id, "016x") if above.is_valid else None,
        trace_flags=int(found.trace_flags),
        trace_state=found.trace_state.to_header(),
        name=name,
        started_at=at,
        attributes=attributes,
        metadata=dict(options.metadata),
        hide_input=options.hide_input,
        hide_output=options.hide_output,
        resume=options.resume,
    )
    return RootScope(spans, record, span, _with_baggage(parent, options), live=True)


def reopen_run(run_id: str, record: TraceRecord) -> RootScope:
    """Return the root of a run that was started before, here or elsewhere. Its span is made only when the run ends."""
    provider, tracer = _tracer()
    if tracer is None or provider is None or record.trace_id is None or record.span_id is None:
        return Untraced(run_id, record)
    spans = RunSpans(tracer, run_id, provider)
    spans.configure(record.hide_input, record.hide_output)
    state = TraceState.from_header([record.trace_state]) if record.trace_state else TraceState()
    trace_id, flags = int(record.trace_id, 16), TraceFlags(record.trace_flags)
    parent = Context()
    if record.parent_span_id is not None:
        above = SpanContext(trace_id, int(record.parent_span_id, 16), True, flags, state)
        parent = trace.set_span_in_context(NonRecordingSpan(above), parent)
    root = NonRecordingSpan(SpanContext(trace_id, int(record.span_id, 16), False, flags, state))
    return RootScope(spans, record, root, parent, live=False)


def open_tool(name: str, attributes: dict[str, Any]) -> Scope:
    """Start the span of a tool that is called outside of any run, below the ambient span."""
    provider, tracer = _tracer()
    if tracer is None or provider is None:
        return Untraced()
    spans = RunSpans(tracer, "", provider)
    spans.pins = False
    spans.configure(hide_input=False, hide_output=False)
    parent, at = context_api.get_current(), time.time_ns()
    return Scope(spans, spans.start(name, parent, 0, attributes, at), parent, at)


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
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _fail(span: Span, error: BaseException, at: int, *, record: bool) -> None:
    if not span.is_recording():
        return

    def fail() -> None:
        span.set_attribute(names.ERROR_TYPE, error_type(error))
        message = str(error)
        cleaned = clean(message)
        span.set_status(Status(StatusCode.ERROR, cleaned))
        if not record:
            return
        if cleaned is message:
            span.record_exception(error, timestamp=at)
        else:  # text that UTF-8 cannot carry would cost the exporter the whole batch
            stacktrace = clean("".join(traceback.format_exception(error)))
            texts = {"exception.message": cleaned, "exception.stacktrace": stacktrace}
            span.record_exception(error, attributes=texts, timestamp=at)

    metrics.guarded(fail)


def _tracer() -> tuple[trace.TracerProvider | None, Tracer | None]:
    provider = trace.get_tracer_provider()
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None, None
    if _tracers.provider is not provider:
        try:
            tracer = provider.get_tracer(names.SCOPE)
        except Exception as error:
            metrics.warn_once("The tracer provider raised; the run goes on untraced: %r", error)
            return None, None
        _tracers.provider, _tracers.tracer = provider, tracer
    tracer = _tracers.tracer
    return (None, None) if isinstance(tracer, trace.NoOpTracer) else (provider, tracer)


def _parent(options: TracingOptions, tracing_context: TracingContext | None) -> Context:
    ambient = context_api.get_current()
    if tracing_context is not None and tracing_context.current_span.get_span_context().is_valid:
        return trace.set_span_in_context(tracing_context.current_span, ambient)
    if options.trace_id is None:
        return ambient
    if options.parent_span_id is None:
        return trace.set_span_in_context(INVALID_SPAN, ambient)
    above = SpanContext(
        int(options.trace_id, 16), int(options.parent_span_id, 16), True, TraceFlags(TraceFlags.SAMPLED)
    )
    return trace.set_span_in_context(NonRecordingSpan(above), ambient)


def _root_attributes(
    run_id: str, workflow_id: str, options: TracingOptions, runtime_context: Mapping[str, Any]
) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        names.OPERATION: "invoke_workflow",
        names.WORKFLOW_NAME: workflow_id,
        names.RUN_ID: run_id,
    }
    if options.tags:
        attributes[names.TAGS] = tuple(clean(str(tag)) for tag in options.tags)
    copied = {key: _dig(runtime_context, key) for key in options.runtime_context_keys}
    if copied or options.metadata:
        attributes.update(flatten({**copied, **options.metadata}))
    if options.user_id is not None:
        attributes[names.USER_ID] = clean(str(options.user_id))
    if options.session_id is not None:
        attributes[names.SESSION_ID] = clean(str(options.session_id))
    return attributes


def _dig(value: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        value = dict(cast("Mapping[str, Any]", value)).get(key) if isinstance(value, Mapping) else None
    return value


def _with_baggage(parent: Context, options: TracingOptions) -> Context:
    for key in options.baggage_keys:
        value = options.user_id if key == names.USER_ID else options.session_id if key == names.SESSION_ID else None
        value = options.metadata.get(key, value)
        if value is not None:
            parent = baggage.set_baggage(key, str(value), parent)
    return parent
