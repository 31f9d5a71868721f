"""Who drives a run: an owner that shows a sign of life before its lease ends."""

import time
import uuid

from spanflow.errors import DefinitionError


class Lease:
    """The identity of a runtime, and how long (s) it counts as alive after its last sign of life.

    Leases are on the machine's clock, never on a clock that tests move: they are about processes, not about runs.

    Attributes:
        owner: the runtime's id.
        ends: when the last sign of life runs out, ns since the epoch. A process that was paused finds it past.
    """

    __slots__ = ("ends", "owner", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.owner = uuid.uuid4().hex
        self.ends = self.until()

    @property
    def is_over(self) -> bool:
        return time.time_ns() > self.ends

    def now(self) -> int:
        return time.time_ns()

    def until(self) -> int:
        """Return when a lease taken now ends, ns since the epoch."""
        return self.now() + int(self.seconds * 1e9)


def checked_lease(seconds: float) -> float:
    """Return a length that makes sense. Raises DefinitionError."""
    if not 0 < seconds < float("inf"):
        raise DefinitionError(f"Runtime: lease={seconds!r} must be more than 0 s, e.g. 15.0.")
    return seconds
