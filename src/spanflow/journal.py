"""The journal of a run: the only writer of its events, and so of its state.

``record`` gives an event its number and applies it to the state; ``flush`` stores what was recorded, then publishes
it. Events that are recorded between two flushes share one append, so a step costs one commit.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, cast

from spanflow.context import Done
from spanflow.entries import Entry, RunIds
from spanflow.errors import SpanflowError
from spanflow.events import Envelope, leave_out_own
from spanflow.lease import Lease
from spanflow.ports import AppendNow, RunRecord, Store, append_now_of
from spanflow.state import RunState
from spanflow.stream import Feed


class _Done:
    """An awaitable of what is done already."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return _NOTHING


_NOTHING = cast("Generator[None, None, None]", iter(()))
_DONE = _Done()
_TURN = Done()
_DUE = 256  # events; where steps never wait, readers, whoever cancels the run, and its lease still get their turn


class Journal:
    """Records what happens to a run. One for each run that executes, driven from one event loop."""

    def __init__(
        self,
        store: Store,
        state: RunState,
        ids: RunIds,
        on_broken: Callable[[], None],
    ) -> None:
        self._store = store
        self.state = state
        self.run_id = ids.run_id
        self._ids = ids
        self.feed = Feed()
        self.feed.last_seq = state.seq
        self._unsaved: list[Entry] = []
        self._changes: dict[str, Any] | None = None
        self._saving = self._has_deltas = False
        self._waiters: list[asyncio.Future[None]] = []
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._flushes: set[asyncio.Task[None]] = set()
        self._on_broken = on_broken
        self._on_turn: Callable[[], None] | None = None
        self.broken: SpanflowError | None = None
        self.saved_seq = self._turn_seq = state.seq
        self._settle: Callable[[], Awaitable[None]] | None = None
        self._append_now: AppendNow | None = append_now_of(store)
        self._in_memory = self._append_now is not None and getattr(store, "is_live", False)

    def settle_before_append(self, settle: Callable[[], Awaitable[None]] | None) -> None:
        """Await this before each append."""
        if settle is not None:
            self._settle, self._append_now = settle, None

    def record(self, kind: type[Envelope], payload: dict[str, Any], path: str, span_id: int | None, at: int) -> None:
        """Number a lifecycle event and apply it. It is stored and published with the next flush."""
        state, changes = self.state, self._changes
        if changes is not None:
            self._changes = None
            leave_out_own(changes, path)
        entry = Entry(kind, payload, self._ids, state.seq + 1, at, span_id, path, changes)
        state.apply(entry)
        self._unsaved.append(entry)

    def stream(self, kind: type[Envelope], payload: dict[str, Any], path: str, span_id: int | None, at: int) -> None:
        """Publish a delta, after all that was recorded before it. It is not stored."""
        entry = Entry(kind, payload, self._ids, self.state.seq, at, span_id, path)
        if self._unsaved:
            self._unsaved.append(entry)
            self._has_deltas = True
        else:
            self.feed.publish((entry,))

    def decide(self, key: str, verdict: Any) -> None:
        """Keep what a condition said; it is stored with the first event that follows from it."""
        self.state.decisions[key] = verdict
        self._pending().setdefault("decisions", {})[key] = verdict

    def change_state(self, scope: str, values: dict[str, Any], by: str) -> None:
        """Change the workflow state; stored with the next event. ``by`` is the path of the step that does."""
        self.state.values.setdefault(scope, {}).update(values)
        pending = self._pending()
        pending.setdefault("state", {}).setdefault(scope, {}).update(values)
        pending.setdefault("by", {}).setdefault(scope, {}).update(dict.fromkeys(values, by))

    def carry(self, changes: dict[str, Any] | None) -> None:
        """Let the next event carry these changes."""
        self._changes = changes

    def take_over(self, entries: Sequence[Entry]) -> None:
        """Record what has happened in another run; it is numbered already."""
        for entry in entries:
            self.state.apply(entry)
        self._unsaved += entries

    def next_turn(self, call: Callable[[], None]) -> None:
        """Call back in the next turn of the event loop, which a flush shares."""
        self._on_turn = call
        self.flush_soon()

    def flush_soon(self) -> None:
        """Flush in the next turn of the event loop, unless somebody has by then."""
        if not self._scheduled and not self._loop.is_closed():
            self._scheduled = True
            self._loop.call_soon(self._start_flush)

    async def create(self, record: RunRecord, lease: Lease | None) -> None:
        """Store a new run with what was recorded so far, then publish it. Raises RunConflict where the id is taken."""
        batch, self._unsaved = self._unsaved, []
        if lease is None:
            await self._store.create(record, batch)
        else:
            await self._store.create(record, batch, owner=lease.owner, lease_until=lease.until())
        self.saved_seq = self.state.seq
        self.feed.publish(batch)

    def close(self, error: SpanflowError | None) -> None:
        """Say that nothing follows, and let go of whoever drove, so that the run leaves memory with its last reader."""
        self._on_broken, self._on_turn = _nothing, None
        self.feed.close(error)

    def flushes_in_turn(self) -> bool:
        """Flush before the loop's next turn, where the store is memory: nobody could see it earlier, nor lose it.

        Where this returns False, await ``flush``.
        """
        if self.broken is not None:
            raise self.broken
        if not self._in_memory or self._saving or self._is_turn_due():
            return False
        self.flush_soon()
        return True

    def flush(self) -> Awaitable[None]:
        """Store, then publish, all that was recorded. Await it: then it is stored, by whichever flush.

        Raises:
            SpanflowError: the store refused, now or before; from then on nothing is recorded any more.
        """
        if self.broken is not None:
            raise self.broken
        if self._append_now is not None and not self._saving and self._flush_now(self._append_now):
            if not self._is_turn_due():
                return _DONE
            self.flush_soon()
            return _TURN
        return self._flush()

    def _is_turn_due(self) -> bool:
        return self.state.seq - self._turn_seq >= _DUE

    def _flush_now(self, append_now: AppendNow) -> bool:
        """Flush on the spot. Return False where the store would have to wait; then nothing is lost."""
        batch = self._unsaved
        if not batch:
            return True
        if self._has_deltas:
            batch, lifecycle = self._take()
        else:
            lifecycle, self._unsaved = batch, []
        if lifecycle:
            try:
                if append_now(self.run_id, lifecycle, lifecycle[0].seq - 1) is False:
                    self._put_back(batch)
                    return False
                self.saved_seq = lifecycle[-1].seq
            except SpanflowError as error:
                self.broken = error
                raise
        self.feed.publish(batch)
        return True

    async def _flush(self) -> None:
        while self._saving:
            await self._saved()
        if self.broken is not None:
            raise self.broken
        if self._unsaved:
            # In a task of its own: whoever is canceled while waiting must not take the batch with it.
            self._saving = True
            task = self._loop.create_task(self._save())
            self._flushes.add(task)
            task.add_done_callback(self._flushed)
            await asyncio.shield(task)

    async def _save(self) -> None:
        try:
            recorded = -1
            while self._settle is not None and recorded != len(self._unsaved):  # what ended meanwhile has to be out too
                recorded = len(self._unsaved)
                await self._settle()
            batch, lifecycle = self._take()
            if lifecycle:
                await self._store.append(self.run_id, lifecycle, expected_seq=lifecycle[0].seq - 1)
                self.saved_seq = lifecycle[-1].seq
            self.feed.publish(batch)
        except SpanflowError as error:
            self.broken = error
            raise
        finally:
            self._saving = False
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def is_behind(self) -> bool:
        """Tell whether the store holds events of this run that somebody else has stored."""
        while True:
            while self._saving:  # the store may hold what is about to be acknowledged to us
                await self._saved()
            saved = self.saved_seq
            beyond = await self._store.read(self.run_id, after=saved, limit=1)
            if not self._saving and self.saved_seq == saved:
                return bool(beyond)

    def _put_back(self, batch: list[Entry]) -> None:
        self._has_deltas = self._has_deltas or any(not entry.kind.lifecycle for entry in batch)
        self._unsaved[:0] = batch

    def _take(self) -> tuple[list[Entry], list[Entry]]:
        """Return what was recorded since, and of it what is stored."""
        batch, self._unsaved = self._unsaved, []
        if not self._has_deltas:
            return batch, batch
        self._has_deltas = False
        return batch, [entry for entry in batch if entry.kind.lifecycle]

    async def _saved(self) -> None:
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _pending(self) -> dict[str, Any]:
        if self._changes is None:
            self._changes = {}
        return self._changes

    def _start_flush(self) -> None:
        self._scheduled = False
        self._turn_seq = self.state.seq
        if self._on_turn is not None:
            on_turn, self._on_turn = self._on_turn, None
            on_turn()
        if self.broken is not None or self._saving:
            return
        try:
            if self._append_now is not None and self._flush_now(self._append_now):
                return
        except SpanflowError:
            self._on_broken()
            return
        if self._unsaved:
            self._saving = True
            task = self._loop.create_task(self._save())
            self._flushes.add(task)
            task.add_done_callback(self._flushed)

    def _flushed(self, task: asyncio.Task[None]) -> None:
        self._flushes.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._on_broken()
        elif self._unsaved:
            self.flush_soon()


def _nothing() -> None:
    """What a journal that broke after its run was over has left to stop."""
