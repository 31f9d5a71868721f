"""A journal in memory whose older part is small: blocks of events as columns, not as some objects for each.

An event of a step takes about 350 bytes as an ``Entry`` with its payload and numbers, and 100 in a block.
"""

from array import array
from collections.abc import Sequence
from itertools import islice
from typing import Any

from spanflow.entries import Entry
from spanflow.events import Envelope

_BLOCK = 256  # events; few, since packing them takes a fraction of a millisecond, and the event loop waits for it
_SHORT = 4096  # events of a journal that is left as it is: packing costs a step a microsecond
_LATEST = 256  # events of a longer one that are not packed; few, since the garbage collector visits each

_Shape = tuple[type[Envelope], tuple[str, ...]]
"""What many events share: their kind, and the names of what they say."""

_shapes: dict[_Shape, _Shape] = {}  # a few for each kind


class Block:
    """Events of a run that follow each other. Their values stay the objects they are.

    Args:
        entries: at least one, of lifecycle events, whose sequence numbers have no gap.
    """

    __slots__ = ("_changes", "_first_seq", "_ids", "_paths", "_shapes", "_span_ids", "_timestamps", "_values")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._first_seq = entries[0].seq
        self._ids = [entry.run for entry in entries]
        self._timestamps = array("q", [entry.timestamp for entry in entries])
        self._span_ids = array("Q", [entry.span_id or 0 for entry in entries])  # no span has the id 0
        self._paths = [entry.path for entry in entries]
        self._changes = {entry.seq: entry.changes for entry in entries if entry.changes is not None}
        self._shapes: list[_Shape] = []
        values: list[Any] = []
        for entry in entries:
            shape = (entry.kind, tuple(entry.payload))
            self._shapes.append(_shapes.setdefault(shape, shape))
            values += entry.payload.values()
        self._values = tuple(values)

    def entries(self) -> list[Entry]:
        """Return the events, made anew."""
        found: list[Entry] = []
        values = iter(self._values)
        columns = zip(self._shapes, self._ids, self._timestamps, self._span_ids, self._paths, strict=True)
        for seq, ((kind, fields), ids, timestamp, span_id, path) in enumerate(columns, self._first_seq):
            payload = dict(zip(fields, islice(values, len(fields)), strict=True))
            found.append(Entry(kind, payload, ids, seq, timestamp, span_id or None, path, self._changes.get(seq)))
        return found


class PackedJournal:
    """The events of one run, from number 1 on."""

    __slots__ = ("_blocks", "_latest")

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._latest: list[Entry] = []

    def __len__(self) -> int:
        return len(self._blocks) * _BLOCK + len(self._latest)

    def extend(self, entries: Sequence[Entry]) -> None:
        latest = self._latest
        latest += entries
        if len(latest) >= _BLOCK + (_LATEST if self._blocks else _SHORT):
            packed = (len(latest) - _LATEST) // _BLOCK * _BLOCK
            self._blocks += [Block(latest[at : at + _BLOCK]) for at in range(0, packed, _BLOCK)]
            del latest[:packed]

    def read(self, after: int, limit: int) -> list[Entry]:
        """Return up to ``limit`` events with numbers greater than ``after``."""
        packed = len(self._blocks) * _BLOCK
        if after >= packed:
            return self._latest[after - packed : after - packed + limit]
        first, last = after // _BLOCK, (after + limit) // _BLOCK
        found = [entry for block in self._blocks[first : last + 1] for entry in block.entries()]
        found += self._latest[: max(0, after + limit - packed)]
        return found[after - first * _BLOCK :][:limit]
