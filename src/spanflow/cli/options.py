"""What is typed after a command, turned into what it means."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

from spanflow.errors import SpanflowError

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class UsageError(SpanflowError):
    """What was typed cannot be meant."""


def moment(option: str, text: str | None) -> int | None:
    """Return a time as ns since the epoch: ISO 8601 (local where it names no zone), or how long ago, as in ``2h``."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago is not None:
            at = datetime.now(UTC) - timedelta(seconds=float(ago[1]) * _SECONDS[ago[2]])
        else:
            at = datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {text!r} is no time. Write 2026-03-31, 2026-03-31T14:00+02:00, or how long ago: 30m, 2h, 7d."
        ) from None
    return int(at.timestamp() * 1e9)


def trace_id(text: str | None) -> str | None:
    """Return a trace id as stores hold it: 32 digits, though some pages leave out leading zeros."""
    if text is None:
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{1,32}", text.strip()):
        raise UsageError(f"--trace {text!r} is no trace id: up to 32 hex digits, as Jaeger shows it, were expected.")
    return text.strip().lower().zfill(32)


def metadata(pairs: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return what ``KEY=VALUE`` options may mean: a value that is JSON, e.g. ``42``, may also be that text."""
    meanings: list[list[tuple[str, Any]]] = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--metadata {pair!r} was to be KEY=VALUE, e.g. user.id=u-42.")
        values: list[Any] = [text]
        try:
            values.append(json.loads(text))
        except ValueError:
            pass
        meanings.append([(key, value) for value in values])
    return [dict(chosen) for chosen in product(*meanings)]


def json_value(what: str, text: str | None) -> Any:
    """Return what JSON on the command line stands for; None where nothing was given."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"{what} {text!r} is not JSON: {error}. Quote it for the shell, text included:"
            """ '{"approved": true}' or '"yes"'."""
        ) from None
