"""The protocols between the runtime and the outside world. Adapters know these, not each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from spanflow.events import Entry, RunStatus
from spanflow.plan import Plan
from spanflow.tracing.record import TraceRecord


@dataclass(slots=True, kw_only=True)  # not frozen: that costs a run more than an event
class RunRecord:
    """What is fixed when a run is created. Everything that happens later is in its events."""

    run_id: str
    workflow_id: str
    created_at: int
    plan: Plan
    trace: TraceRecord
    resource_id: str | None = None
    initial_state: dict[str, Any] = field(default_factory=lambda: {})
    runtime_context: dict[str, Any] = field(default_factory=lambda: {})


class Message(BaseModel):
    """Something sent to a run from outside, kept until the run takes it."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    payload: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """Which runs to find; what is None does not restrict."""

    status: RunStatus | None = None
    workflow: str | None = None
    trace_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=lambda: {})
    limit: int = 100


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run as ``find_runs`` lists it. Times are ns since the epoch."""

    run_id: str
    workflow_id: str
    status: RunStatus
    trace_id: str | None
    metadata: dict[str, Any]
    started_at: int
    ended_at: int | None


class AppendNow(Protocol):
    """``Store.append`` as a plain call: a store whose append never waits may have it as ``append_now``."""

    def __call__(self, run_id: str, entries: Sequence[Entry], expected_seq: int) -> None: ...


def append_now_of(store: "Store") -> AppendNow | None:
    """Return a store's ``append_now``, unless a subclass has given ``append`` another meaning."""
    for kind in type(store).__mro__:
        if "append" in vars(kind):
            found: AppendNow | None = getattr(store, "append_now", None) if "append_now" in vars(kind) else None
            return found
    return None


class Store(Protocol):
    """Where journals live.

    ``append`` is the only writer of a run's events. It refuses with ``RunConflict`` when the journal does not end at
    ``expected_seq``: then somebody else drives the run.
    """

    async def create(self, record: RunRecord, entries: Sequence[Entry]) -> None:
        """Keep a new run with its first events. Raises ``RunConflict`` where the id is taken."""
        ...

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        """Add lifecycle events to the end of a journal, all or none."""
        ...

    async def load(self, run_id: str) -> RunRecord:
        """Return what was fixed at the start. Raises ``RunNotFound``."""
        ...

    async def read(self, run_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        """Return the events with ``seq > after``, in order, at most ``limit``."""
        ...

    async def find(self, query: RunQuery) -> Sequence[FoundRun]:
        """Return matching runs, the newest first."""
        ...

    async def post(self, run_id: str, message: Message) -> None:
        """Keep a message for a run."""
        ...

    async def messages(self, run_id: str) -> Sequence[Message]:
        """Return all messages of a run, taken or not, in the order they were sent."""
        ...
