"""The protocols between the runtime and the outside world. Adapters know these, not each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from spanflow.entries import Entry
from spanflow.events import RunStatus
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


CANCEL = ""
"""``Message.name`` of what tells a run to end as canceled. No event has it: their names are not empty."""


class Message(BaseModel):
    """Something sent to a run from outside, kept until the run takes it: an event, or ``CANCEL``."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    payload: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """Which runs to find; what is None does not restrict. Times are ns since the epoch.

    ``metadata`` values are compared as JSON: ``1`` is neither ``1.0`` nor ``True``. ``after`` is the ``cursor`` of the
    last run of the page before. ``wakes_before``: only runs that wait for a time earlier than this.
    """

    status: RunStatus | tuple[RunStatus, ...] | None = None
    workflow: str | None = None
    trace_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: {})
    started_after: int | None = None
    started_before: int | None = None
    wakes_before: int | None = None
    after: int | None = None
    limit: int = 100

    @property
    def statuses(self) -> tuple[RunStatus, ...] | None:
        return (self.status,) if isinstance(self.status, str) else self.status


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run as ``find_runs`` lists it. Times are ns since the epoch.

    ``trace_id`` is that of its first trace. ``wake_at`` is the earliest time that a step waits for, to show: once that
    has come it stays until another wait begins, also where the run still waits for a later time. ``cursor`` is where
    the run stands in the store's list, for the next page.
    """

    run_id: str
    workflow_id: str
    status: RunStatus
    trace_id: str | None
    metadata: dict[str, Any]
    started_at: int
    ended_at: int | None
    wake_at: int | None = None
    owner: str | None = None
    cursor: int = 0


class AppendNow(Protocol):
    """``Store.append`` as a plain call, for a store that can do it on the spot, as ``append_now``.

    Returns False, having done nothing, where it would have to wait after all.
    """

    def __call__(self, run_id: str, entries: Sequence[Entry], expected_seq: int) -> bool: ...


def append_now_of(store: "Store") -> AppendNow | None:
    """Return a store's ``append_now``, unless a subclass has given ``append`` another meaning."""
    found: AppendNow | None = getattr(store, "append_now", None) if _may_append_now(type(store)) else None
    return found


@cache
def _may_append_now(kind: type) -> bool:
    owner = next((each for each in kind.__mro__ if "append" in vars(each)), kind)
    return "append_now" in vars(owner)


class Store(Protocol):
    """Where journals live, and who drives which run.

    ``append`` is the only writer of a run's events. It refuses with ``RunConflict`` when the journal does not end at
    ``expected_seq``: then somebody else drives the run. A run has at most one owner, who drives it as long as its
    lease lasts; times of leases are ns since the epoch on the callers' clocks.

    A durable store raises ``StoreError`` where it cannot read or write; then nothing of the call was done.
    """

    @property
    def is_live(self) -> bool:
        """Whether values come back as the objects they were, not as their JSON."""
        ...

    async def create(
        self, record: RunRecord, entries: Sequence[Entry], *, owner: str | None = None, lease_until: int = 0
    ) -> None:
        """Keep a new run with its first events. Raises ``RunConflict`` where the id is taken."""
        ...

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        """Add lifecycle events to the end of a journal, all or none.

        What they say of the whole run is kept beside the journal at the same moment: its status, when it ended, and
        the time it waits for. A run that ended or suspended has no owner any more.

        Raises:
            RunConflict: the journal does not end at ``expected_seq``.
            RunNotFound: there is no such run.
            SpanflowError: a value cannot be stored.
        """
        ...

    async def load(self, run_id: str) -> RunRecord:
        """Return what was fixed at the start. Raises ``RunNotFound``."""
        ...

    async def read(self, run_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        """Return the events with ``seq > after``, in order, at most ``limit``.

        Where values are not live, what other events say is left out: a value with a ``*_ref``, and the ``suspended`` of
        a ``finish``. A ``RunState`` that these events are applied to knows it.

        Raises:
            RunNotFound: there is no such run.
        """
        ...

    async def find(self, query: RunQuery) -> Sequence[FoundRun]:
        """Return matching runs, the newest first."""
        ...

    async def post(self, run_id: str, message: Message) -> None:
        """Keep a message for a run. Raises ``RunNotFound``."""
        ...

    async def messages(self, run_id: str) -> Sequence[Message]:
        """Return all messages of a run, taken or not, in the order they were sent. Raises ``RunNotFound``."""
        ...

    async def posted(self, owner: str) -> Mapping[str, int]:
        """Return how many messages the runs of an owner have, taken or not, by run id; without those that have none.

        Asked several times a second while runs execute: it must cost little.
        """
        ...

    async def delete(self, run_id: str) -> None:
        """Forget a run and all that belongs to it. Raises ``RunNotFound``."""
        ...

    async def delete_ended(self, before: int) -> int:
        """Forget the runs that ended before this time, and return how many those were."""
        ...

    async def claim(self, run_id: str, owner: str, *, now: int, lease_until: int) -> bool:
        """Become the owner of a run that has none, or whose owner's lease ended before ``now``, or prolong one's own.

        Of many who claim at once exactly one succeeds. Raises ``RunNotFound``.
        """
        ...

    async def renew(self, owner: str, *, lease_until: int) -> frozenset[str]:
        """Extend all leases of an owner, and return the ids of the runs it still owns."""
        ...

    async def release(self, run_id: str, owner: str) -> None:
        """Stop owning a run. Without effect where somebody else owns it, or nobody."""
        ...

    async def orphans(self, now: int, limit: int = 100) -> Sequence[str]:
        """Return the ids of running runs whose lease ended before ``now``, the oldest first."""
        ...

    async def aclose(self) -> None:
        """Let go of files and connections. The store may be used again: it then opens them anew."""
        ...
