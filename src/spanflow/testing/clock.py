"""A clock that stands still until nothing else is left to do: tests of months take milliseconds."""

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from spanflow.errors import InvalidInput, SpanflowError
from spanflow.testing.threads import pools_are_busy

_START = datetime(2026, 1, 1, tzinfo=UTC)
_QUIET_TURNS = 2  # turns of an idle loop: between two of them it has looked for finished I/O and threads
_BLIND_TURNS = 50  # the same, for loops that do not show whether they are idle
_LONGEST_BUSY = 1.0  # s: a loop that spins for so long is taken for one that waits for time to pass
_POLL = 0.001  # s, real: how often threads and real I/O are looked after


@dataclass(slots=True)
class _Waiter:
    """Somebody who waits for a moment. Timeouts come after sleepers of the same moment: just in time is in time."""

    deadline: int
    is_timeout: bool
    number: int
    wake: Callable[[], None]
    gone: bool = False

    def __lt__(self, other: "_Waiter") -> bool:
        return (self.deadline, self.is_timeout, self.number) < (other.deadline, other.is_timeout, other.number)


@dataclass(slots=True)
class _Time:
    """What time it is, and how it moves."""

    now: int
    auto: bool
    patience: float
    used_at: float = field(default_factory=time.monotonic)

    def use(self) -> None:
        self.used_at = time.monotonic()

    @property
    def unused_for(self) -> float:
        """Real seconds since anybody asked this clock for anything."""
        return time.monotonic() - self.used_at


class FakeClock:
    """A clock for tests, for ``Runtime(clock=...)`` and ``workflow.create_run(clock=...)``.

    Time stands still while code runs. With ``auto``, it jumps to the next deadline (of a sleep, a retry's delay, a
    timeout) as soon as everything else has come to rest. Without, it moves only by ``advance`` and ``advance_to``.

    Args:
        start: the first moment: a datetime with a time zone, or ns since the epoch. 2026-01-01 UTC by default.
        auto: jump to the next deadline when nothing else is left to do.
        patience: real seconds, counted from the last use of the clock, that a thread or real I/O is given to finish
            before a timeout strikes.

    Raises:
        InvalidInput: ``start`` has no time zone, or ``patience`` is negative.

    Example:
        >>> import asyncio
        >>> from spanflow import Workflow, step
        >>> @step
        ... async def renew(contract: str) -> str:
        ...     return f"{contract} renewed"
        >>> renewal = Workflow("renewal", input=str).sleep(90 * 24 * 3600).then(renew)
        >>> async def main() -> None:
        ...     clock = FakeClock()
        ...     run = await renewal.create_run(clock=clock)
        ...     print((await run.start("c-7")).unwrap(), "on", clock.now.date())
        >>> asyncio.run(main())
        c-7 renewed on 2026-04-01
    """

    def __init__(self, start: datetime | int = _START, *, auto: bool = True, patience: float = 0.05) -> None:
        if not patience >= 0:
            raise InvalidInput(f"FakeClock: patience={patience!r} must be 0 s or more.")
        self._time = _Time(_ns(start), auto, patience)
        self._timers: dict[asyncio.AbstractEventLoop, _Timers] = {}

    @property
    def now(self) -> datetime:
        """The time it is, in UTC."""
        return datetime.fromtimestamp(self._time.now / 1e9, UTC)

    def time_ns(self) -> int:
        self._time.use()
        return self._time.now

    async def sleep_until(self, deadline_ns: int) -> None:
        if deadline_ns <= self._time.now:
            return
        timers = self._of_this_loop()
        woken = timers.loop.create_future()
        waiter = timers.add(deadline_ns, lambda: _finish(woken))
        try:
            await woken
        finally:
            timers.remove(waiter)

    def timeout(self, seconds: float) -> "FakeTimeout":
        return FakeTimeout(self._of_this_loop(), seconds)

    async def advance(self, seconds: float) -> None:
        """Move time on by ``seconds``. Raises as ``advance_to`` does."""
        await self.advance_to(self._time.now + int(seconds * 1e9))

    async def advance_to(self, moment: datetime | int) -> None:
        """Move time on to a moment: wake who waits for less, one after the other, and let each do what follows.

        Raises:
            InvalidInput: the moment has passed.
            SpanflowError: another ``advance`` is under way.
        """
        target = _ns(moment)
        if target < self._time.now:
            raise InvalidInput(f"FakeClock: it is {self.now}; time does not go back to {moment}.")
        await self._of_this_loop().advance_to(target)

    def _of_this_loop(self) -> "_Timers":
        loop = asyncio.get_running_loop()
        timers = self._timers.get(loop)
        if timers is None:
            self._timers = {each: kept for each, kept in self._timers.items() if not each.is_closed()}
            timers = self._timers[loop] = _Timers(self._time, loop)
        return timers


