"""Time as the runtime sees it: a small port, so that tests can own it."""

import asyncio
import time
from typing import Any, Protocol


class Timeout(Protocol):
    """What ``asyncio.timeout`` returns."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(self, kind: Any, error: Any, trace: Any, /) -> bool | None: ...

    def expired(self) -> bool:
        """Tell whether it was this timeout that cancelled the body."""
        ...


class Clock(Protocol):
    """Where a run takes its time from. ``spanflow.testing.FakeClock`` makes waiting instant.

    Sleeps are until a time of the wall clock, since they may outlive the machine: when it is set, they follow it.
    """

    def time_ns(self) -> int:
        """Return nanoseconds since the epoch, on the clock of the spans."""
        ...

    async def sleep_until(self, deadline_ns: int) -> None:
        """Return when ``time_ns()`` has reached ``deadline_ns``."""
        ...

    def timeout(self, seconds: float) -> Timeout:
        """Cancel the body after ``seconds`` and raise ``TimeoutError`` in its place, as ``asyncio.timeout`` does."""
        ...


class RunClock:
    """The clock of one run: its time never goes back, so that nothing in it ends before it has begun.

    Where the clock below is set back, or another machine's clock is behind the one that wrote the journal, the run's
    time goes on from where it was. Sleeps and deadlines are on the clock below: they follow it when it is set.

    Args:
        clock: the clock below.
        last: ns since the epoch, the last that is known of the run.
    """

    __slots__ = ("_ahead", "_last", "sleep_until", "timeout", "wall_ns")

    def __init__(self, clock: Clock, last: int) -> None:
        self.wall_ns = clock.time_ns
        self.sleep_until = clock.sleep_until
        self.timeout = clock.timeout
        self._last = last
        self._ahead = 0

    def time_ns(self) -> int:
        now = self.wall_ns() + self._ahead
        if now < self._last:
            self._ahead += self._last - now
            return self._last
        self._last = now
        return now


_LONGEST_NAP = 3600.0  # s: a timer this long is re-armed, so that a wall clock that jumps is noticed within the hour


class SystemClock:
    """The machine's clock."""

    time_ns = staticmethod(time.time_ns)

    async def sleep_until(self, deadline_ns: int) -> None:
        while (left := (deadline_ns - time.time_ns()) / 1e9) > 0:
            await asyncio.sleep(min(left, _LONGEST_NAP))

    def timeout(self, seconds: float) -> Timeout:
        return asyncio.timeout(seconds)
