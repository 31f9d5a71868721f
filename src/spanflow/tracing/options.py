"""How a caller says where a run's trace belongs and what its root span carries."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import INVALID_SPAN, Span

from spanflow.errors import InvalidInput
from spanflow.options import is_whole
from spanflow.tracing.metadata import as_json
from spanflow.tracing.record import Resume

MAX_STEP_SPANS = 10_000
"""More spans than this make a trace that no back end's page can show."""


@dataclass(frozen=True, slots=True)
class TracingContext:
    """The span that is active. Given to a run, it becomes the parent of the run's root span."""

    current_span: Span = INVALID_SPAN


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingOptions:
    """What the root span of a run carries, and which trace it joins.

    Attributes:
        metadata: JSON of any shape; what is none is turned into it. Each key becomes an attribute of the root span as
            given, nested maps flattened with dots; keys that would shadow ours are kept under ``metadata.``.
        tags: labels, as ``spanflow.tags``.
        user_id: ``user.id`` of the root span (OpenTelemetry's name).
        session_id: ``session.id`` of the root span (OpenTelemetry's name).
        runtime_context_keys: dotted keys of the run's ``runtime_context`` to be copied to the root span.
        trace_id: the trace to be part of, up to 32 hex digits. Ignored where a parent span is given.
        parent_span_id: the parent of the root span in that trace, up to 16 hex digits.
        hide_input: never record inputs of this run, whatever is configured.
        hide_output: never record outputs of this run, whatever is configured.
        resume: ``"same"`` continues the trace when a suspended run is resumed. ``"link"`` is for back ends that window
            by time: where the run suspends, its root and the spans around what waits end, with the status
            ``suspended``, and are exported; an answer begins a new trace, with a root of its own that is linked to the
            one before and to whoever resumed the run. The sampler decides on each anew. The waiting itself lies
            between the two: in the new trace its span has no length. A run is found by each of its trace ids.
        max_step_spans: how many attempts of steps (and nested runs) get a span in any case; None for all. Beyond it
            only those do that fail, suspend, are canceled or are slow (ten times the mean of their kind, from 0.1 s),
            and what these stand in. What user code opens inside of others becomes a child of the fan-out's span, which
            says how many were left out (``spanflow.spans.left_out``), as does the ``finish`` event.
        baggage_keys: metadata keys that are put into W3C baggage. They leave the process with every outgoing request.
    """

    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tags: Sequence[str] = ()
    user_id: str | None = None
    session_id: str | None = None
    runtime_context_keys: Sequence[str] = ()
    trace_id: str | None = None
    parent_span_id: str | None = None
    hide_input: bool = False
    hide_output: bool = False
    resume: Resume = "same"
    max_step_spans: int | None = MAX_STEP_SPANS
    baggage_keys: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.metadata or self.metadata is None:  # pyright: ignore[reportUnnecessaryComparison]  # untyped callers
            object.__setattr__(self, "metadata", as_json(self.metadata))
        _require_hex("trace_id", self.trace_id, 32)
        _require_hex("parent_span_id", self.parent_span_id, 16)
        if self.parent_span_id is not None and self.trace_id is None:
            raise InvalidInput(
                f"TracingOptions: parent_span_id={self.parent_span_id!r} needs the trace_id it belongs to."
            )
        if self.resume not in ("same", "link"):
            raise InvalidInput(f"TracingOptions: resume={self.resume!r} must be 'same' or 'link'.")
        if self.max_step_spans is not None and not is_whole(self.max_step_spans):
            raise InvalidInput(
                f"TracingOptions: max_step_spans={self.max_step_spans!r} must be a whole number from 0,"
                " or None for no limit."
            )


def _require_hex(name: str, value: str | None, digits: int) -> None:
    if value is None:
        return
    if not re.fullmatch(rf"[0-9a-fA-F]{{1,{digits}}}", value) or int(value, 16) == 0:
        raise InvalidInput(f"TracingOptions: {name}={value!r} must be 1 to {digits} hex digits, not all zero.")
