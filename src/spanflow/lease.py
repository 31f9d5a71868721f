"""Who drives a run: an owner that shows a sign of life before its lease ends."""

import time
import uuid
from dataclasses import dataclass, field

from spanflow.errors import DefinitionError


@dataclass(frozen=True, slots=True)
class Lease:
    """The identity of a runtime, and how long (s) it counts as alive after its last sign of life.

    Leases are on the machine's clock, never on a clock that tests move: they are about processes, not about runs.
    """

    seconds: float = 15.0
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)

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
