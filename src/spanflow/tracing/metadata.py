"""Metadata of any JSON shape as span attributes: flat, bounded, without secrets, never in the way of our own keys."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import islice
from typing import Any, cast

from opentelemetry.util.types import AttributeValue

from spanflow.redaction import REDACTED, is_secret_key
from spanflow.tracing.content import capture

_logger = logging.getLogger(__name__)

_MAX_KEYS = 64
_MAX_KEY_LENGTH = 256  # characters
_MAX_TEXT = 1024  # bytes
_MAX_ITEMS = 128
_MAX_DEPTH = 16
_MAX_LOOKED_AT = 4096
"""Entries that are looked at, counting those that leave nothing behind, such as None."""
_INT64 = range(-(2**63), 2**63)
_OUR_PREFIXES = ("gen_ai.", "spanflow.", "otel.")


def is_reserved(key: str) -> bool:
    """Tell whether an attribute key is one that spanflow or OpenTelemetry gives a meaning of its own."""
    return key.startswith(_OUR_PREFIXES) or key == "error.type"


def flatten(
    metadata: Mapping[str, object] | None, *, reserved: Callable[[str], bool] = is_reserved
) -> dict[str, AttributeValue]:
    """Turn metadata into span attributes, keeping as much as OpenTelemetry can. Never raises.

    Nested mappings become dotted keys, None is dropped, lists of one primitive type become tuples, anything else
    compact JSON. At most 64 keys of 256 characters are kept, and texts of 1 KiB; what was cut is logged once for each
    call. A reserved key is kept under the prefix ``metadata.``. Of two entries with the same dotted key the first
    keeps it, the second gets ``#2`` behind it, and so on.
    """
    collected = _Attributes(reserved)
    try:
        collected.add_all(metadata)
    except Exception as error:  # a mapping that cannot be read; what was read of it is kept
        collected.cut.append(f"could not be read further ({type(error).__name__})")
    if collected.cut:
        _logger.warning("Metadata of the run was not kept whole: %s.", "; ".join(dict.fromkeys(collected.cut)))
    return collected.found


def as_json(metadata: Mapping[str, object] | None) -> dict[str, Any]:
    """Return metadata as what JSON can hold, for those who store or send it. Never raises.

    Keys become text as in ``flatten``, models and other objects their JSON, anything else its text.
    """
    try:
        return _plain_mapping(cast("Mapping[object, object]", metadata or {}), 1)
    except Exception as error:  # no mapping, or one that cannot be read
        _logger.warning("Metadata of the run could not be read (%s: %s).", type(error).__name__, error)
        return {}


def _plain_mapping(mapping: Mapping[object, object], depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in mapping.items():
        key = clean(_name(name))
        free, number = key, 1
        while free in found:
            number += 1
            free = f"{key}#{number}"
        found[free] = _plain(value, depth + 1)
    return found


def _plain(value: object, depth: int) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return clean(str.__str__(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if depth <= _MAX_DEPTH and isinstance(value, Mapping):
        return _plain_mapping(cast("Mapping[object, object]", value), depth)
    if depth <= _MAX_DEPTH and isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in cast("Sequence[object]", value)]
    return json.loads(capture(value))


class _Attributes:
    def __init__(self, reserved: Callable[[str], bool]) -> None:
        self.found: dict[str, AttributeValue] = {}
        self.cut: list[str] = []
        self._reserved = reserved

    def add_all(self, metadata: Mapping[str, object] | None) -> None:
        if metadata is None:
            return
        if not isinstance(cast(object, metadata), Mapping):
            self.cut.append(f"a {type(metadata).__name__} is not a mapping")
            return
        for key, value in islice(_leaves(metadata, "", 1), _MAX_LOOKED_AT):
            if value is None:
                continue
            if len(self.found) == _MAX_KEYS:
                self.cut.append(f"more than {_MAX_KEYS} keys")
                return
            self.found[self._free_key(key)] = self._attribute(key, value)

    def _free_key(self, key: str) -> str:
        key = clean(key)
        if not key or self._reserved(key):
            key = f"metadata.{key}"
        if len(key) > _MAX_KEY_LENGTH:
            self.cut.append(f"a key of {len(key)} characters")
            key = f"{key[: _MAX_KEY_LENGTH - 1]}…"
        free, number = key, 1
        while free in self.found:
            number += 1
            suffix = f"#{number}"
            free = key[: _MAX_KEY_LENGTH - len(suffix)] + suffix
        return free

    def _attribute(self, key: str, value: object) -> AttributeValue:
        if is_secret_key(key):
            return REDACTED
        plain: AttributeValue = _primitive(value)
        if plain is None:
            plain = self._items(value)
        if plain is None:
            plain = _as_json(value)
        return self._bounded(key, plain) if isinstance(plain, str) else plain

    def _items(self, value: object) -> AttributeValue:
        """Keep a list whose items are of one primitive type; None for any other value."""
        if not isinstance(value, list | tuple):
            return None
        items = cast(Sequence[object], value)
        if len(items) > _MAX_ITEMS:
            return None
        found = [_primitive(item) for item in items]
        if None in found or len({type(item) for item in found}) > 1:
            return None
        return tuple(self._bounded("", item) if isinstance(item, str) else item for item in found)

    def _bounded(self, key: str, text: str) -> str:
        text = clean(text)
        if len(text.encode()) <= _MAX_TEXT:
            return text
        self.cut.append(f"a text of {len(text)} characters" + (f" under {key[:_MAX_KEY_LENGTH]!r}" if key else ""))
        mark = f"…[+{len(text)} chars]"
        kept = text.encode()[: _MAX_TEXT - len(mark.encode())].decode(errors="ignore")
        return f"{kept}…[+{len(text) - len(kept)} chars]"


def _leaves(
    mapping: Mapping[object, object] | Mapping[str, object], prefix: str, depth: int
) -> Iterator[tuple[str, object]]:
    for name, value in mapping.items():
        key = prefix + _name(name)
        if isinstance(value, Mapping) and value and depth < _MAX_DEPTH and not is_secret_key(key):
            yield from _leaves(cast(Mapping[object, object], value), f"{key}.", depth + 1)
        else:
            yield key, value


def _name(key: object) -> str:
    if isinstance(key, Enum):
        key = key.value
    return str.__str__(key) if isinstance(key, str) else _as_json(key)


def _primitive(value: object) -> str | bool | int | float | None:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if value in _INT64 else _as_json(int(value))
    if isinstance(value, float):
        return float(value)
    return None


def _as_json(value: object) -> str:
    """Write a value as JSON; a text without its quotes, so that a date reads as a date."""
    text = capture(value, limit=_MAX_TEXT)
    return json.loads(text) if text.startswith('"') else text


def clean(text: str) -> str:
    """Replace what UTF-8 cannot carry: one such character would cost the whole batch on export."""
    return text if text.isascii() else text.encode(errors="replace").decode()
