"""Steps of a very wide run beyond ``max_step_spans``: they get a span only if there is something to see.

Whether a step will fail or be slow is known when it ends. Until then a stand-in takes the span's place: what user
code opens inside becomes a child of the nearest span that is there for sure, so that nothing is ever an orphan. What
turns out to be worth a span is made then, with its own id, start and end, and so is all that it stands in.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext

from spanflow.tracing import names
from spanflow.tracing.content import capture
from spanflow.tracing.spans import Link, Scope


def open_step(around: Scope, name: str, path: str, attempt: int, attributes: dict[str, Any], at: int) -> Scope:
    """Start the span of a step or nested run, or what stands in for it where the run has enough of them."""
    spans = around.spans
    spans.steps += 1
    if spans.steps <= spans.max_step_spans or not around.traced:
        return around.child(name, path, attempt, attributes, at)
    return ThinScope(around, name, path, attempt, attributes, at)


class ThinScope(Scope):
    """Stands in for a span, which is made at its end where it failed, was slow, or has a child that was made."""

    __slots__ = ("_around", "_attributes", "_captured", "_kept", "_name", "_near", "_under")

    def __init__(
        self,
        around: Scope,
        name: str,
        path: str,
        attempt: int,
        attributes: dict[str, Any],
        at: int,
        under: Context | None = None,
    ) -> None:
        if under is not None and trace.get_current_span(under) is around.span:  # no span of the user's in between
            under = None
        parent = around.context if under is None else under
        stand_in = NonRecordingSpan(trace.get_current_span(parent).get_span_context())
        super().__init__(around.spans, stand_in, parent, at)
        self.span_id = around.spans.ids.derive(path, attempt)
        self._around = around
        self._under = under
        self._name = name
        self._attributes = attributes
        self._captured: list[tuple[str, object, object]] = []
        self._kept = False
        self._near: int = around._near if isinstance(around, ThinScope) else around.span_id or 0

    def child(
        self,
        name: str,
        path: str,
        attempt: int,
        attributes: dict[str, Any],
        at: int,
        under: Context | None = None,
    ) -> Scope:
        return ThinScope(self, name, path, attempt, attributes, at, under)

    def interval(
        self,
        name: str,
        path: str,
        attempt: int,
        attributes: dict[str, Any],
        start: int,
        end: int,
        error: BaseException | None = None,
        links: Sequence[Link] = (),
        span_id: int | None = None,
    ) -> int | None:
        """Record a span that is already over. Always: a wait is there to be seen, and so are those around it."""
        return self._kept_scope().interval(name, path, attempt, attributes, start, end, error, links, span_id)

    def note(self, attributes: Mapping[str, Any]) -> None:
        self._attributes = {**self._attributes, **attributes}
        self._kept = self._kept or names.STEP_STATUS in attributes  # canceled, suspended, bailed

    def capture_input(self, attribute: str, value: object, annotation: object = None) -> None:
        if self.spans.captures_input:
            self._captured.append((attribute, value, annotation))

    def capture_output(self, attribute: str, value: object, annotation: object = None) -> None:
        if self.spans.captures_output:
            self._captured.append((attribute, value, annotation))

    def end(self, at: int, error: BaseException | None = None, *, record: bool = True) -> None:
        left_out = self.spans.left_out
        slow = left_out.is_slow(self._name, at - self.started_at)
        if error is None and not slow and not self._kept:
            left_out.add(self._near)
            return
        for attribute, value, annotation in self._captured:
            self._attributes = self._attributes | {attribute: capture(value, annotation=annotation)}
        self.span = self.spans.start(self._name, self._parent(), self.span_id or 0, self._attributes, self.started_at)
        super().end(at, error, record=record)

    def _parent(self) -> Context:
        """Return where the span belongs; a stand-in that it stands in is made as well, when that ends."""
        if self._under is not None:
            return self._under
        around = self._around
        return around._kept_scope().context if isinstance(around, ThinScope) else around.context

    def _kept_scope(self) -> Scope:
        """Return the scope of this very span, which will be made."""
        self._kept = True
        found = self._span_context
        own = SpanContext(found.trace_id, self.span_id or 0, False, found.trace_flags, found.trace_state)
        return Scope(self.spans, NonRecordingSpan(own), self._parent(), self.started_at)
