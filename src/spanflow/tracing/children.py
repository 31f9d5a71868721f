"""Start the child of a sampled local span without asking what is already known.

``Tracer.start_span`` looks the parent up twice, asks the sampler, draws an id and decides flags: a fifth of what a
span costs. For a child of a span that this process records, under a sampler that keeps such children, every answer
is known beforehand. ``child_starter`` builds the very span that ``start_span`` would, of the SDK's own class, and
only for an SDK on which a trial shows both to be equal; any other gets the public way.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, Tracer, set_span_in_context

StartChild = Callable[[str, SpanContext, Context, int, Mapping[str, Any], int], Span]
"""Called with name, context of the parent, OpenTelemetry context, span id, attributes and start time (ns)."""

_IGNORED = {"_lock", "_context", "_attributes", "_events", "_links", "_record_end_metrics", "_sampler"}


def child_starter(tracer: Tracer, sampler: Any) -> StartChild | None:
    """Return how to start children with this tracer, None where only ``tracer.start_span`` knows.

    ``sampler`` is the application's own; that it keeps children of sampled local spans is the caller's knowledge.
    """
    try:
        sdk: Any = import_module("opentelemetry.sdk.trace")
        if type(tracer) is not sdk.Tracer or "start_span" in vars(tracer):
            return None
        return _starter(sdk, tracer, sampler) if _agrees(sdk, tracer) else None
    except Exception:  # an SDK with other insides
        return None


def _starter(sdk: Any, tracer: Any, sampler: Any) -> StartChild:
    make: Any = sdk._Span
    keep = import_module("opentelemetry.sdk.trace.sampling").Decision.RECORD_AND_SAMPLE
    public = tracer.start_span
    internal = SpanKind.INTERNAL

    def start(
        name: str, above: SpanContext, parent: Context, span_id: int, attributes: Mapping[str, Any], at: int
    ) -> Span:
        if not tracer._tracer_config.is_enabled:
            fallback: Span = public(name, parent, attributes=attributes, start_time=at)
            return fallback
        span: Span = make(
            name,
            SpanContext(above.trace_id, span_id, False, above.trace_flags, above.trace_state),
            above,
            sampler,
            None,
            tracer.resource,
            attributes,
            None,
            (),
            internal,
            tracer.span_processor,
            tracer.instrumentation_info,
            True,
            True,
            tracer._span_limits,
            tracer._instrumentation_scope,
            record_end_metrics=tracer._tracer_metrics.start_span(above, keep),
        )
        begin: Any = span
        begin.start(at, parent)
        return span

    return start


def _agrees(sdk: Any, tracer: Any) -> bool:
    """Start one span both ways, on a provider of our own, and compare all that they hold."""
    provider = sdk.TracerProvider(resource=tracer.resource, shutdown_on_exit=False)
    trial = provider.get_tracer("spanflow.trial")
    root = trial.start_span("root")
    above, parent = root.get_span_context(), set_span_in_context(root, Context())
    attributes = {"text": "a", "number": 1}
    expected: Any = trial.start_span("child", parent, SpanKind.INTERNAL, attributes, None, 1)
    built: Any = _starter(sdk, trial, trial.sampler)("child", above, parent, 7, attributes, 1)
    held, wanted = _insides(built), _insides(expected)
    mine, theirs = built.get_span_context(), expected.get_span_context()
    return bool(
        held.keys() == wanted.keys()
        and all(held[name] == value for name, value in wanted.items() if name not in _IGNORED)
        and dict(built.attributes) == dict(expected.attributes)
        and (mine.trace_id, mine.trace_flags, mine.trace_state, mine.is_remote)
        == (theirs.trace_id, theirs.trace_flags, theirs.trace_state, theirs.is_remote)
        and mine.span_id == 7
    )


def _insides(span: object) -> dict[str, Any]:
    return {"class": type(span), **vars(span)}
