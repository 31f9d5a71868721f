"""A clock that stands still until nothing else is left to do: tests of months take milliseconds."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from spanflow.errors import InvalidInput

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
    wake: Callable[[], object]
    gone: bool = False

    def __lt__(self, other: "_Waiter") -> bool:
        return (self.deadline, self.is_timeout, self.number) < (other.deadline, other.is_timeout, other.number)


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
        self._now = _ns(start)
        self._patience = patience
        self._auto = auto
        self._used_at = time.monotonic()
        self._timers: dict[asyncio.AbstractEventLoop, _Timers] = {}

    @property
    def now(self) -> datetime:
        """The time it is, in UTC."""
        return datetime.fromtimestamp(self._now / 1e9, UTC)

    def time_ns(self) -> int:
        self._used_at = time.monotonic()
        return self._now

    async def sleep_until(self, deadline_ns: int) -> None:
        if deadline_ns <= self._now:
            return
        timers = self._of_this_loop()
        woken = timers.loop.create_future()
        waiter = timers.add(deadline_ns, lambda: woken.done() or woken.set_result(None))
        try:
            await woken
        finally:
            timers.remove(waiter)

    def timeout(self, seconds: float) -> "FakeTimeout":
        return FakeTimeout(self, seconds)

    async def advance(self, seconds: float) -> None:
        """Move time on by ``seconds``. Raises as ``advance_to`` does."""
        await self.advance_to(self._now + int(seconds * 1e9))

    async def advance_to(self, moment: datetime | int) -> None:
        """Move time on to a moment: wake who waits for less, one after the other, and let each do what follows.

        Raises:
            InvalidInput: the moment has passed.
            SpanflowError: another ``advance`` is under way.
        """
        target = _ns(moment)
        if target < self._now:
            raise InvalidInput(f"FakeClock: it is {self.now}; time does not go back to {moment}.")
        await self._of_this_loop().advance_to(target)

    def _of_this_loop(self) -> "_Timers":
        loop = asyncio.get_running_loop()
        timers = self._timers.get(loop)
        if timers is None:
            self._timers = {each: kept for each, kept in self._timers.items() if not each.is_closed()}
            timers = self._timers[loop] = _Timers(self, loop)
        return timers
