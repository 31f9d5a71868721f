"""A clock that stands still until nothing else is left to do: tests of months take milliseconds."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from spanflow.errors import InvalidInput
from spanflow.testing.timers import Time, Timers, Waiter

_START = datetime(2026, 1, 1, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class FakeClock:
    """A clock for tests, for ``Runtime(clock=...)`` and ``workflow.create_run(clock=...)``.

    Time stands still while code runs. With ``auto``, it jumps to the next deadline (of a sleep, a retry's delay, a
    timeout) as soon as everything else has come to rest. Without, it moves only by ``advance`` and ``advance_to``.

    A step that waits for something real, such as a socket or a thread, does not hold up the sleeps of others for
    long. Where that matters, use ``auto=False``.

    Args:
        start: the first moment: a datetime with a time zone, or ns since the epoch.
        auto: jump to the next deadline when nothing else is left to do.
        patience: real seconds, counted from the last use of the clock, that are given to a thread before time
            jumps, and to real I/O before a timeout strikes.

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
        self._time = Time(_ns(start), auto, patience)
        self._timers: dict[asyncio.AbstractEventLoop, Timers] = {}

    @property
    def now(self) -> datetime:
        """The time it is, in UTC."""
        return _EPOCH + timedelta(microseconds=(self._time.now + 500) // 1000)

    @property
    def waits(self) -> list[float]:
        """Seconds until each sleep and timeout that is pending in this event loop, the nearest first."""
        return [(deadline - self._time.now) / 1e9 for deadline in self._of_this_loop().deadlines()]

    def time_ns(self) -> int:
        self._time.use()
        return self._time.now

    async def sleep_until(self, deadline_ns: int) -> None:
        if deadline_ns <= self._time.now:
            return
        timers = self._of_this_loop()
        woken: asyncio.Future[None] = timers.loop.create_future()
        waiter = timers.add(deadline_ns, lambda: _finish(woken))
        try:
            await woken
        finally:
            timers.remove(waiter)

    def timeout(self, seconds: float) -> "FakeTimeout":
        return FakeTimeout(self._of_this_loop(), seconds)

    async def advance(self, seconds: float) -> None:
        """Move time on by ``seconds``, as ``advance_to`` does. 0 lets everything run that needs no time to pass."""
        await self.advance_to(self._time.now + round(seconds * 1e9))

    async def advance_to(self, moment: datetime | int) -> None:
        """Move time on to a moment (a datetime, or ns since the epoch).

        Whoever waits for less is woken, one deadline after the other, and does all it can before the next.

        Raises:
            InvalidInput: the moment has passed.
            SpanflowError: another ``advance`` is under way.

        Example:
            >>> import asyncio
            >>> async def main() -> None:
            ...     clock = FakeClock(auto=False)
            ...     nap = asyncio.create_task(clock.sleep_until(clock.time_ns() + 60_000_000_000))
            ...     await clock.advance(59)
            ...     print(nap.done(), clock.waits)
            ...     await clock.advance(1)
            ...     print(nap.done(), clock.waits)
            >>> asyncio.run(main())
            False [1.0]
            True []
        """
        target = _ns(moment)
        if target < self._time.now:
            raise InvalidInput(f"FakeClock: time does not go back to {moment}; it is {self.now} ({self._time.now} ns).")
        await self._of_this_loop().advance_to(target)

    def _of_this_loop(self) -> Timers:
        loop = asyncio.get_running_loop()
        timers = self._timers.get(loop)
        if timers is None:
            self._timers = {each: kept for each, kept in self._timers.items() if not each.is_closed()}
            timers = self._timers[loop] = Timers(self._time, loop)
        return timers


class FakeTimeout:
    """``asyncio.timeout`` on a fake clock."""

    def __init__(self, timers: Timers, seconds: float) -> None:
        self._timers = timers
        self._seconds = seconds
        self._inner = asyncio.timeout(None)
        self._waiter: Waiter | None = None

    def expired(self) -> bool:
        return self._inner.expired()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        if self._seconds <= 0:
            self._strike()
        elif self._seconds < math.inf:
            deadline = self._timers.time.now + round(self._seconds * 1e9)
            self._waiter = self._timers.add(deadline, self._strike, is_timeout=True)
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._waiter is not None:
            self._timers.remove(self._waiter)
        await self._inner.__aexit__(kind, error, trace)

    def _strike(self) -> None:
        self._inner.reschedule(self._timers.loop.time())


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _ns(moment: datetime | int) -> int:
    """Return ns since the epoch, rounded as the runtime does."""
    if isinstance(moment, int):
        return moment
    if not isinstance(moment, datetime) or moment.tzinfo is None:  # pyright: ignore[reportUnnecessaryIsInstance]  # bad input
        raise InvalidInput(
            f"FakeClock: {moment!r} must be a datetime with a time zone, as datetime(..., tzinfo=UTC), or whole ns."
        )
    return int(moment.timestamp() * 1e9)
