"""JSON text of bounded size: what is too long is cut inside the structure, so that the rest stays valid JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from json.encoder import encode_basestring

ELLIPSIS = "…"
_MARK_ROOM = 28
"""Bytes kept free in a cut container for its mark, and in a cut text for its own."""
_ENTRY_ROOM = 32
"""Bytes that a value in a container should have at least; with less, its entry is rather left out."""


@dataclass(slots=True)
class Text:
    """A string, still whole."""

    raw: str
    size: int


@dataclass(slots=True)
class Branch:
    """An object (``keys`` are JSON texts) or an array (``keys`` is None)."""

    keys: list[str] | None
    children: list[Node]
    missing: int = 0
    """Entries of the source that were left out from the start."""
    size: int = 0


Node = str | Text | Branch
"""A value on its way to text; a ``str`` is one that is JSON already."""


def quote(text: str) -> str:
    """Write a string as JSON, in plain Unicode wherever UTF-8 can carry it."""
    if text.isascii():
        return encode_basestring(text)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(text)
    return encode_basestring(text)


def bytes_of(text: str) -> int:
    """Count the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def text_node(raw: str, limit: int) -> Text:
    """Make a node of a string; its size is exact up to ``limit`` and at least ``limit`` beyond."""
    return Text(raw, bytes_of(quote(raw)) if len(raw) <= limit else len(raw) + 2)


def measure(root: Branch) -> None:
    """Fill in the sizes of a branch and all branches below it, in bytes."""
    order = [root]
    for branch in order:  # grows while it is walked: parents come before their children
        order.extend(child for child in branch.children if isinstance(child, Branch))
    for branch in reversed(order):
        size = 2 + max(0, len(branch.children) - 1) + sum(map(size_of, branch.children))
        if branch.keys is not None:
            size += sum(bytes_of(key) + 1 for key in branch.keys)
        if branch.missing:
            size += _MARK_ROOM
        branch.size = size


def size_of(node: Node) -> int:
    """Give the bytes that a node takes when nothing of it is cut."""
    return len(node) if isinstance(node, str) else node.size


def fit(node: Node, limit: int) -> str:
    """Write a node as JSON in at most ``limit`` bytes (at least 8)."""
    if size_of(node) <= limit:
        return _write(node)
    if isinstance(node, Text):
        return _cut_text(node.raw, limit)
    if isinstance(node, Branch):
        return _cut_branch(node, limit)
    return quote(ELLIPSIS)


def _write(node: Node) -> str:
    if isinstance(node, str):
        return node
    if isinstance(node, Text):
        return quote(node.raw)
    heads = [f"{key}:" for key in node.keys] if node.keys is not None else [""] * len(node.children)
    parts = [head + _write(child) for head, child in zip(heads, node.children, strict=True)]
    return _join(node, parts, node.missing)


def _join(branch: Branch, parts: list[str], missing: int) -> str:
    listed = branch.keys is None
    if missing:
        more = f"+{missing} more"
        parts.append(quote(ELLIPSIS + more) if listed else f"{quote(ELLIPSIS)}:{quote(more)}")
    text = ",".join(parts)
    return f"[{text}]" if listed else f"{{{text}}}"


def _cut_text(raw: str, limit: int) -> str:
    room = limit - _MARK_ROOM
    kept = max(0, room)
    while kept:
        excess = bytes_of(quote(raw[:kept])) - 2 - room
        if excess <= 0:
            break
        kept = max(0, kept - max(1, excess // 6))  # a character takes six bytes as JSON at most, but for rare ones
    short = quote(f"{raw[:kept]}{ELLIPSIS}[+{len(raw) - kept} chars]")
    return short if bytes_of(short) <= limit else quote(ELLIPSIS)


def _cut_branch(branch: Branch, limit: int) -> str:
    heads = _heads(branch, limit)
    sizes = [size_of(child) for child in branch.children]
    shown, room = _entries_that_fit(branch, heads, sizes, limit)
    share = _fair_share(sizes[:shown], room)
    parts: list[str] = []
    spare = 0
    for head, child, size in zip(heads[:shown], branch.children[:shown], sizes[:shown], strict=True):
        allowed = min(size, share)
        written = fit(child, allowed + spare)
        spare += allowed - bytes_of(written)
        parts.append(head + written)
    text = _join(branch, parts, branch.missing + len(sizes) - shown)
    return text if bytes_of(text) <= limit else quote(ELLIPSIS)


def _heads(branch: Branch, limit: int) -> list[str]:
    if branch.keys is None:
        return [""] * len(branch.children)
    longest = max(40, limit // 8)
    return [f"{key if bytes_of(key) <= longest else _cut_text(json.loads(key), longest)}:" for key in branch.keys]


def _entries_that_fit(branch: Branch, heads: list[str], sizes: list[int], limit: int) -> tuple[int, int]:
    """Count the leading entries that can be shown decently, and the bytes that their values may share."""
    # Of an object as many keys as possible, of an array rather a few items that can be read.
    decent = _ENTRY_ROOM if branch.keys is not None else max(_ENTRY_ROOM, limit // 10)
    room = limit - 1  # two brackets; the last entry has no comma
    overheads = [bytes_of(head) + 1 for head in heads]
    if branch.missing or sum(overheads) + sum(min(size, decent) for size in sizes) > room:
        room -= _MARK_ROOM
    left = room
    shown = 0
    for overhead, size in zip(overheads, sizes, strict=True):
        left -= overhead + min(size, decent)
        if left < 0:
            break
        room -= overhead
        shown += 1
    return shown, room


def _fair_share(sizes: list[int], room: int) -> int:
    """Find the size above which entries are cut, so that small ones stay whole and large ones share the rest."""
    left = room
    for position, size in enumerate(sorted(sizes)):
        waiting = len(sizes) - position
        if size * waiting > left:
            return max(0, left // waiting)
        left -= size
    return room
