"""One finished span as one line of text: name, duration, error and whatever is out of the ordinary."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from opentelemetry.trace import Link, SpanContext, Status, StatusCode, format_trace_id

from spanflow.tracing import names

_MAX_MESSAGE = 200  # characters
_MAX_VALUE = 100  # characters
_US, _MS, _S = 1_000, 1_000_000, 1_000_000_000  # ns
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400  # s


class ReadableSpanLike(Protocol):
    """What is read of a finished span; the SDK's ``ReadableSpan`` has it all."""

    @property
    def name(self) -> str: ...
    @property
    def context(self) -> SpanContext | None: ...
    @property
    def parent(self) -> SpanContext | None: ...
    @property
    def start_time(self) -> int | None: ...
    @property
    def end_time(self) -> int | None: ...
    @property
    def attributes(self) -> Mapping[str, object] | None: ...
    @property
    def status(self) -> Status: ...
    @property
    def links(self) -> Sequence[Link]: ...


@dataclass(frozen=True, slots=True)
class Line:
    """The parts of a line, before they are laid out and coloured."""

    name: str
    duration: str = ""
    error: str = ""
    facts: str = ""


def describe(span: ReadableSpanLike, *, times: bool, attributes: Collection[str], remarks: Sequence[str] = ()) -> Line:
    """Describe a span; ``times`` shows durations and ids, ``remarks`` are added to its facts."""
    found = span.attributes or {}
    facts = [*_facts(span, found), *(f"{key}={_short(found[key])}" for key in attributes if key in found), *remarks]
    links = [f"→ link {format_trace_id(link.context.trace_id)}" if times else "→ link" for link in span.links]
    return Line(
        name=printable(span.name) + _position(found),
        duration=duration_of(span) if times else "",
        error=_error(span, found),
        facts="  ".join([*([f"[{', '.join(facts)}]"] if facts else []), *links]),
    )


def failed(span: ReadableSpanLike) -> bool:
    """Tell whether a span ended with an error."""
    return span.status.status_code is StatusCode.ERROR


def outcome_of(span: ReadableSpanLike) -> str:
    """Return what a span came to, in a word: ``ok``, ``failed``, or its status, such as ``canceled``."""
    if failed(span):
        return "failed"
    status = _status(span.attributes or {})
    return "ok" if status == "success" else status


def duration_of(span: ReadableSpanLike) -> str:
    """Write a span's duration for people: ``12 ms``, ``1.20 s``, ``3 min 5 s``."""
    if span.start_time is None or span.end_time is None:
        return "not ended"
    return human_duration(span.end_time - span.start_time)


def human_duration(nanoseconds: int) -> str:
    """Write a duration for people, in about three digits."""
    if nanoseconds < 0:
        return f"-{human_duration(-nanoseconds)}"
    if nanoseconds < 999_500:
        return f"{round(nanoseconds / _US)} µs"
    if nanoseconds < 999_500_000:
        return f"{round(nanoseconds / _MS)} ms"
    if nanoseconds < 59_995_000_000:
        return f"{nanoseconds / _S:.2f} s"
    seconds = round(nanoseconds / _S)
    if seconds < _HOUR:
        return _in_two_units(seconds, _MINUTE, "min", 1, "s")
    if seconds < _DAY:
        return _in_two_units(seconds, _HOUR, "h", _MINUTE, "min")
    return _in_two_units(seconds, _DAY, "d", _HOUR, "h")


def _in_two_units(seconds: int, large: int, large_name: str, small: int, small_name: str) -> str:
    whole, rest = divmod(seconds, large)
    return f"{whole} {large_name}" + (f" {rest // small} {small_name}" if rest >= small else "")


def printable(text: str) -> str:
    """Make text fit for one line of a terminal: no control characters, no newlines."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def _position(found: Mapping[str, object]) -> str:
    index, iteration = found.get(names.FOREACH_INDEX), found.get(names.LOOP_ITERATION)
    return (f"[{index}]" if index is not None else "") + (f"#{iteration}" if iteration is not None else "")


def _error(span: ReadableSpanLike, found: Mapping[str, object]) -> str:
    if not failed(span):
        return ""
    kind = printable(str(found.get(names.ERROR_TYPE, "")))
    message = _short((span.status.description or "").strip().partition("\n")[0], _MAX_MESSAGE)
    if kind and message.startswith(f"{kind}:"):
        message = message.removeprefix(f"{kind}:").strip()
    return f"ERROR {': '.join(part for part in (kind, message) if part)}".rstrip()


def _facts(span: ReadableSpanLike, found: Mapping[str, object]) -> Iterator[str]:
    attempt = found.get(names.STEP_ATTEMPT)
    if isinstance(attempt, int) and attempt > 1:
        yield f"attempt {attempt}"
    if names.BRANCH_ARM in found:
        yield f"arm {_short(found[names.BRANCH_ARM])}"
    status = _status(found)
    if status != "success" and not (status == "failed" and failed(span)):  # ERROR says it already
        yield status
    lost = found.get(names.FAILED)
    if isinstance(lost, int) and lost > 0:
        yield f"{lost} failed"
    if names.SPANS_LEFT_OUT in found:
        yield f"{found[names.SPANS_LEFT_OUT]} more without a span"


def _status(found: Mapping[str, object]) -> str:
    return _short(found.get(names.RUN_STATUS, found.get(names.STEP_STATUS, "success")))


def _short(value: object, length: int = _MAX_VALUE) -> str:
    text = printable(str(value)[: length + 1])
    return text if len(text) <= length else f"{text[: length - 1]}…"
