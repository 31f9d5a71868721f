"""Journals in this process's memory: for tests, and for runs that need not outlive it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spanflow.entries import Entry
from spanflow.errors import RunConflict, RunNotFound
from spanflow.events import RunStatus
from spanflow.ports import FoundRun, Message, RunQuery, RunRecord
from spanflow.stores.header import HeaderChange, earliest, header_change, labels, metadata_of
from spanflow.stores.packing import PackedJournal


@dataclass(slots=True)
class _Kept:
    record: RunRecord
    number: int
    journal: PackedJournal
    owner: str | None
    lease_until: int
    status: RunStatus = "running"
    ended_at: int | None = None
    wake_at: int | None = None
    messages: list[Message] = field(default_factory=lambda: [])
    traces: set[str] = field(default_factory=lambda: set())


class MemoryStore:
    """Keeps the values of events as the objects they are, so they stay what they were.

    Args:
        keep_finished: how many ended runs are kept; the oldest make room. None keeps all.
    """

    is_live = True

    def __init__(self, keep_finished: int | None = 1000) -> None:
        self._runs: dict[str, _Kept] = {}
        self._finished: dict[str, None] = {}
        self._keep_finished = keep_finished
        self._created = 0

    async def create(
        self, record: RunRecord, entries: Sequence[Entry], *, owner: str | None = None, lease_until: int = 0
    ) -> None:
        if record.run_id in self._runs:
            raise RunConflict(
                f"Run {record.run_id!r} already exists. Leave run_id out for a new one, or continue it with get_run().",
                run_id=record.run_id,
            )
        self._created += 1
        kept = self._runs[record.run_id] = _Kept(record, self._created, PackedJournal(), owner, lease_until)
        kept.journal.extend(entries)
        if len(entries) > 1:  # a lone start says no more than a new run does
            change = header_change(entries)
            if change is not None:
                self._change(record.run_id, kept, change)

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        self.append_now(run_id, entries, expected_seq)

    def append_now(self, run_id: str, entries: Sequence[Entry], expected_seq: int) -> bool:
        """Do what ``append`` does. There is no I/O to wait for."""
        kept = self._runs.get(run_id) or self._kept(run_id)
        if len(kept.journal) != expected_seq:
            raise RunConflict(
                f"Run {run_id!r} stands at event {len(kept.journal)}, not {expected_seq}: somebody else drives it.",
                run_id=run_id,
            )
        if entries:
            kept.journal.extend(entries)
            change = header_change(entries)
            if change is not None:
                self._change(run_id, kept, change)
        return True

    async def load(self, run_id: str) -> RunRecord:
        return self._kept(run_id).record

    async def read(self, run_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        return self._kept(run_id).journal.read(after, limit)

    async def find(self, query: RunQuery) -> Sequence[FoundRun]:
        wanted = labels(query.metadata)
        found: list[FoundRun] = []
        for run_id, kept in reversed(self._runs.items()):
            if len(found) >= query.limit:
                break
            if _matches(kept, query, wanted):
                found.append(_found(run_id, kept))
        return found

    async def post(self, run_id: str, message: Message) -> None:
        self._kept(run_id).messages.append(message)

    async def messages(self, run_id: str) -> Sequence[Message]:
        return tuple(self._kept(run_id).messages)

    async def posted(self, owner: str) -> Mapping[str, int]:
        return {
            run_id: len(kept.messages) for run_id, kept in self._runs.items() if kept.messages and kept.owner == owner
        }

    async def delete(self, run_id: str) -> None:
        self._kept(run_id)
        self._forget(run_id)

    async def delete_ended(self, before: int) -> int:
        old = [run_id for run_id, kept in self._runs.items() if kept.ended_at is not None and kept.ended_at < before]
        for run_id in old:
            self._forget(run_id)
        return len(old)

    async def claim(self, run_id: str, owner: str, *, now: int, lease_until: int) -> bool:
        kept = self._kept(run_id)
        if kept.owner not in (None, owner) and kept.lease_until >= now:
            return False
        kept.owner, kept.lease_until = owner, lease_until
        return True

    async def renew(self, owner: str, *, lease_until: int) -> frozenset[str]:
        owned = {run_id: kept for run_id, kept in self._runs.items() if kept.owner == owner}
        for kept in owned.values():
            kept.lease_until = lease_until
        return frozenset(owned)

    async def release(self, run_id: str, owner: str) -> None:
        kept = self._runs.get(run_id)
        if kept is not None and kept.owner == owner:
            kept.owner, kept.lease_until = None, 0

    async def orphans(self, now: int, limit: int = 100) -> Sequence[str]:
        dead = (run_id for run_id, kept in self._runs.items() if kept.status == "running" and kept.lease_until < now)
        return [run_id for run_id, _ in zip(dead, range(limit), strict=False)]

    async def aclose(self) -> None:
        """Do nothing: there is nothing to let go of, and the runs are still there."""

    def _kept(self, run_id: str) -> _Kept:
        try:
            return self._runs[run_id]
        except KeyError:
            raise RunNotFound(run_id) from None

    def _change(self, run_id: str, kept: _Kept, change: HeaderChange) -> None:
        if change.status is not None:
            kept.status, kept.ended_at = change.status, change.ended_at
        kept.wake_at = earliest(kept.wake_at, change)
        if change.trace_id is not None:
            kept.traces.add(change.trace_id)
        if change.releases:
            kept.owner, kept.lease_until = None, 0
        if change.ended_at is not None:
            self._finished[run_id] = None
            if self._keep_finished is not None and len(self._finished) > self._keep_finished:
                self._forget(next(iter(self._finished)))

    def _forget(self, run_id: str) -> None:
        del self._runs[run_id]
        self._finished.pop(run_id, None)


def _matches(kept: _Kept, query: RunQuery, wanted: dict[str, str]) -> bool:
    record = kept.record
    return (
        (query.statuses is None or kept.status in query.statuses)
        and query.workflow in (None, record.workflow_id)
        and (query.trace_id in (None, record.trace.trace_id) or query.trace_id in kept.traces)
        and (query.started_after is None or record.created_at > query.started_after)
        and (query.started_before is None or record.created_at < query.started_before)
        and (query.wakes_before is None or (kept.wake_at is not None and kept.wake_at < query.wakes_before))
        and (query.after is None or kept.number < query.after)
        and (not wanted or wanted.items() <= labels(metadata_of(record)).items())
    )


def _found(run_id: str, kept: _Kept) -> FoundRun:
    record = kept.record
    return FoundRun(
        run_id=run_id,
        workflow_id=record.workflow_id,
        status=kept.status,
        trace_id=record.trace.trace_id,
        metadata=metadata_of(record),
        started_at=record.created_at,
        ended_at=kept.ended_at,
        wake_at=kept.wake_at,
        owner=kept.owner,
        cursor=kept.number,
    )
