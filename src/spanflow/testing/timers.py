"""Who waits on a fake clock in one event loop, and when time may move on to the next of them."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from spanflow.errors import SpanflowError
from spanflow.testing.threads import pools_are_busy

_QUIET_TURNS = 2  # turns of an idle loop: between two of them it has looked for finished I/O and threads
_BLIND_TURNS = 50  # the same, for loops that do not show whether they are idle
_SPINNING_TURNS = 20_000  # turns without a rest or a look at the clock: something spins until time passes
_POLL = 0.001  # s, real: how often threads and real I/O are looked after


@dataclass(slots=True)
class Time:
    """What time it is (ns since the epoch), and how it moves. Shared by the loops that use one clock.

    Attributes:
        auto: time moves by itself.
        patience: real seconds since ``used_at`` that threads and real I/O are given.
        used_at: when anybody last asked this clock for anything, on the real monotonic clock.
    """

    now: int
    auto: bool
    patience: float
    used_at: float = field(default_factory=time.monotonic)

    def use(self) -> None:
        self.used_at = time.monotonic()

    @property
    def patience_left(self) -> float:
        return self.patience - (time.monotonic() - self.used_at)


@dataclass(slots=True)
class Waiter:
    """Somebody who waits for a moment. Timeouts come after sleepers of the same moment: just in time is in time."""

    deadline: int
    is_timeout: bool
    number: int
    wake: Callable[[], None]
    gone: bool = False

    def __lt__(self, other: "Waiter") -> bool:
        return (self.deadline, self.is_timeout, self.number) < (other.deadline, other.is_timeout, other.number)


@dataclass(slots=True)
class Journey:
    """An ``advance`` that is under way."""

    target: int
    arrived: asyncio.Future[None]


class Timers:
    """The waiters of one event loop. Callbacks look whether the loop has come to rest; there is no task to leak."""

    def __init__(self, time: Time, loop: asyncio.AbstractEventLoop) -> None:
        self.time = time
        self.loop = loop
        self._heap: list[Waiter] = []
        self._gone = 0
        self._numbers = itertools.count()
        self._look_handle: asyncio.Handle | None = None
        self._quiet_turns = 0
        self._busy_turns = 0
        self._used_at = 0.0
        self._journey: Journey | None = None

    def add(self, deadline: int, wake: Callable[[], None], *, is_timeout: bool = False) -> Waiter:
        waiter = Waiter(deadline, is_timeout, next(self._numbers), wake)
        heapq.heappush(self._heap, waiter)
        self.time.use()
        if self.time.auto:
            self._look_soon()
        return waiter

    def remove(self, waiter: Waiter) -> None:
        """Forget a waiter, woken or not."""
        self.time.use()
        if not waiter.gone:
            waiter.gone = True
            self._gone += 1
            if self._gone > len(self._heap) // 2:
                self._heap = [each for each in self._heap if not each.gone]
                heapq.heapify(self._heap)
                self._gone = 0

    def deadlines(self) -> list[int]:
        """Return the moments that are waited for, the nearest first."""
        return sorted(waiter.deadline for waiter in self._heap if not waiter.gone)

    async def advance_to(self, target: int) -> None:
        """Move time to ``target`` by way of each deadline before it, at each of which the loop comes to rest."""
        if self._journey is not None:
            raise SpanflowError("FakeClock: another advance() is under way. Await one before the next.")
        self._journey = journey = Journey(target, self.loop.create_future())
        self._look_soon()
        try:
            await journey.arrived
        finally:
            self._journey = None
            if self.time.auto:
                self._look_soon()

    def _look_soon(self) -> None:
        self._quiet_turns = 0
        if self._look_handle is not None:
            self._look_handle.cancel()
        self._look_handle = self.loop.call_soon(self._look, context=Context())

    def _look(self) -> None:
        """Move time if all that can happen before the next deadline has happened, else look again later."""
        self._look_handle = None
        waiter, journey = self._next(), self._journey
        if waiter is None and (journey is None or journey.arrived.done()):
            return
        delay = self._unrest(waiter)
        if delay is None:
            delay = 0.0
            self._quiet_turns = 0
            self.time.use()
            if waiter is not None:
                self._wake_with(waiter)
            elif journey is not None:
                self.time.now = journey.target
                journey.arrived.set_result(None)
                return
        self._look_handle = self.loop.call_later(delay, self._look, context=Context())

    def _next(self) -> Waiter | None:
        """Return who waits for the next moment that time may move to."""
        while self._heap and self._heap[0].gone:
            heapq.heappop(self._heap)
            self._gone -= 1
        if not self._heap:
            return None
        journey = self._journey
        within_reach = self.time.auto if journey is None else self._heap[0].deadline <= journey.target
        return self._heap[0] if within_reach else None

    def _unrest(self, waiter: Waiter | None) -> float | None:
        """Return real seconds after which to look again; None where nothing is left to wait for."""
        busy = pools_are_busy()  # first: what a thread has finished by now, the loop is about to run
        if not self._is_quiet():
            return 0.0
        strikes = waiter is not None and waiter.is_timeout and self._journey is None
        if strikes or busy:  # what a timeout would cut short may be real I/O, which does not show
            left = self.time.patience_left
            return min(_POLL, left) if left > 0 else None
        return None

    def _is_quiet(self) -> bool:
        """Tell whether no callback was waiting for its turn, several times in a row."""
        if self._used_at != self.time.used_at:
            self._used_at = self.time.used_at
            self._busy_turns = 0
        ready: Any = getattr(self.loop, "_ready", None)  # what asyncio's own loops run next; others do not tell
        self._quiet_turns = 0 if ready else self._quiet_turns + 1
        self._busy_turns += 1
        enough = _BLIND_TURNS if ready is None else _QUIET_TURNS
        return self._quiet_turns >= enough or self._busy_turns > _SPINNING_TURNS

    def _wake_with(self, first: Waiter) -> None:
        """Move time to a deadline, and wake all who wait for it."""
        self.time.now = max(self.time.now, first.deadline)
        while (found := self._next()) is not None:
            if (found.deadline, found.is_timeout) != (first.deadline, first.is_timeout):
                return
            heapq.heappop(self._heap).gone = True
            found.wake()
