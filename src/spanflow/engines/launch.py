"""What a stretch of a run begins with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spanflow.clock import Clock
from spanflow.definition import Definition
from spanflow.events import LinkedTrace
from spanflow.lease import Lease
from spanflow.ports import Message, RunRecord
from spanflow.schema import Schema
from spanflow.state import RunState
from spanflow.tracing.roots import RootScope, open_linked
from spanflow.tracing.spans import Link
from spanflow.travel import Past


@dataclass(slots=True)
class Launch:
    """All that it takes to continue a run from its journal."""

    record: RunRecord
    definition: Definition
    root: RootScope
    state: RunState
    start: dict[str, Any]
    deps: Any = None
    inbox: list[Message] = field(default_factory=lambda: [])
    resume_schemas: dict[str, Schema[Any]] = field(default_factory=lambda: {})
    resumed_by: Sequence[Link] = ()
    lease: Lease | None = None
    past: Past | None = None

    @property
    def links(self) -> bool:
        """Whether each stretch of the run has a trace of its own, which ends where the run suspends."""
        return self.record.trace.resume == "link"

    def begin_trace(self, clock: Clock) -> None:
        """Give a stretch after a suspension a trace of its own, where the run is to have one for each.

        Where it begins is stored with the start of the stretch, so that whoever recovers the run goes on in it.
        """
        if not self.links or self.state.status != "suspended":
            return
        number, at = self.state.stretch, clock.time_ns()
        root = open_linked(self.record.run_id, self.root.record, self.resumed_by, number, at)
        trace = root.record
        if not root.traced or trace.trace_id is None or trace.span_id is None:
            return
        root.spans.steps = self.root.spans.steps
        self.root, self.resumed_by = root, ()
        self.start.pop("recovered", None)  # it is nobody's: the run was suspended
        self.start["linked"] = LinkedTrace(
            trace_id=trace.trace_id,
            span_id=trace.span_id,
            trace_flags=trace.trace_flags,
            trace_state=trace.trace_state,
            started_at=at,
            links=tuple(trace.links),
        )
