"""Start a span without asking what is already known.

``Tracer.start_span`` looks the parent up twice, asks the sampler, draws an id and decides flags: a fifth of what a
span costs. For a child of a span that this process records, under a sampler that keeps such children, every answer
is known beforehand; so it is for a root under a sampler that keeps all roots. ``starters`` build the very span that
``start_span`` would, of the SDK's own class, and only for an SDK on which a trial shows both to be equal; any other
gets the public way.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, Tracer, set_span_in_context
from opentelemetry.trace.span import TraceFlags

StartChild = Callable[[str, SpanContext, Context, int, Mapping[str, Any], int], Span]
"""Called with name, context of the parent, OpenTelemetry context, span id, attributes and start time (ns)."""

StartRoot = Callable[[str, Context, int, Mapping[str, Any], int], Span]
"""Called with name, OpenTelemetry context, span id, attributes and start time (ns); the trace is a new one."""

_INTERNAL = SpanKind.INTERNAL
_IGNORED = {"_lock", "_context", "_attributes", "_events", "_links", "_record_end_metrics", "_sampler"}


class Starters(NamedTuple):
    """How spans of a tracer are started."""

    child: StartChild
    root: StartRoot


def starters(tracer: Tracer, sampler: Any) -> Starters | None:
    """Return how to start spans with this tracer, None where only ``tracer.start_span`` knows.

    ``sampler`` is the application's own. That it keeps children of sampled local spans, or roots, is the caller's
    knowledge.
    """
    try:
        sdk: Any = import_module("opentelemetry.sdk.trace")
        if type(tracer) is not sdk.Tracer or "start_span" in vars(tracer):
            return None
        return _starters(sdk, tracer, sampler) if _agrees(sdk, tracer) else None
    except Exception:  # an SDK with other insides
        return None


def _starters(sdk: Any, tracer: Any, sampler: Any) -> Starters:
    make: Any = sdk._Span
    keep = import_module("opentelemetry.sdk.trace.sampling").Decision.RECORD_AND_SAMPLE
    public = tracer.start_span
    random = TraceFlags.RANDOM_TRACE_ID if tracer.id_generator.is_trace_id_random() else 0
    root_flags = TraceFlags(TraceFlags.SAMPLED | random)

    def start(
        name: str, own: SpanContext, above: SpanContext | None, parent: Context, attributes: Mapping[str, Any], at: int
    ) -> Span:
        if not tracer._tracer_config.is_enabled:
            fallback: Span = public(name, parent, attributes=attributes, start_time=at)
            return fallback
        span: Span = make(
            name,
            own,
            above,
            sampler,
            None,
            tracer.resource,
            attributes,
            None,
            (),
            _INTERNAL,
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

    def child(
        name: str, above: SpanContext, parent: Context, span_id: int, attributes: Mapping[str, Any], at: int
    ) -> Span:
        own = SpanContext(above.trace_id, span_id, False, above.trace_flags, above.trace_state)
        return start(name, own, above, parent, attributes, at)

    def root(name: str, parent: Context, span_id: int, attributes: Mapping[str, Any], at: int) -> Span:
        own = SpanContext(tracer.id_generator.generate_trace_id(), span_id, False, root_flags)
        return start(name, own, None, parent, attributes, at)

    return Starters(child, root)


def _agrees(sdk: Any, tracer: Any) -> bool:
    """Start a root and a child both ways, on a provider of our own, and compare all that they hold."""
    provider = sdk.TracerProvider(
        sampler=import_module("opentelemetry.sdk.trace.sampling").DEFAULT_ON,
        resource=tracer.resource,
        shutdown_on_exit=False,
    )
    trial = provider.get_tracer("spanflow.trial")
    built = _starters(sdk, trial, trial.sampler)
    attributes = {"text": "a", "number": 1}
    root = trial.start_span("root", Context(), _INTERNAL, attributes, None, 1)
    above, parent = root.get_span_context(), set_span_in_context(root, Context())
    child = trial.start_span("child", parent, _INTERNAL, attributes, None, 1)
    return _equal(built.root("root", Context(), 7, attributes, 1), root) and _equal(
        built.child("child", above, parent, 7, attributes, 1), child
    )


def _equal(built: Any, expected: Any) -> bool:
    held, wanted = _insides(built), _insides(expected)
    mine, theirs = built.get_span_context(), expected.get_span_context()
    return bool(
        held.keys() == wanted.keys()
        and all(held[name] == value for name, value in wanted.items() if name not in _IGNORED)
        and dict(built.attributes) == dict(expected.attributes)
        and (mine.trace_flags, mine.trace_state, mine.is_remote)
        == (theirs.trace_flags, theirs.trace_state, theirs.is_remote)
        and mine.span_id == 7
        and (built.parent is None or mine.trace_id == theirs.trace_id)
    )


def _insides(span: object) -> dict[str, Any]:
    return {"class": type(span), **vars(span)}
