"""What tests ask of finished spans, and what must hold for the spans of every run."""

from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from spanflow import Event, Run, WorkflowResult
from spanflow.testing import FakeClock, Traces


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def span_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return format(span.context.span_id, "016x")


def trace_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return format(span.context.trace_id, "032x")


def parent_id(span: ReadableSpan) -> str | None:
    return None if span.parent is None else format(span.parent.span_id, "016x")


def times(span: ReadableSpan) -> tuple[int, int]:
    """Return start and end in ns since the epoch."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def seconds(span: ReadableSpan) -> float:
    start, end = times(span)
    return (end - start) / 1e9


def is_error(span: ReadableSpan) -> bool:
    return span.status.status_code is StatusCode.ERROR


def exceptions(span: ReadableSpan) -> list[dict[str, Any]]:
    return [dict(event.attributes or {}) for event in span.events if event.name == "exception"]


def recorded(traces: Traces) -> list[tuple[str, str, str]]:
    """Return (span, type, message) of each exception that any span recorded."""
    return [
        (span.name, each["exception.type"], each["exception.message"])
        for span in traces.find()
        for each in exceptions(span)
    ]


def errors(traces: Traces) -> dict[str, str]:
    """Return the ``error.type`` of each span that is an error, by name."""
    return {span.name: attributes(span)["error.type"] for span in traces.find() if is_error(span)}


def ours(traces: Traces) -> Sequence[ReadableSpan]:
    return [
        span for span in traces.find() if span.instrumentation_scope and span.instrumentation_scope.name == "spanflow"
    ]


def check(traces: Traces) -> None:
    """Assert what holds for the spans of every run, however it ended."""
    traces.assert_complete()
    by_id = {span_id(span): span for span in ours(traces)}
    for span in ours(traces):
        assert span.kind is SpanKind.INTERNAL, span.name
        assert span.status.status_code is not StatusCode.OK, span.name
        assert is_error(span) == ("error.type" in attributes(span)), span.name
        assert len(exceptions(span)) <= 1, span.name
        start, end = times(span)
        assert start <= end, span.name
        above = by_id.get(parent_id(span) or "")
        if above is not None:
            assert times(above)[0] <= start, span.name
            length = 1 if span.name == "run.started" else 0  # ns, also on a clock that stands still
            assert end <= times(above)[1] + length, span.name


def check_told(traces: Traces, events: Sequence[Event]) -> None:
    """Assert that the spans and the events of a run that is over tell the same."""
    by_id = {span_id(span): span for span in ours(traces)}
    begun: set[str] = set()
    for event in events:
        assert event.span_id is not None
        span = by_id[event.span_id]
        assert event.trace_id == trace_id(span)
        match event.type:
            case "start" if event.payload.resumed is None:
                begun.add(event.span_id)
                assert times(span)[0] == event.timestamp, span.name
            case "step-start" | "step-waiting" | "tool-call":
                assert event.span_id not in begun, f"{span.name} begins twice"
                begun.add(event.span_id)
                assert times(span)[0] == event.timestamp, span.name
            case "step-result" | "step-finish" | "step-retry" | "step-suspended" | "tool-result":
                assert times(span)[1] == event.timestamp, (span.name, event.type)
            case _:
                pass
    last = events[-1]
    assert last.type == "finish"
    assert times(by_id[str(last.span_id)])[1] == last.timestamp
    assert last.payload.counts.spans == len(by_id)
    untold = {span.name.partition(" ")[0] for id, span in by_id.items() if id not in begun}
    assert untold <= {"run.started", "wait"}


async def check_run(run: Run[Any, Any], traces: Traces) -> None:
    """Assert what holds for the spans of a run that is over, and that its recorded events tell the same."""
    check(traces)
    check_told(traces, [event async for event in run.observe_stream()])


async def run_to_end(run: Run[Any, Any], value: Any, traces: Traces, *answers: Any) -> WorkflowResult[Any]:
    """Start a run, answer it, and assert what holds for the spans and events of every run."""
    stream = await run.stream(value)
    events: list[Event] = [event async for event in stream]
    for answer in answers:
        stream = await run.resume_stream(answer)
        events += [event async for event in stream]
    result = await stream.get_workflow_state()
    if result.status != "suspended":
        check(traces)
        check_told(traces, events)
    return result


__all__ = [
    "FakeClock",
    "attributes",
    "check",
    "check_run",
    "check_told",
    "errors",
    "exceptions",
    "is_error",
    "ours",
    "parent_id",
    "recorded",
    "run_to_end",
    "seconds",
    "span_id",
    "times",
    "trace_id",
]
