"""A run as its store tells it: what was fixed at its start, all its events, and what it waits for."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from spanflow.entries import Entry
from spanflow.events import StepWaiting
from spanflow.plan import ForeachNode, WorkflowNode, node_at
from spanflow.ports import RunRecord, Store
from spanflow.state import RunState, StepResult
from spanflow.stores.header import metadata_of
from spanflow.tracing import names

_OWN = (names.OPERATION, names.WORKFLOW_NAME, names.RUN_ID)
"""Attributes of the root span that say what is shown elsewhere."""

Kind = Literal["answer", "time", "event", "retry", "process"]


@dataclass(frozen=True, slots=True)
class Wait:
    """What a run waits for. Times are ns since the epoch.

    Attributes:
        kind: an answer to a suspended step, a time, an event, the next attempt of a step, or a process to take over
            from one that died.
        payload: what the step asked for, or the name of the event.
        answer: the model of the answer, as ``module:qualified_name``.
    """

    kind: Kind
    path: str
    since: int
    until: int | None = None
    payload: Any = None
    answer: str | None = None

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"for": self.kind, "path": self.path, "since": iso(self.since)}
        if self.until is not None:
            found["until"] = iso(self.until)
        if self.kind == "answer":
            found |= {"payload": self.payload, "answer_type": self.answer}
        if self.kind == "event":
            found["event"] = self.payload
        return found


@dataclass(frozen=True, slots=True)
class History:
    """A run, read at the moment ``read_at``."""

    record: RunRecord
    entries: list[Entry]
    state: RunState
    read_at: int
    lost: bool

    @property
    def duration(self) -> int:
        """How long it took, or takes so far, in ns."""
        return (self.state.ended_at or self.read_at) - self.state.started_at

    @property
    def attributes(self) -> dict[str, Any]:
        """What it can be found by, the user and the session among them."""
        return {key: value for key, value in metadata_of(self.record).items() if key not in _OWN}

    @property
    def waits(self) -> list[Wait]:
        """What it waits for, in the order in which that began."""
        return sorted(self._waits(), key=lambda wait: wait.since)

    @property
    def running(self) -> list[StepResult]:
        """The steps that were last heard of executing; not the frames around them."""
        if self.state.status != "running":
            return []
        plan = self.record.plan
        return [
            step
            for step in self.state.steps.values()
            if step.status == "running" and not isinstance(node_at(plan, step.path), ForeachNode | WorkflowNode)
        ]

    def _waits(self) -> Iterator[Wait]:
        state = self.state
        if state.ended:
            return
        if self.lost:
            yield Wait("process", "", state.last_at)
        for path in state.waiting:
            step = state.steps[path]
            yield Wait("answer", path, step.suspended_at or 0, payload=step.payload, answer=step.resume_type)
        events = {entry.path: entry.payload.get("event") for entry in self.entries if entry.kind is StepWaiting}
        for step in state.steps.values():
            if step.status != "waiting":
                continue
            if step.path not in events:
                yield Wait("retry", step.path, step.ended_at or step.started_at, step.until)
            elif events[step.path] is None:
                yield Wait("time", step.path, step.started_at, step.until)
            else:
                yield Wait("event", step.path, step.started_at, step.until, payload=events[step.path])


async def read_history(store: Store, run_id: str) -> History:
    """Read all that a store has of a run. Raises RunNotFound."""
    record = await store.load(run_id)
    state = RunState(restored=True)
    state.values[""] = dict(record.initial_state)
    entries: list[Entry] = []
    while page := await store.read(run_id, after=state.seq):
        for entry in page:
            state.apply(entry)
        entries += page
    now = time.time_ns()
    lost = state.status == "running" and run_id in await store.orphans(now, limit=10_000)
    return History(record, entries, state, now, lost)


def iso(at: int) -> str:
    """Write a time for programs: ISO 8601 in UTC, in microseconds."""
    return _datetime(at).isoformat(timespec="microseconds").replace("+00:00", "Z")


def local(at: int) -> str:
    """Write a time for people, in their time zone."""
    return f"{_datetime(at).astimezone():%Y-%m-%d %H:%M:%S}"


def _datetime(at: int) -> datetime:
    return datetime.fromtimestamp(at / 1e9, UTC)
