"""Spans that are only drawn: of a run that another process executes, or whose trace is elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry.trace import Link, SpanContext, Status, StatusCode

from spanflow.tracing import names

_TRACE_ID = 1  # of them all: what is drawn is one run


@dataclass(slots=True)
class DrawnSpan:
    """A span as ``tree.render`` reads it, without a tracer provider. Times are ns since the epoch."""

    name: str
    number: int
    above: int | None
    start_time: int | None
    end_time: int | None = None
    attributes: dict[str, object] = field(default_factory=dict[str, object])
    problem: str | None = None
    links: Sequence[Link] = ()

    @property
    def context(self) -> SpanContext:
        return SpanContext(_TRACE_ID, self.number, is_remote=False)

    @property
    def parent(self) -> SpanContext | None:
        return None if self.above is None else SpanContext(_TRACE_ID, self.above, is_remote=False)

    @property
    def status(self) -> Status:
        return Status() if self.problem is None else Status(StatusCode.ERROR, self.problem)

    def end(self, at: int, attributes: Mapping[str, object] | None = None) -> None:
        """End the span, and add what is known only now."""
        self.end_time = at
        self.attributes.update(attributes or {})

    def fail(self, kind: str, message: str) -> None:
        """Make it an error of this type."""
        self.attributes[names.ERROR_TYPE] = kind
        self.problem = message
