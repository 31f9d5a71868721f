"""Journals in this process's memory: for tests, and for runs that need not outlive it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spanflow.errors import RunConflict, RunNotFound
from spanflow.events import Entry, Finish, RunStatus, Start
from spanflow.ports import FoundRun, Message, RunQuery, RunRecord


@dataclass(slots=True)
class _Kept:
    record: RunRecord
    entries: list[Entry]
    metadata: dict[str, Any]
    status: RunStatus = "running"
    ended_at: int | None = None
    messages: list[Message] = field(default_factory=list[Message])


class MemoryStore:
    """Keeps events as the objects they are, so values stay what they were.

    Args:
        keep_finished: how many ended runs are kept; the oldest make room. None keeps all.
    """

    is_live = True

    def __init__(self, keep_finished: int | None = 1000) -> None:
        self._runs: dict[str, _Kept] = {}
        self._finished: dict[str, None] = {}
        self._keep_finished = keep_finished

    async def create(self, record: RunRecord, entries: Sequence[Entry]) -> None:
        if record.run_id in self._runs:
            raise RunConflict(
                f"Run {record.run_id!r} already exists. Leave run_id out for a new one, or continue it with get_run().",
                run_id=record.run_id,
            )
        metadata = {**record.trace.attributes, **record.trace.metadata}
        self._runs[record.run_id] = _Kept(record, [], metadata)
        await self.append(record.run_id, entries, expected_seq=0)

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        self.append_now(run_id, entries, expected_seq)

    def append_now(self, run_id: str, entries: Sequence[Entry], expected_seq: int) -> None:
        """Do what ``append`` does. There is no I/O to wait for."""
        kept = self._kept(run_id)
        if len(kept.entries) != expected_seq:
            raise RunConflict(
                f"Run {run_id!r} stands at event {len(kept.entries)}, not {expected_seq}: somebody else drives it.",
                run_id=run_id,
            )
        kept.entries.extend(entries)
        if entries and entries[-1].kind is Finish:
            self._finish(run_id, kept, entries[-1])
        elif entries and entries[0].kind is Start:
            kept.status = "running"

    async def load(self, run_id: str) -> RunRecord:
        return self._kept(run_id).record

    async def read(self, run_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        return self._kept(run_id).entries[after : after + limit]

    async def find(self, query: RunQuery) -> Sequence[FoundRun]:
        found = (
            FoundRun(
                run_id=run_id,
                workflow_id=kept.record.workflow_id,
                status=kept.status,
                trace_id=kept.record.trace.trace_id,
                metadata=kept.metadata,
                started_at=kept.record.created_at,
                ended_at=kept.ended_at,
            )
            for run_id, kept in reversed(self._runs.items())
        )
        return [run for run in found if _matches(run, query)][: query.limit]

    async def post(self, run_id: str, message: Message) -> None:
        self._kept(run_id).messages.append(message)

    async def messages(self, run_id: str) -> Sequence[Message]:
        return tuple(self._kept(run_id).messages)

    def _kept(self, run_id: str) -> _Kept:
        try:
            return self._runs[run_id]
        except KeyError:
            raise RunNotFound(run_id) from None

    def _finish(self, run_id: str, kept: _Kept, entry: Entry) -> None:
        kept.status = entry.payload["status"]
        if kept.status == "suspended":
            return
        kept.ended_at = entry.timestamp
        self._finished[run_id] = None
        if self._keep_finished is not None and len(self._finished) > self._keep_finished:
            oldest = next(iter(self._finished))
            del self._finished[oldest], self._runs[oldest]


def _matches(run: FoundRun, query: RunQuery) -> bool:
    return (
        query.status in (None, run.status)
        and query.workflow in (None, run.workflow_id)
        and query.trace_id in (None, run.trace_id)
        and all(run.metadata.get(key) == value for key, value in query.metadata.items())
    )
