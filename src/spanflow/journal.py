"""The journal of a run: the only writer of its events, and so of its state.

``record`` gives an event its number and applies it to the state; ``flush`` stores what was recorded, then publishes
it. Events that are recorded between two flushes share one append, so a step costs one commit.
"""

import asyncio
from typing import Any

from pydantic import BaseModel

from spanflow.events import Changes, Envelope, Event
from spanflow.ports import Store
from spanflow.state import RunState
from spanflow.stream import Feed


class Journal:
    """Records what happens to a run. One for each run that executes, driven from one event loop."""

    __slots__ = (
        "_changes", "_flushes", "_lock", "_loop", "_scheduled", "_store", "_unsaved", "feed", "run_id", "state", "trace_id",
    )  # fmt: skip

    def __init__(self, store: Store, state: RunState, run_id: str, trace_id: str | None) -> None:
        self._store = store
        self.state = state
        self.run_id = run_id
        self.trace_id = trace_id
        self.feed = Feed()
        self.feed.last_seq = state.seq
        self._unsaved: list[Event] = []
        self._changes: dict[str, Any] | None = None
        self._lock = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._flushes: set[asyncio.Task[None]] = set()

    def record(self, kind: type[Envelope], payload: BaseModel, path: str, span_id: str | None, at: int) -> Event:
        """Number a lifecycle event and apply it. It is stored and published with the next flush."""
        state = self.state
        changes, self._changes = self._changes, None
        event: Any = kind(
            payload=payload,  # pyright: ignore[reportCallIssue]  # each kind has its own payload model
            run_id=self.run_id,
            seq=state.seq + 1,
            timestamp=at,
            trace_id=self.trace_id,
            span_id=span_id,
            path=path,
            changes=None if changes is None else Changes(**changes),
        )
        state.apply(event)
        self._unsaved.append(event)
        return event

    def stream(self, kind: type[Envelope], payload: BaseModel, path: str, span_id: str | None, at: int) -> None:
        """Publish a delta, after all that was recorded before it. It is not stored."""
        event: Any = kind(
            payload=payload,  # pyright: ignore[reportCallIssue]  # each kind has its own payload model
            run_id=self.run_id,
            seq=self.state.seq,
            timestamp=at,
            trace_id=self.trace_id,
            span_id=span_id,
            path=path,
        )
        if self._unsaved:
            self._unsaved.append(event)
        else:
            self.feed.publish((event,))

    def decide(self, key: str, verdict: Any) -> None:
        """Keep what a condition said; it is stored with the first event that follows from it."""
        self.state.decisions[key] = verdict
        self._pending().setdefault("decisions", {})[key] = verdict

    def change_state(self, scope: str, values: dict[str, Any]) -> None:
        """Change the workflow state; stored with the next event."""
        self.state.values.setdefault(scope, {}).update(values)
        self._pending().setdefault("state", {}).setdefault(scope, {}).update(values)

    def flush_soon(self) -> None:
        """Flush in the next turn of the event loop, unless somebody has by then."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._start_flush)

    async def flush(self) -> None:
        """Store, then publish, all that was recorded. Returns when it is stored, by whichever flush."""
        async with self._lock:
            while self._unsaved:
                batch, self._unsaved = self._unsaved, []
                lifecycle = [event for event in batch if event.lifecycle]
                if lifecycle:
                    await self._store.append(self.run_id, lifecycle, expected_seq=lifecycle[0].seq - 1)
                self.feed.publish(batch)

    async def close(self) -> None:
        """Flush, and tell readers that nothing follows."""
        await self.flush()
        self.feed.close()

    def _pending(self) -> dict[str, Any]:
        if self._changes is None:
            self._changes = {}
        return self._changes

    def _start_flush(self) -> None:
        self._scheduled = False
        if self._unsaved:
            task = self._loop.create_task(self.flush())
            self._flushes.add(task)
            task.add_done_callback(self._flushes.discard)
