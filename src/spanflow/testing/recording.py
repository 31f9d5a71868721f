"""What is known of the spans of one test while they come in."""

from typing import TYPE_CHECKING, TypeAlias

from opentelemetry.trace import SpanContext

if TYPE_CHECKING:  # the SDK is imported only when spans are captured
    from opentelemetry.sdk.trace import ReadableSpan

Key: TypeAlias = tuple[int, int]
"""Trace id and span id."""


def key_of(context: SpanContext | None) -> Key:
    return (context.trace_id, context.span_id) if context is not None else (0, 0)


class Recording:
    """Spans in the order in which they ended.

    Attributes:
        ended: finished spans.
        open: name of each span that was started and has not ended.
        order: position of each span among the starts. A span that is made again keeps its first.
        outside: parents that are real spans but none of this recording, e.g. one that was open before it began.
    """

    def __init__(self) -> None:
        self.ended: list[ReadableSpan] = []
        self.open: dict[Key, str] = {}
        self.order: dict[Key, int] = {}
        self.outside: set[Key] = set()
        self.closed = False
        self._starts = 0

    def start(self, key: Key, name: str) -> None:
        self._starts += 1
        self.order.setdefault(key, self._starts)
        self.open[key] = name

    def end(self, span: "ReadableSpan") -> None:
        self.open.pop(key_of(span.context), None)
        self.ended.append(span)

    def clear(self) -> None:
        """Forget all spans that have ended."""
        self.ended.clear()
        self.order = {key: self.order[key] for key in self.open}
