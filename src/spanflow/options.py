"""Checks of the options that users give while they build: each refusal names the value and what it should be."""

import math
import re
from collections.abc import Sequence
from typing import Any

from spanflow.errors import DefinitionError

_RESERVED = re.compile(r"[/\[\]#:\x00-\x1f\ud800-\udfff]")


_LONGEST = 500  # characters, of which each may take four bytes: what an index of PostgreSQL takes
_UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def is_name(value: Any) -> bool:
    """Tell whether this is text that each store can find a thing by: not blank, not long, nothing unprintable in it."""
    return isinstance(value, str) and bool(value.strip()) and len(value) <= _LONGEST and not _UNFIT.search(value)


NAME = f"1 to {_LONGEST} characters, without control characters and lone surrogates"
"""What ``is_name`` wants, in words."""


def is_number(value: Any) -> bool:
    """Tell whether this is a finite number, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Tell whether this is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_whole(value: Any) -> bool:
    """Tell whether this is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def checked_id(id: str, what: str) -> str:
    """Return a valid id. Ids are segments of paths, so they hold no ``/ [ ] # :``."""
    is_text = isinstance(id, str)  # pyright: ignore[reportUnnecessaryIsInstance]  # bad input
    if not is_text or not id.strip() or len(id) > 200 or _RESERVED.search(id):
        raise DefinitionError(
            f"{what} id {id!r} must be 1 to 200 characters without / [ ] # : and control characters:"
            " it becomes part of paths such as 'nested/fetch[3]'."
        )
    return id


def checked_timeout(timeout: float | None, what: str) -> float | None:
    if timeout is not None and not (is_number(timeout) and timeout > 0):
        raise DefinitionError(
            f"{what}: timeout={timeout!r} must be a number of seconds, more than 0. Leave it out for no timeout."
        )
    return timeout


def checked_count(count: int, what: str) -> int:
    if not is_count(count):
        raise DefinitionError(f"{what}={count!r} must be a whole number, at least 1.")
    return count


def checked_choice(choice: str, what: str, choices: Sequence[str]) -> str:
    if choice not in choices:
        raise DefinitionError(f"{what}={choice!r} must be {' or '.join(map(repr, choices))}.")
    return choice
