"""What a run's trace is made of, as data: all that ever crosses a process."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Resume = Literal["same", "link"]


@dataclass(slots=True, kw_only=True)  # not frozen: that costs a run more than an attribute of its span
class TraceRecord:
    """The root span of a run, stored with it, so that whichever process ends the run can export it.

    Ids are lower-case hex as in W3C Trace Context. ``trace_id`` is None for an untraced run. ``links`` has what the
    root is linked to, each as a W3C ``traceparent``.
    """

    trace_id: str | None = None
    span_id: str | None = None
    parent_span_id: str | None = None
    trace_flags: int = 0
    trace_state: str = ""
    name: str = ""
    started_at: int = 0
    attributes: dict[str, Any] = field(default_factory=lambda: {})
    metadata: dict[str, Any] = field(default_factory=lambda: {})
    hide_input: bool = False
    hide_output: bool = False
    resume: Resume = "same"
    max_step_spans: int | None = None
    baggage: dict[str, str] = field(default_factory=lambda: {})
    links: Sequence[str] = ()

    def of_stretch(self, **begun: Any) -> "TraceRecord":
        """Return the record of a stretch of the run with a trace of its own, from where that begins."""
        return replace(self, parent_span_id=None, **begun)

    @property
    def traceparent(self) -> str | None:
        """Where the root span is, as W3C Trace Context writes it; None for an untraced run."""
        if self.trace_id is None or self.span_id is None:
            return None
        return f"00-{self.trace_id}-{self.span_id}-{self.trace_flags:02x}"


UNTRACED = TraceRecord()
