"""The text tree of finished spans: what a trace looks like in a terminal and in a snapshot test."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.trace import SpanContext, format_span_id

from spanflow.tracing import names
from spanflow.tracing.lines import Line, ReadableSpanLike, describe, failed, outcome_of

__all__ = ["ReadableSpanLike", "render"]

_FIRST_SHOWN = 5
"""Siblings that are shown of a fold, before its failures."""
_WIDEST_COLUMN = 72
_DIM, _RED, _BOLD, _PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[1m", "\x1b[0m"

_Id = tuple[int, int]
"""Trace id and span id."""


def render(
    spans: Sequence[ReadableSpanLike],
    *,
    times: bool = True,
    attributes: Collection[str] = (),
    color: bool = False,
    fold_above: int = 50,
    root: ReadableSpanLike | None = None,
    order: Mapping[tuple[int, int], Any] | None = None,
) -> str:
    """Draw finished spans as a tree, one line for each.

    Args:
        spans: spans in any order, of any number of traces.
        times: show durations and ids. Without, the text of a deterministic workflow is the same for every run.
        attributes: keys of attributes to show.
        color: use ANSI colours.
        fold_above: of more siblings with one name than this, only the first and the failed ones get a line.
        root: draw only this span and what is below it, whatever its parent is.
        order: where siblings stand, by trace id and span id; by default they stand in the order of their start times.
    """
    forest = _Forest(spans, fold_above, order)
    nodes = forest.walk(root) if root is not None else forest.walk_all(times)
    return _lay_out([_row(node, times, attributes) for node in nodes], color)


@dataclass(frozen=True, slots=True)
class _Node:
    """A place in the tree: a span, or a remark such as ``(missing parent)``."""

    branch: str
    content: ReadableSpanLike | str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Row:
    branch: str
    line: Line
    is_root: bool


class _Forest:
    """Spans by parent. Each is drawn once, also where ids are wrong: that is what one looks for in a trace."""

    def __init__(
        self, spans: Sequence[ReadableSpanLike], fold_above: int, order: Mapping[_Id, Any] | None = None
    ) -> None:
        self._spans = sorted(spans, key=_by_start if order is None else lambda span: order[_id(span.context)])
        self._fold_above = fold_above
        self._first: dict[_Id, ReadableSpanLike] = {}
        self._children: dict[_Id, list[ReadableSpanLike]] = {}
        self._drawn: set[int] = set()
        for span in self._spans:
            self._first.setdefault(_id(span.context), span)
            if span.parent is not None:
                self._children.setdefault(_id(span.parent), []).append(span)

    def walk_all(self, times: bool) -> Iterator[_Node]:
        orphans: dict[_Id, list[ReadableSpanLike]] = {}
        for span in self._spans:
            if span.parent is None:
                yield from self.walk(span)
            elif _id(span.parent) not in self._first:
                orphans.setdefault(_id(span.parent), []).append(span)
        for parent, siblings in orphans.items():
            kind = "remote" if all(span.parent and span.parent.is_remote for span in siblings) else "missing"
            yield _Node("", f"({kind} parent {format_span_id(parent[1])})" if times else f"({kind} parent)")
            yield from self._walk(self._below("", siblings))
        for span in self._spans:
            if id(span) not in self._drawn and span is self._first[_id(span.context)] and self._in_circle(span):
                yield _Node("", "(circle of parents)")
                yield from self._walk(self._below("", [span]))

    def walk(self, top: ReadableSpanLike) -> Iterator[_Node]:
        return self._walk([("", "", top)])

    def _walk(self, waiting: list[tuple[str, str, ReadableSpanLike | str]]) -> Iterator[_Node]:
        waiting.reverse()
        while waiting:  # no recursion: a trace may be deeper than the stack
            branch, stem, content = waiting.pop()
            if isinstance(content, str):
                yield _Node(branch, content)
                continue
            if id(content) in self._drawn:
                continue
            self._drawn.add(id(content))
            key = _id(content.context)
            if content is self._first.get(key, content):
                yield _Node(branch, content)
                waiting.extend(reversed(self._below(stem, self._children.get(key, []))))
            else:
                yield _Node(branch, content, ("span id not unique",))

    def _below(self, stem: str, siblings: Sequence[ReadableSpanLike]) -> list[tuple[str, str, ReadableSpanLike | str]]:
        """Give each sibling its branch, and the stem on which its own children grow."""
        contents = _fold(siblings, self._fold_above)
        last = len(contents) - 1
        return [
            (f"{stem}└── ", f"{stem}    ", content) if position == last else (f"{stem}├── ", f"{stem}│   ", content)
            for position, content in enumerate(contents)
        ]

    def _in_circle(self, span: ReadableSpanLike) -> bool:
        """Tell whether a span that was not drawn has no root; else it is only folded away."""
        seen: set[_Id] = set()
        current: ReadableSpanLike | None = span
        while current is not None and current.parent is not None:
            key = _id(current.context)
            if key in seen:
                return True
            seen.add(key)
            current = self._first.get(_id(current.parent))
        return False


def _fold(siblings: Sequence[ReadableSpanLike], above: int) -> list[ReadableSpanLike | str]:
    """Put one line in the place of siblings that are too many of a kind; failures stay, unless they are as many."""
    counts = Counter(span.name for span in siblings)
    if not any(count > above for count in counts.values()):
        return list(siblings)
    shown: list[ReadableSpanLike | str] = []
    kept: Counter[str] = Counter()
    kept_failures: Counter[str] = Counter()
    hidden: dict[str, list[ReadableSpanLike]] = {}
    end_of: dict[str, int] = {}
    for span in siblings:
        name = span.name
        keep = counts[name] <= above or kept[name] < _FIRST_SHOWN
        if not keep and failed(span) and kept_failures[name] < above:
            keep = True
            kept_failures[name] += 1
        if keep:
            kept[name] += 1
            shown.append(span)
            end_of[name] = len(shown)
        else:
            hidden.setdefault(name, []).append(span)
    for name in sorted(hidden, key=lambda name: end_of[name], reverse=True):
        shown.insert(end_of[name], _fold_text(name, hidden[name]))
    return shown


def _fold_text(name: str, spans: Sequence[ReadableSpanLike]) -> str:
    of_foreach = all(names.FOREACH_INDEX in (span.attributes or {}) for span in spans)
    outcomes = Counter({"ok": 0})
    outcomes.update(map(outcome_of, spans))
    told = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
    return f"… {len(spans)} more {'foreach items' if of_foreach else name}: {told}"


def _row(node: _Node, times: bool, attributes: Collection[str]) -> _Row:
    if isinstance(node.content, str):
        return _Row(node.branch, Line(node.content), is_root=False)
    line = describe(node.content, times=times, attributes=attributes, remarks=node.remarks)
    return _Row(node.branch, line, is_root=not node.branch)


def _lay_out(rows: Sequence[_Row], color: bool) -> str:
    """Write the rows, durations in one column."""
    widths = [len(row.branch) + len(row.line.name) for row in rows if row.line.duration]
    column = min(max(widths, default=0), _WIDEST_COLUMN)
    longest = max((len(row.line.duration) for row in rows), default=0)
    return "\n".join(_write(row, column, longest, color) for row in rows)


def _write(row: _Row, column: int, longest: int, color: bool) -> str:
    line = row.line
    padding = " " * max(0, column - len(row.branch) - len(line.name))
    parts = [
        row.branch + _painted(line.name, _BOLD, color and row.is_root),
        padding + _painted(line.duration.rjust(longest), _DIM, color) if line.duration else "",
        _painted(line.error, _RED, color),
        line.facts,
    ]
    return "  ".join(part for part in parts if part)


def _painted(text: str, code: str, color: bool) -> str:
    return f"{code}{text}{_PLAIN}" if color and text else text


def _by_start(span: ReadableSpanLike) -> tuple[int, str, int]:
    index = (span.attributes or {}).get(names.FOREACH_INDEX)
    return (span.start_time or 0, span.name, index if isinstance(index, int) else -1)


def _id(context: SpanContext | None) -> _Id:
    return (context.trace_id, context.span_id) if context is not None else (0, 0)
