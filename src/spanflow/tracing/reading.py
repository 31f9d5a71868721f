"""How any Python value looks as JSON, read only as far as it can be shown and without its secrets."""

import ipaddress
import logging
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any, NamedTuple, cast
from uuid import UUID

from pydantic import (
    AnyUrl,
    BaseModel,
    MongoDsn,
    NatsDsn,
    PostgresDsn,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
)
from pydantic_core import MultiHostUrl, Url

from spanflow.redaction import REDACTED, Field, fields_of, is_secret_key
from spanflow.tracing.shortening import Branch, Node, quote, size_of, text_node

_logger = logging.getLogger(__name__)

_MAX_DEPTH = 64
_LONG_TEXT = 256
"""Bytes of one text that count against the part of a value that is looked at; the rest can be cut."""
_MAX_SORTED = 1000
_MAX_INT_BITS = 14_000
"""Python refuses to write (and to read) integers of more than 4300 digits."""
_MAX_BYTES = 65_536
_NO_NAMES: frozenset[str] = frozenset()
_IP = (ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network)
_AS_STR = (timedelta, Decimal, Fraction, UUID, PurePath, complex, *_IP)
_SECRETS = (SecretStr, SecretBytes, Secret)
_URLS = (AnyUrl, MongoDsn, NatsDsn, PostgresDsn, Url, MultiHostUrl)
_URL_PASSWORD = re.compile(r"(?<=:)[^:/@,]*(?=@)")


class _Entry(NamedTuple):
    key: str
    value: object
    redacted: bool = False
    marked: frozenset[str] = _NO_NAMES


class _Level(NamedTuple):
    """A container, read one level deep."""

    total: int
    keyed: bool
    entries: Iterable[_Entry]


class _Ancestor(NamedTuple):
    """A container that a value is in: how structures that contain themselves are seen."""

    of: object
    above: "_Ancestor | None"
    depth: int


def read(value: object, limit: int, marked: frozenset[str] = _NO_NAMES) -> Node:
    """Read as much of a value as may be shown in ``limit`` bytes; keys in ``marked`` are redacted like secret ones."""
    return _Reader(limit).read(value, marked)


class _Reader:
    """Reads breadth first, so that all parts of a value are seen before one of them goes into depth."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = 2 * limit  # more than can be shown, so that there is a choice of what to show
        self._waiting: deque[tuple[Branch, _Level, _Ancestor]] = deque()

    def read(self, value: object, marked: frozenset[str]) -> Node:
        top = self._node(value, marked, None)
        while self._waiting:
            self._fill(*self._waiting.popleft())
        return top

    def _fill(self, branch: Branch, level: _Level, ancestor: _Ancestor) -> None:
        try:
            for key, value, redacted, marked in level.entries if self._left > 0 else ():
                # A secret that is not there is none, and good to know.
                child = self._node(REDACTED if redacted and value is not None else value, marked, ancestor)
                branch.children.append(child)
                if branch.keys is not None:
                    branch.keys.append(quote(key))
                    self._left -= min(len(key), _LONG_TEXT)
                if self._left <= 0:
                    break
        except Exception:  # a container that cannot be walked; what was read of it stays
            _logger.debug("Could not read all of a %s.", _name_of(ancestor.of), exc_info=True)
        branch.missing = max(0, level.total - len(branch.children))

    def _node(self, value: object, marked: frozenset[str], above: _Ancestor | None) -> Node:
        try:
            value, marked = _unwrapped(value, marked)
            node = _scalar(value, self._limit)
            if node is None:
                node = self._branch(value, marked, above)
        except Exception:
            node = text_node(f"<unreadable {_name_of(value)}>", self._limit)
        self._left -= 1 + min(size_of(node), _LONG_TEXT)
        return node

    def _branch(self, value: object, marked: frozenset[str], above: _Ancestor | None) -> Node:
        level = _open(value, marked)
        if level is None:
            return text_node(_placeholder(value), self._limit)
        ancestor = above
        while ancestor is not None:
            if ancestor.of is value:
                return text_node(f"<{_name_of(value)} that contains itself>", self._limit)
            ancestor = ancestor.above
        branch = Branch([] if level.keyed else None, [])
        depth = above.depth + 1 if above is not None else 1
        if depth > _MAX_DEPTH:
            branch.missing = level.total
        else:
            self._waiting.append((branch, level, _Ancestor(value, above, depth)))
        return branch


def _unwrapped(value: object, marked: frozenset[str]) -> tuple[object, frozenset[str]]:
    """Look through what only stands around a value: enum members and root models."""
    if isinstance(value, Enum):
        return value.value, marked
    if issubclass(type(value), RootModel):
        model = cast(RootModel[object], value)
        for field in fields_of(model) or ():  # the one field, `root`
            return (REDACTED if field.redacted else model.root), marked | field.marked
    return value, marked


def _scalar(value: object, limit: int) -> Node | None:
    """Read what is not a container; None for anything else."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        bits = int.bit_length(value)
        return int.__repr__(value) if bits <= _MAX_INT_BITS else text_node(f"<integer of {bits} bits>", limit)
    if isinstance(value, float):
        if math.isfinite(value):
            return float.__repr__(value)
        return quote("NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity")
    text = _text(value)
    return None if text is None else text_node(text, limit)


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, _SECRETS):
        return REDACTED
    if isinstance(value, bytes | bytearray):
        return _text_of_bytes(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, _AS_STR):
        return str(value)
    if isinstance(value, _URLS):
        return _URL_PASSWORD.sub(REDACTED, str(value))
    return None


