"""Whether spans find room on their way out: what a run asks before it makes more of them, and whose span is lost."""

import threading
from typing import Protocol


class Owner(Protocol):
    """Whoever wants to know what became of its spans: a run."""

    def lose(self, number: int) -> None:
        """Count spans that will not arrive. Called on any thread."""
        ...


class _Ending(threading.local):
    owner: Owner | None = None


ending = _Ending()
"""Whose span this thread is ending. The SDK hands processors a copy of a span, with nothing of its maker on it."""


class ExportRoom(Protocol):
    """What a run asks of the queue its spans go to.

    Attributes:
        crowded: whether new work should wait for room before it begins.
        full: whether finished work should wait before its spans end, since there is hardly a place left.
        losing: whether spans are being lost after they were queued, so that a run's count is not final yet.
    """

    crowded: bool
    full: bool
    losing: bool

    async def room(self) -> None:
        """Return when there is room again, or when the back end has taken nothing for five seconds."""
        ...

    async def drained(self) -> None:
        """Return when it is known what became of all spans queued so far, after five seconds at the latest."""
        ...


class Boundless:
    """Stands in where spans do not go to a queue of ours: what is lost there, nobody tells us."""

    crowded = full = losing = False

    async def room(self) -> None:
        """Return at once."""

    async def drained(self) -> None:
        """Return at once."""


BOUNDLESS = Boundless()
