"""When a failed step is tried again, and how long it waits before."""

import math
import random
from dataclasses import dataclass
from typing import Any

from spanflow.errors import DefinitionError
from spanflow.options import checked_count, is_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Try a failed step again, with exponential backoff and full-range jitter.

    The delay before attempt ``n + 1`` is ``delay * backoff ** (n - 1)`` seconds, at most ``max_delay``, then spread
    by ``jitter``: 0.1 means ±10 %. ``max_attempts`` counts the first attempt too: ``Retry(max_attempts=3)`` runs
    a step at most three times. Only exceptions of ``retry_on`` are tried again, and never those of ``give_up_on``.

    Raises:
        DefinitionError: an option is out of range.

    Example:
        >>> from spanflow import Retry
        >>> retry = Retry(max_attempts=5, delay=1, max_delay=4, jitter=0, retry_on=OSError)
        >>> [retry.delay_after(failures) for failures in range(1, 5)]
        [1.0, 2.0, 4.0, 4.0]
        >>> retry.allows(ValueError(), 1)
        False
    """

    max_attempts: int = 3
    delay: float = 0.1
    backoff: float = 2.0
    max_delay: float = 60.0
    jitter: float = 0.1
    retry_on: type[Exception] | tuple[type[Exception], ...] = Exception
    give_up_on: type[Exception] | tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        checked_count(self.max_attempts, "Retry: max_attempts")
        _require_number("delay", self.delay, 0, math.inf, "0 s or more, and finite")
        _require_number("backoff", self.backoff, 1, math.inf, "1 or more (1 keeps the delay constant)")
        _require_number("max_delay", self.max_delay, 0, math.inf, "0 s or more, and finite")
        _require_number("jitter", self.jitter, 0, 1, "between 0 and 1")
        _require_exceptions("retry_on", self.retry_on)
        _require_exceptions("give_up_on", self.give_up_on)

    def allows(self, error: BaseException, failures: int) -> bool:
        """Tell whether a step that failed ``failures`` times, now with ``error``, is tried again."""
        return (
            failures < self.max_attempts and isinstance(error, self.retry_on) and not isinstance(error, self.give_up_on)
        )

    def delay_after(self, failures: int, draw: float | None = None) -> float:
        """Return the seconds to wait after that many failures. ``draw`` in [0, 1) stands in for the random number."""
        try:
            plain = min(self.delay * self.backoff ** (failures - 1), self.max_delay)
        except OverflowError:
            plain = self.max_delay
        spread = 2 * (random.random() if draw is None else draw) - 1
        return min(plain * (1 + self.jitter * spread), self.max_delay)


def _require_number(name: str, value: Any, least: float, most: float, wanted: str) -> None:
    if not (is_number(value) and least <= value <= most):
        raise DefinitionError(f"Retry: {name}={value!r} must be a number, {wanted}.")


def _require_exceptions(name: str, kinds: Any) -> None:
    for kind in kinds if isinstance(kinds, tuple) else (kinds,):  # pyright: ignore[reportUnknownVariableType]  # anything
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise DefinitionError(f"Retry: {name}={kinds!r} must be an exception class or a tuple of them.")


def checked_retry(retry: Retry | None, what: str) -> Retry | None:
    """Return a policy as it is. Raises ``DefinitionError`` for what is none."""
    if retry is not None and not isinstance(retry, Retry):  # pyright: ignore[reportUnnecessaryIsInstance]  # bad input
        raise DefinitionError(f"{what}: retry={retry!r} must be a Retry, e.g. Retry(max_attempts=3).")
    return retry


NO_RETRY = Retry(max_attempts=1)
