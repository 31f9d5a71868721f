"""Reading a run's events: any number of readers, each at its own pace.

A reader holds a cursor into the journal, so however slow it is, it loses no lifecycle event and holds only a few.
Deltas are not stored; a reader that falls behind gets them merged.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence

from spanflow.events import Entry, Event, Finish, StepOutput, ToolCallDelta
from spanflow.ports import Store

_RECENT = 512  # lifecycle events a reader holds before it goes back to the store
_DELTAS = 1024  # deltas a reader holds before they are merged
_TEXT = 65_536  # characters of merged text

_DeltaKey = tuple[int, str, str, str | None]


class Feed:
    """Where a run that executes in this process publishes its events."""

    def __init__(self) -> None:
        self.last_seq = 0
        self.closed = False
        self._readers: set[Subscription] = set()

    def publish(self, entries: Sequence[Entry]) -> None:
        """Give stored events and deltas, in order, to all readers."""
        self.last_seq = entries[-1].seq  # a delta carries the number of the lifecycle event before it
        for reader in self._readers:
            reader.push(entries)

    def close(self) -> None:
        """Say that nothing follows: the run ended or suspended."""
        self.closed = True
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
        self._deltas: OrderedDict[_DeltaKey | int, Event] = OrderedDict()
        self._number = 0
        self._wakeup: asyncio.Future[None] | None = None
        self._done = False
        if feed is not None:
            feed.add(self)

    def push(self, entries: Sequence[Entry]) -> None:
        """Take published events in."""
        if self._done:
            return
        for entry in entries:
            if not entry.kind.lifecycle:
                self._push_delta(entry.event)
            elif len(self._recent) < _RECENT and entry.seq == self._newest + 1:
                self._recent.append(entry)
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
            event = self._ready()
            if event is not None:
                return event
            if self._feed is None or self._feed.last_seq > self._cursor:
                page = await self._store.read(self._run_id, after=self._cursor, limit=_RECENT)
                self._recent = deque(page)
                if page:
                    continue
            if self._feed is None or self._feed.closed:
                self.close()
                break
            await self._woken()
        raise StopAsyncIteration

    @property
    def _newest(self) -> int:
        return self._recent[-1].seq if self._recent else self._cursor

    def _ready(self) -> Event | None:
        """Return the next event that is at hand: deltas stand after the lifecycle event whose number they carry."""
        following = self._recent[0] if self._recent else None
        if self._deltas:
            key = next(iter(self._deltas))
            delta = self._deltas[key]
            if delta.seq <= self._cursor:
                del self._deltas[key]
                return delta
        if following is None:
            return None
        self._recent.popleft()
        self._cursor = following.seq
        event = following.event
        if isinstance(event, Finish) and (self._one_stretch or self._is_last(event)):
            self.close()
        return event

    def _is_last(self, finish: Finish) -> bool:
        if self._recent:
            return False
        return finish.payload.status != "suspended" or (
            self._feed is not None and self._feed.closed and self._feed.last_seq == finish.seq
        )

    def _push_delta(self, event: Event) -> None:
        if len(self._deltas) < _DELTAS:
            self._number += 1
            self._deltas[self._number] = event
            return
        key = _key(event)
        older = self._deltas.get(key)
        if older is None:
            self._deltas.popitem(last=False)
            self._deltas[key] = event
        else:
            self._deltas[key] = _merged(older, event)

    async def _woken(self) -> None:
        self._wakeup = asyncio.get_running_loop().create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None


def _key(event: Event) -> _DeltaKey:
    call_id = event.payload.tool_call_id if isinstance(event, ToolCallDelta) else None
    return (event.seq, event.type, event.path, call_id)


def _merged(older: Event, newer: Event) -> Event:
    """Join two deltas of one source: text is appended, of anything else the newer one stays."""
    if isinstance(older, ToolCallDelta) and isinstance(newer, ToolCallDelta):
        before, after = older.payload.delta, newer.payload.delta
        if isinstance(before, str) and isinstance(after, str):
            payload = newer.payload.model_copy(update={"delta": (before + after)[-_TEXT:]})
            return newer.model_copy(update={"payload": payload})
    elif isinstance(older, StepOutput) and isinstance(newer, StepOutput):
        before, after = older.payload.output, newer.payload.output
        if isinstance(before, str) and isinstance(after, str):
            payload = newer.payload.model_copy(update={"output": (before + after)[-_TEXT:]})
            return newer.model_copy(update={"payload": payload})
    return newer