class FakeTimeout:
    """``asyncio.timeout`` on a fake clock."""

    def __init__(self, timers: "_Timers", seconds: float) -> None:
        self._timers = timers
        self._seconds = seconds
        self._inner = asyncio.timeout(None)
        self._waiter: _Waiter | None = None

    def expired(self) -> bool:
        return self._inner.expired()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        if self._seconds <= 0:
            self._strike()
        elif self._seconds < math.inf:
            deadline = self._timers.time.now + int(self._seconds * 1e9)
            self._waiter = self._timers.add(deadline, self._strike, is_timeout=True)
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._waiter is not None:
            self._timers.remove(self._waiter)
        await self._inner.__aexit__(kind, error, trace)

    def _strike(self) -> None:
        self._inner.reschedule(self._timers.loop.time())


class _Timers:
    """Who waits in one event loop. Looks by callbacks whether the loop has come to rest; there is no task to leak."""

    def __init__(self, time: _Time, loop: asyncio.AbstractEventLoop) -> None:
        self.time = time
        self.loop = loop
        self._heap: list[_Waiter] = []
        self._gone = 0
        self._numbers = itertools.count()
        self._looking = False
        self._quiet_turns = 0
        self._target: int | None = None
        self._arrived: asyncio.Future[None] | None = None

    def add(self, deadline: int, wake: Callable[[], None], *, is_timeout: bool = False) -> _Waiter:
        waiter = _Waiter(deadline, is_timeout, next(self._numbers), wake)
        heapq.heappush(self._heap, waiter)
        self.time.use()
        if self.time.auto:
            self._look_soon()
        return waiter

    def remove(self, waiter: _Waiter) -> None:
        """Forget a waiter, woken or not."""
        self.time.use()
        if not waiter.gone:
            waiter.gone = True
            self._gone += 1
            if self._gone > len(self._heap) // 2:
                self._heap = [each for each in self._heap if not each.gone]
                heapq.heapify(self._heap)
                self._gone = 0

    async def advance_to(self, target: int) -> None:
        if self._arrived is not None:
            raise SpanflowError("FakeClock: another advance() is under way. Await one before the next.")
        self._target, self._arrived = target, self.loop.create_future()
        self._look_soon()
        try:
            await self._arrived
        finally:
            self._target = self._arrived = None
            if self.time.auto:
                self._look_soon()

    def _look_soon(self) -> None:
        self._quiet_turns = 0
        if not self._looking:
            self._looking = True
            self.loop.call_soon(self._look, context=Context())

    def _look(self) -> None:
        """Move time if all that can happen before the next deadline has happened, else look again."""
        self._looking = False
        waiter = self._next()
        if waiter is None and self._arrived is None:
            return
        delay = self._unrest(waiter)
        if delay is None:
            self._move(waiter)
            delay = 0.0
        if self._heap or self._arrived is not None:
            self._looking = True
            self.loop.call_later(delay, self._look, context=Context())

    def _next(self) -> _Waiter | None:
        """Return who waits for the next moment that time may move to."""
        while self._heap and self._heap[0].gone:
            heapq.heappop(self._heap)
            self._gone -= 1
        if not self._heap or (self._target is not None and self._heap[0].deadline > self._target):
            return None
        return self._heap[0] if self.time.auto or self._target is not None else None

    def _unrest(self, waiter: _Waiter | None) -> float | None:
        """Return real seconds until it is worth to look again; None where nothing is left to wait for."""
        ready: Any = getattr(self.loop, "_ready", None)
        self._quiet_turns = 0 if ready else self._quiet_turns + 1
        unused = self.time.unused_for
        if self._quiet_turns < (_BLIND_TURNS if ready is None else _QUIET_TURNS):
            return 0.0 if unused < _LONGEST_BUSY else None
        may_be_real = waiter is not None and waiter.is_timeout and self._target is None
        if (may_be_real or pools_are_busy()) and unused < self.time.patience:
            return min(_POLL, self.time.patience - unused)
        return None

    def _move(self, waiter: _Waiter | None) -> None:
        """Move time to the next deadline and wake all who wait for it, or to where ``advance`` goes."""
        self._quiet_turns = 0
        self.time.use()
        if waiter is None:
            if self._arrived is not None and self._target is not None and not self._arrived.done():
                self.time.now = self._target
                self._arrived.set_result(None)
            return
        self.time.now = max(self.time.now, waiter.deadline)
        while (found := self._next()) is not None:
            if (found.deadline, found.is_timeout) != (waiter.deadline, waiter.is_timeout):
                break
            heapq.heappop(self._heap).gone = True
            found.wake()


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _ns(moment: datetime | int) -> int:
    """Return ns since the epoch, rounded as the runtime does."""
    if isinstance(moment, int):
        return moment
    if moment.tzinfo is None:
        raise InvalidInput(f"FakeClock: {moment!r} has no time zone. Use datetime(..., tzinfo=UTC).")
    return int(moment.timestamp() * 1e9)
