"""What a test asks of the spans it caused: a tree for snapshots, lookups, and whether the trace is complete."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import SpanContext, format_trace_id

from spanflow.testing.matching import matches, wish
from spanflow.testing.recording import Key, Recording, key_of
from spanflow.tracing import names
from spanflow.tracing.tree import render

if TYPE_CHECKING:  # the SDK is imported only when spans are captured
    from opentelemetry.sdk.trace import ReadableSpan


class Traces:
    """The finished spans of one test. Made by the ``traces`` fixture and by ``capture_traces()``."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    @property
    def spans(self) -> "tuple[ReadableSpan, ...]":
        """The finished spans, in the order in which they ended."""
        return tuple(self._recording.ended)

    @property
    def open(self) -> tuple[str, ...]:
        """The names of the spans that were started and have not ended, in the order in which they started."""
        return tuple(self._recording.open.values())

    @property
    def trace_ids(self) -> tuple[str, ...]:
        """The ids of the traces (32 hex digits), in the order in which they began."""
        return tuple(dict.fromkeys(format_trace_id(key_of(span.context)[0]) for span in self._in_order()))

    @property
    def roots(self) -> "tuple[ReadableSpan, ...]":
        """Spans without a parent in this test: none at all, or one that is truly outside."""
        known = self._known()
        return tuple(span for span in self._in_order() if span.parent is None or self._is_outside(span, known))

    @property
    def orphans(self) -> "tuple[ReadableSpan, ...]":
        """Spans whose parent should be in this test and has not ended, or never was."""
        known, finished = self._known(), {key_of(span.context) for span in self._recording.ended}
        return tuple(
            span
            for span in self._in_order()
            if span.parent is not None and key_of(span.parent) not in finished and not self._is_outside(span, known)
        )

    def tree(self, *, times: bool = False, attributes: Collection[str] = ()) -> str:
        """Draw the spans as text, for a snapshot: the same text whenever the workflow does the same.

        Spans stand in the order in which they started, the attempts of a step together.

        Args:
            times: show durations and ids, which differ from run to run.
            attributes: keys of attributes to show.
        """
        known = self._known()
        spans = [_below_remote(span) if self._is_outside(span, known) else span for span in self._in_order()]
        return render(spans, times=times, attributes=attributes, order=self._rank())

    def find(self, name: str = "*", attributes: Mapping[str, Any] | None = None) -> "tuple[ReadableSpan, ...]":
        """Return the finished spans of this name with these attributes, in the order in which they started.

        Args:
            name: of the span; ``*`` and ``?`` stand for any characters, as in ``"execute_tool *"``.
            attributes: what the span must carry, among others; ``...`` stands for any value.
        """
        return tuple(span for span in self._in_order() if matches(span.name, span.attributes, name, attributes))

    def one(self, name: str = "*", attributes: Mapping[str, Any] | None = None) -> "ReadableSpan":
        """Return the only span that ``find`` finds. Raises AssertionError, with the tree, if there is not just one."""
        found = self.find(name, attributes)
        if len(found) != 1:
            raise AssertionError(f"Wanted one span {wish(name, attributes)}, found {len(found)} in\n{self._drawn()}")
        return found[0]

    def children(self, span: "ReadableSpan") -> "tuple[ReadableSpan, ...]":
        """Return the finished spans right below a span, in the order in which they started."""
        key = key_of(span.context)
        return tuple(each for each in self._in_order() if each.parent is not None and key_of(each.parent) == key)

    def assert_complete(self, traces: int = 1) -> None:
        """Raise AssertionError, with the tree, unless nothing is missing.

        That is: one trace (or as many as given), one root in each, no orphan, no span id twice, no span left open.
        """
        problems = list(self._problems(traces))
        if problems:
            raise AssertionError("\n".join([*problems, self._drawn()]))

    def clear(self) -> None:
        """Forget the spans that have ended so far."""
        self._recording.clear()

    def _problems(self, traces: int) -> "Sequence[str]":
        recording = self._recording
        roots = Counter(key_of(root.context)[0] for root in self.roots)
        ids = Counter(key_of(span.context) for span in recording.ended)
        found = [f"{len(self.trace_ids)} traces instead of {traces}"] if len(self.trace_ids) != traces else []
        for trace_id in self.trace_ids:
            number = roots[int(trace_id, 16)]
            if number != 1:
                found.append(f"trace {trace_id} has {number} roots instead of 1")
        found += [f"the parent of {span.name!r} {self._absence(span)}" for span in self.orphans]
        found += [f"{number} spans have the id {key[1]:016x}" for key, number in ids.items() if number > 1]
        found += [f"{name!r} was started and has not ended" for name in self.open]
        return found

    def _absence(self, span: "ReadableSpan") -> str:
        name = self._recording.open.get(key_of(span.parent))
        return "was never seen" if name is None else f"({name!r}) has not ended"

    def _known(self) -> set[Key]:
        return {*self._recording.open, *(key_of(span.context) for span in self._recording.ended)}

    def _is_outside(self, span: "ReadableSpan", known: set[Key]) -> bool:
        """Tell whether the parent of a span belongs to somebody else: another process, or code before this test."""
        key = key_of(span.parent)
        if span.parent is None or key in known:
            return False
        return span.parent.is_remote or key in self._recording.outside

    def _in_order(self) -> "list[ReadableSpan]":
        order = self._recording.order
        return sorted(self._recording.ended, key=lambda span: order.get(key_of(span.context), 0))

    def _rank(self) -> "Mapping[Key, tuple[int, int]]":
        """Return where each span stands among its siblings: by start, the attempts of a step where its first is."""
        firsts: dict[tuple[Key, str], int] = {}
        ranks: dict[Key, tuple[int, int]] = {}
        for position, span in enumerate(self._in_order()):
            path = (span.attributes or {}).get(names.STEP_PATH)  # the waits between its attempts have it, too
            first = position if path is None else firsts.setdefault((key_of(span.parent), str(path)), position)
            ranks[key_of(span.context)] = (-1 if span.name == names.RUN_STARTED else first, position)
        return ranks

    def _drawn(self) -> str:
        return self.tree(times=True) or "(no spans)"

    def __repr__(self) -> str:
        return f"<Traces: {len(self.spans)} spans>"


def _below_remote(span: "ReadableSpan") -> "ReadableSpan":
    """Return a copy whose parent is shown as what it is for this test: somebody else's."""
    parent = span.parent
    if parent is None or parent.is_remote:
        return span
    return type(span)(
        span.name,
        context=span.context,
        parent=SpanContext(parent.trace_id, parent.span_id, True, parent.trace_flags, parent.trace_state),
        attributes=span.attributes,
        links=span.links,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
    )
