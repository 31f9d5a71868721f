"""The root span of a run: where it belongs, what it carries, and how another process can end it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from opentelemetry import baggage, trace
from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, Span, SpanContext
from opentelemetry.trace.span import TraceFlags, TraceState

from spanflow.tracing import metrics, names
from spanflow.tracing.ids import pinned_trace
from spanflow.tracing.metadata import clean, flatten
from spanflow.tracing.options import TracingContext, TracingOptions
from spanflow.tracing.record import UNTRACED, TraceRecord
from spanflow.tracing.source import Source, current_source
from spanflow.tracing.spans import Link, RunSpans, Scope


class RootScope(Scope):
    """The root span of a run. It is exported once, by whoever ends the run, also if another process started it."""

    __slots__ = ("_parent", "announced", "record")

    def __init__(self, spans: RunSpans, record: TraceRecord, span: Span, parent: Context, *, live: bool) -> None:
        super().__init__(spans, span, parent, record.started_at)
        self.record = record
        self._parent = parent
        self.announced = False
        if not live:
            self._again = self._make_again

    @property
    def trace_id(self) -> str | None:
        return self.record.trace_id

    def announce(self) -> None:
        """Make the run visible before it ends: a child without length that carries the root's attributes. Once.

        It does not wait for its batch to fill: somebody may be looking for the run right now.
        """
        if not self.announced:
            self.announced = True
            at = self.record.started_at  # and 1 ns on: no length at all is a "negative duration" for Jaeger
            self.interval(names.RUN_STARTED, names.RUN_STARTED, 0, self.record.attributes, at, at + 1)
            source = current_source()
            if source is not None:
                source.export_soon()

    def finish(self, at: int, status: str, error: BaseException | None, *, record: bool) -> None:
        """End the root, making it again first where this process did not start it."""
        self.revive()
        try:
            self.span.set_attribute(names.RUN_STATUS, status)
        except Exception as raised:
            metrics.warn_once("Setting an attribute raised; the run goes on without it: %r", raised)
        self.end(at, error, record=record)

    def _make_again(self) -> Span:
        record = self.record
        if record.span_id is None or record.trace_id is None or not record.trace_flags & TraceFlags.SAMPLED:
            return self.span
        with pinned_trace(int(record.trace_id, 16), sampled=True):
            return self.spans.start(
                record.name,
                self._parent,
                int(record.span_id, 16),
                record.attributes,
                record.started_at,
                _links(record),
            )


class Untraced(RootScope):
    """Stands in for every scope where no tracer provider is configured: all of it does nothing."""

    __slots__ = ()
    traced = False

    def __init__(self, run_id: str = "", record: TraceRecord = UNTRACED) -> None:
        super().__init__(RunSpans(None, run_id), record, INVALID_SPAN, Context(), live=True)
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

    def reopened(self, name: str, path: str, attributes: dict[str, Any], started_at: int, attempt: int = 1) -> Scope:
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
    source = current_source()
    if source is None:
        return Untraced(run_id, TraceRecord(metadata=dict(options.metadata)))
    spans = _spans_of(source, run_id, options)
    attributes = _root_attributes(run_id, workflow_id, options, runtime_context)
    parent = _parent(options, tracing_context)
    name = f"invoke_workflow {workflow_id}"
    if options.trace_id is None:
        span = spans.start_root(name, parent, spans.ids.derive("", 0), attributes, at)
    else:
        with pinned_trace(int(options.trace_id, 16)):
            span = spans.start(name, parent, spans.ids.derive("", 0), attributes, at)
    found, above = span.get_span_context(), trace.get_current_span(parent).get_span_context()
    if not found.is_valid:
        return Untraced(run_id, TraceRecord(metadata=dict(options.metadata)))
    record = TraceRecord(
        trace_id=format(found.trace_id, "032x"),
        span_id=format(found.span_id, "016x"),
        parent_span_id=format(above.span_id, "016x") if above.is_valid else None,
        trace_flags=int(found.trace_flags),
        trace_state=found.trace_state.to_header() if found.trace_state else "",
        name=name,
        started_at=at,
        attributes=attributes,
        metadata=dict(options.metadata),
        hide_input=options.hide_input,
        hide_output=options.hide_output,
        resume=options.resume,
        max_step_spans=options.max_step_spans,
        baggage=_chosen_baggage(options) if options.baggage_keys else {},
    )
    return RootScope(spans, record, span, _with_baggage(parent, record.baggage), live=True)


def open_travelled(run_id: str, workflow_id: str, first: TraceRecord, came_from: tuple[str, str], at: int) -> RootScope:
    """Start the root span of a run that goes back in another one, in the context of the caller.

    It carries what the first root did, and a link to it. ``came_from`` is the id of that run and the path in it.
    """
    source = current_source()
    if source is None:
        return Untraced(run_id, TraceRecord(metadata=first.metadata))
    spans = _spans_of(source, run_id, first)
    attributes = _root_attributes(run_id, workflow_id, TracingOptions(metadata=first.metadata), {})
    attributes |= first.attributes
    attributes |= {names.RUN_ID: run_id, names.TRAVELLED_RUN_ID: came_from[0], names.TRAVELLED_PATH: came_from[1]}
    link = first.traceparent
    record = replace(
        first,
        name=f"invoke_workflow {workflow_id}",
        started_at=at,
        attributes=attributes,
        links=() if link is None else (link,),
    )
    parent = context_api.get_current()
    span = spans.start(record.name, parent, spans.ids.derive("", 0), attributes, at, _links(record))
    if not span.get_span_context().is_valid:
        return Untraced(run_id, TraceRecord(metadata=first.metadata))
    _place(record, span, parent)
    return RootScope(spans, record, span, _with_baggage(parent, record.baggage), live=True)


def reopen_run(run_id: str, record: TraceRecord, *, announced: bool, steps_run: int = 0) -> RootScope:
    """Return the root of a run that was started before, here or elsewhere. Its span is made only when the run ends.

    ``announced`` says whether its marker was exported then, ``steps_run`` how many attempts there were.
    """
    source = current_source()
    if source is None or record.trace_id is None or record.span_id is None:
        return Untraced(run_id, record)
    spans = _spans_of(source, run_id, record)
    spans.steps = steps_run
    state = TraceState.from_header([record.trace_state]) if record.trace_state else TraceState()
    trace_id, flags = int(record.trace_id, 16), TraceFlags(record.trace_flags)
    parent = Context()
    if record.parent_span_id is not None:
        above = SpanContext(trace_id, int(record.parent_span_id, 16), True, flags, state)
        parent = trace.set_span_in_context(NonRecordingSpan(above), parent)
    root = NonRecordingSpan(SpanContext(trace_id, int(record.span_id, 16), False, flags, state))
    scope = RootScope(spans, record, root, _with_baggage(parent, record.baggage), live=False)
    scope.announced = announced
    spans.left_out.begun_before(int(record.span_id, 16))
    return scope


def open_linked(run_id: str, before: TraceRecord, resumed_by: Sequence[Link], number: int, at: int) -> RootScope:
    """Start the root span of a resumed stretch that has a trace of its own, linked to the stretch before it.

    It is a root also for the sampler, which decides anew. ``number`` is that of the stretch, from 1 for the first
    that is resumed; ``resumed_by`` links to whoever resumed the run.
    """
    source = current_source()
    if source is None or before.traceparent is None:
        return Untraced(run_id, before)
    spans = _spans_of(source, run_id, before)
    links = [before.traceparent, *(_traceparent(link.context) for link in resumed_by)]
    record = replace(before, started_at=at, links=tuple(links))
    span = spans.start(record.name, Context(), spans.ids.derive("", number), record.attributes, at, _links(record))
    if not span.get_span_context().is_valid:
        return Untraced(run_id, before)
    _place(record, span, Context())
    return RootScope(spans, record, span, _with_baggage(Context(), record.baggage), live=True)


def open_tool(name: str, attributes: dict[str, Any]) -> Scope:
    """Start the span of a tool that is called outside of any run, below the ambient span."""
    source = current_source()
    if source is None:
        return Untraced()
    spans = RunSpans(source, "")
    spans.pins = False
    parent, at = context_api.get_current(), time.time_ns()
    return Scope(spans, spans.start(name, parent, 0, attributes, at), parent, at)


def _spans_of(source: Source, run_id: str, asked: TracingOptions | TraceRecord) -> RunSpans:
    return RunSpans(
        source,
        run_id,
        hide_input=asked.hide_input,
        hide_output=asked.hide_output,
        max_step_spans=asked.max_step_spans,
    )


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


def _place(record: TraceRecord, span: Span, parent: Context) -> None:
    """Write down where a root span stands."""
    found, above = span.get_span_context(), trace.get_current_span(parent).get_span_context()
    record.trace_id = format(found.trace_id, "032x")
    record.span_id = format(found.span_id, "016x")
    record.parent_span_id = format(above.span_id, "016x") if above.is_valid else None
    record.trace_flags = int(found.trace_flags)
    record.trace_state = found.trace_state.to_header() if found.trace_state else ""


def _traceparent(there: SpanContext) -> str:
    return f"00-{there.trace_id:032x}-{there.span_id:016x}-{there.trace_flags:02x}"


def _links(record: TraceRecord) -> Sequence[Link]:
    """Return the links of a root, from what is stored of them."""
    found: list[Link] = []
    for traceparent in record.links:
        _, trace_id, span_id, flags = traceparent.split("-")
        found.append(Link(SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))))
    return found


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


def _chosen_baggage(options: TracingOptions) -> dict[str, str]:
    named = {names.USER_ID: options.user_id, names.SESSION_ID: options.session_id, **options.metadata}
    return {key: str(named[key]) for key in options.baggage_keys if named.get(key) is not None}


def _with_baggage(parent: Context, chosen: Mapping[str, str]) -> Context:
    for key, value in chosen.items():
        parent = baggage.set_baggage(key, value, parent)
    return parent
