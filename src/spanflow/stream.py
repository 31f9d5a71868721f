"""Reading a run's events: any number of readers, each at its own pace.

A reader holds a cursor into the journal, so however slow it is, it loses no lifecycle event and holds only a few.
Deltas are not stored; a reader that falls behind gets them merged.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from spanflow.entries import Entry
from spanflow.errors import SpanflowError
from spanflow.events import Envelope, Event, Finish, StepOutput, ToolCallDelta
from spanflow.ports import Store
from spanflow.state import RunState

_RECENT = 512  # lifecycle events a reader holds before it goes back to the store
_DELTAS = 1024  # deltas a reader holds before they are merged
_POLL = 0.2  # s: how often a run that executes in another process is looked at
_TEXT = 65_536  # characters of merged text; of a longer one the end is kept


class Feed:
    """Where a run that executes in this process publishes its events."""

    def __init__(self) -> None:
        self.last_seq = 0
        self.closed = False
        self.error: SpanflowError | None = None
        self._readers: set[Subscription] = set()

    def publish(self, entries: Sequence[Entry]) -> None:
        """Give stored events and deltas, in order, to all readers."""
        self.last_seq = entries[-1].seq  # a delta carries the number of the lifecycle event before it
        for reader in self._readers:
            reader.push(entries)

    def close(self, error: SpanflowError | None = None) -> None:
        """Say that nothing follows: the run ended or suspended, or this process cannot go on with it."""
        self.closed = True
        self.error = error
        for reader in self._readers:
            reader.wake()
        self._readers.clear()

    def add(self, reader: "Subscription") -> None:
        if not self.closed:
            self._readers.add(reader)

    def discard(self, reader: "Subscription") -> None:
        self._readers.discard(reader)


class Subscription(AsyncIterator[Event]):
    """One reader of one run. Ends after the last ``finish`` there is; with ``one_stretch``, after the first."""

    def __init__(
        self, store: Store, run_id: str, feed: Feed | None, *, after: int = 0, one_stretch: bool = False
    ) -> None:
        self._store = store
        self._run_id = run_id
        self._feed = feed
        self._cursor = after
        self._one_stretch = one_stretch
        self._recent: deque[Entry] = deque()
        self._deltas: deque[Event] = deque()
        self._wakeup: asyncio.Future[None] | None = None
        self._has_waited = False
        self._state: RunState | None = None
        self._last: type[Envelope] | None = None
        self._done = False
        if feed is not None:
            feed.add(self)

    def push(self, entries: Sequence[Entry]) -> None:
        """Take published events in."""
        if self._done:
            return
        recent = self._recent
        newest = recent[-1].seq if recent else self._cursor
        for entry in entries:
            if not entry.kind.lifecycle:
                if entry.seq >= self._cursor:  # else the reader has read past it, in the store
                    self._push_delta(entry.event)
            elif entry.seq == newest + 1 and len(recent) < _RECENT:
                recent.append(entry)
                newest += 1
        if self._wakeup is not None:
            self.wake()

    def wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def close(self) -> None:
        """Stop reading. The run goes on."""
        self._done = True
        self._recent.clear()
        self._deltas.clear()
        if self._feed is not None:
            self._feed.discard(self)
        self.wake()

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Event:
        while not self._done:
            if self._deltas and self._deltas[0].seq <= self._cursor:  # deltas follow the event whose number they carry
                return self._deltas.popleft()
            if self._recent:
                entry = self._recent.popleft()
                self._cursor = entry.seq
                if entry.kind is Finish and (self._one_stretch or self._is_last(entry)):
                    self.close()
                return entry.event
            if self._feed is None or self._feed.last_seq > self._cursor:
                page = await self._store.read(self._run_id, after=self._cursor, limit=_RECENT)
                if page and not self._store.is_live:
                    await self._resolve(page)
                self._recent = deque(page)
                if page:
                    self._last = page[-1].kind
                    continue
                if self._feed is None and not self._store.is_live and not await self._stands_at_finish():
                    await asyncio.sleep(_POLL)  # it executes in another process, or waits for one to take it over
                    continue
            if self._feed is None or self._feed.closed:
                self.close()
                if self._feed is not None and self._feed.error is not None:
                    raise self._feed.error
                break
            await self._woken()
        raise StopAsyncIteration

    async def _stands_at_finish(self) -> bool:
        """Tell whether the last event there is, and that was read, is a ``finish``."""
        if self._last is None and self._cursor > 0:
            here = await self._store.read(self._run_id, after=self._cursor - 1, limit=1)
            self._last = here[0].kind if here else Finish
        return self._last is Finish

    async def _resolve(self, page: Sequence[Entry]) -> None:
        """Put values back where what was stored is only where they stand."""
        if self._state is None:
            self._state = RunState(restored=True)
        while self._state.seq < page[0].seq - 1:
            before = await self._store.read(
                self._run_id, after=self._state.seq, limit=page[0].seq - 1 - self._state.seq
            )
            for entry in before:
                self._state.apply(entry)
        for entry in page:
            for name in ("input", "output", "result"):
                ref = entry.payload.get(f"{name}_ref")
                if ref is not None and entry.payload.get(name) is None:
                    entry.payload[name] = self._state.resolve(ref)
            if entry.seq > self._state.seq:
                self._state.apply(entry)
            if entry.kind is Finish and entry.payload["status"] == "suspended":
                entry.payload["suspended"] = self._state.suspended

    def _is_last(self, finish: Entry) -> bool:
        if self._recent:
            return False
        return finish.payload["status"] != "suspended" or (
            self._feed is not None and self._feed.closed and self._feed.last_seq == finish.seq
        )

    def _push_delta(self, event: Event) -> None:
        if len(self._deltas) >= _DELTAS:
            merged = _merged(self._deltas)
            self._deltas = deque(merged[-_DELTAS // 2 :])  # the oldest go where there are so many sources
        self._deltas.append(event)

    async def _woken(self) -> None:
        if not self._has_waited:  # a run that has just begun gets far in its first turn
            self._has_waited = True
            await asyncio.sleep(0)
            return
        self._wakeup = asyncio.get_running_loop().create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None


def _merged(deltas: Iterable[Event]) -> list[Event]:
    """Join the deltas of each source between two lifecycle events: texts in one, of anything else the newest."""
    groups: dict[Any, list[Event]] = {}
    for event in deltas:
        call_id = event.payload.tool_call_id if isinstance(event, ToolCallDelta) else None
        key = (event.seq, event.type, event.path, call_id, isinstance(_value(event), str))
        groups.setdefault(key, []).append(event)
    return [_joined(group) for group in groups.values()]


def _joined(group: Sequence[Event]) -> Event:
    last, values = group[-1], [_value(event) for event in group]
    if len(group) == 1 or not isinstance(values[0], str):
        return last
    name = "delta" if isinstance(last, ToolCallDelta) else "output"
    payload = last.payload.model_copy(update={name: "".join(values)[-_TEXT:]})
    return last.model_copy(update={"payload": payload})


def _value(event: Event) -> Any:
    match event:
        case ToolCallDelta():
            return event.payload.delta
        case StepOutput():
            return event.payload.output
        case _:
            return None