def _text_of_bytes(value: bytes | bytearray) -> str:
    try:
        return value.decode() if len(value) <= _MAX_BYTES else f"<{len(value)} bytes>"
    except UnicodeDecodeError:
        return f"<{len(value)} bytes>"


def _open(value: object, marked: frozenset[str]) -> _Level | None:
    """Look into a container; None for what is none, such as a client, a function or an iterator."""
    fields = fields_of(value)
    if fields is not None:
        return _open_record(value, fields, marked)
    if isinstance(value, Mapping):
        mapping = cast(Mapping[object, object], value)
        return _Level(len(mapping), True, _entries_of_mapping(mapping, marked))
    if isinstance(value, BaseException):
        return _Level(2, True, _entries_of_exception(value))
    if isinstance(value, Sequence | Set | deque):
        items = cast(Sequence[object], value)
        return _Level(len(items), False, _entries_of_items(items, marked))
    return None


def _open_record(value: object, fields: Iterable[Field], marked: frozenset[str]) -> _Level:
    stored: Mapping[str, object] = value.__dict__ if isinstance(value, BaseModel) else {}
    entries = [
        _Entry(
            field.name,
            stored[field.name] if field.name in stored else getattr(value, field.name, None),
            field.redacted or field.name in marked,
            marked | field.marked,
        )
        for field in fields
    ]
    extra: Mapping[object, object] = getattr(value, "__pydantic_extra__", None) or {}
    return _Level(len(entries) + len(extra), True, [*entries, *_entries_of_mapping(extra, marked)])


def _entries_of_mapping(mapping: Mapping[object, object], marked: frozenset[str]) -> Iterator[_Entry]:
    for key, value in mapping.items():
        name = _key(key)
        yield _Entry(name, value, name in marked or is_secret_key(name), marked)


def _entries_of_items(items: Iterable[object], marked: frozenset[str]) -> Iterator[_Entry]:
    if isinstance(items, tuple):
        if len(items) == 2 and isinstance(items[0], str | bytes) and is_secret_key(_key(items[0])):
            items = (items[0], REDACTED)  # an HTTP header, say
    elif isinstance(items, Set) and len(items) <= _MAX_SORTED:
        try:
            comparable: Set[Any] = items
            items = sorted(comparable)
        except TypeError:  # members that do not compare: any order will do
            pass
    for item in items:
        yield _Entry("", item, marked=marked)


def _entries_of_exception(error: BaseException) -> Iterator[_Entry]:
    yield _Entry("type", _name_of(error))
    if isinstance(error, ValidationError):  # whose message would quote the input, secrets and all
        yield _Entry("errors", error.errors(include_url=False, include_context=False, include_input=False))
    else:
        yield _Entry("message", str(error))


def _key(key: object) -> str:
    if isinstance(key, Enum):
        key = key.value
    node = _scalar(key, _LONG_TEXT)
    if isinstance(node, str):
        return node
    return node.raw if node is not None and not isinstance(node, Branch) else _placeholder(key)


def _placeholder(value: object) -> str:
    if isinstance(value, type):
        return f"<class {value.__qualname__}>"
    name = getattr(value, "__qualname__", None)
    return f"<{_name_of(value)} {name}>" if isinstance(name, str) else f"<{_name_of(value)}>"


def _name_of(value: object) -> str:
    return type(value).__qualname__
