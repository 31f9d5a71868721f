"""What must hold for the spans of every run, and how they and the events tell the same."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from spanflow import Event, StepError
from spanflow.events import (
    Finish,
    Start,
    StepResultEvent,
    StepRetry,
    StepStart,
    StepSuspended,
    StepWaiting,
    ToolCall,
    ToolResultEvent,
)
from tests.properties.building import TRACER
from tests.properties.driving import Story
from tests.properties.plans import nodes, without_numbers

STOPPED = ("CancelledError", "GeneratorExit")  # what ends a tool call that has not failed
AT_THE_END = ("spanflow.run.status", "error.type")  # attributes that ``run.started`` cannot have


class Trace:
    """The spans of a run, by id."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.all = list(story.spans)
        self.ours = [span for span in self.all if scope_of(span) == "spanflow"]
        self.by_id = {id_of(span): span for span in self.all}
        (self.root,) = [span for span in self.ours if span.parent is None]

    def outlived(self, span: ReadableSpan) -> bool:
        """Tell whether a span was caused by a thread that went on after its step was canceled."""
        return span.parent is not None and format(span.parent.span_id, "016x") in self.story.outlived()

    def above(self, span: ReadableSpan) -> ReadableSpan:
        assert span.parent is not None
        return self.by_id[format(span.parent.span_id, "016x")]

    def waits(self, reason: str) -> list[ReadableSpan]:
        return [span for span in self.ours if (span.attributes or {}).get("spanflow.wait.reason") == reason]


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return format(span.context.span_id, "016x")


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return format(span.context.trace_id, "032x")


def scope_of(span: ReadableSpan) -> str:
    assert span.instrumentation_scope is not None
    return span.instrumentation_scope.name


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def is_error(span: ReadableSpan) -> bool:
    return span.status.status_code is StatusCode.ERROR


# ---------------------------------------------------------------- one trace, nothing lost


def one_trace_one_root_no_orphan_no_id_twice(story: Story) -> None:
    spans = story.spans
    ids = Counter(id_of(span) for span in spans)
    assert [id for id, number in ids.items() if number > 1] == []
    trace_ids = {format(span.context.trace_id, "032x") for span in spans if span.context is not None}
    assert trace_ids == {story.result.trace_id}
    assert [span.name for span in spans if span.parent is None] == ["invoke_workflow root"]
    parents = {format(span.parent.span_id, "016x") for span in spans if span.parent is not None}
    assert parents <= set(ids), "orphans"


def each_stretch_is_a_trace_with_a_root_and_no_orphan(story: Story) -> None:
    """Where each stretch is to be a trace: each has its own, linked to the one before, and nothing sticks out of it."""
    starts = [event for event in story.recorded if isinstance(event, Start)]
    assert [span.name for span in story.spans if span.parent is None] == ["invoke_workflow root"] * len(starts)
    before: list[str] = []
    for start in starts:
        spans = {id_of(span): span for span in story.spans if trace_of(span) == start.trace_id}
        assert len(spans) == sum(trace_of(span) == start.trace_id for span in story.spans)
        (root,) = [span for span in spans.values() if span.parent is None]
        assert [format(link.context.span_id, "016x") for link in root.links] == before[-1:]
        before.append(id_of(root))
        assert {start.trace_id} == {
            event.trace_id for event in story.recorded if start.seq <= event.seq < _next(starts, start, story)
        }
        for span in spans.values():
            parent_id = "" if span.parent is None else format(span.parent.span_id, "016x")
            assert parent_id in spans or span is root, "an orphan"
            if parent_id and parent_id not in story.outlived() and scope_of(span) == "spanflow":
                above = times(spans[parent_id])
                at = times(span)
                assert above[0] <= at[0] <= at[1] <= above[1] + 1, span.name  # ns, on a clock that stands still
    assert {trace_of(span) for span in story.spans} == {start.trace_id for start in starts}
    assert len({start.trace_id for start in starts}) == len(starts)
    assert story.result.trace_id == starts[-1].trace_id


def _next(starts: Sequence[Start], start: Start, story: Story) -> int:
    """Return where the stretch after this one begins."""
    later = [each.seq for each in starts if each.seq > start.seq]
    return later[0] if later else story.recorded[-1].seq + 1


def a_span_lies_within_its_parent(story: Story) -> None:
    trace = Trace(story)
    for span in trace.ours:
        start, end = times(span)
        assert start <= end, span.name
        if span.parent is not None and not trace.outlived(span):
            above_start, above_end = times(trace.above(span))
            assert above_start <= start, (span.name, span.attributes)
            length = 1 if span.name == "run.started" else 0  # ns, also on a clock that stands still
            assert end <= above_end + length, (span.name, span.attributes)


def events_and_spans_match_one_to_one(story: Story) -> None:
    trace, known = Trace(story), nodes(story.scenario.plan)
    told: set[str] = set()
    for event in story.recorded:
        assert event.trace_id == story.result.trace_id
        assert event.span_id is not None
        if isinstance(event, Start | Finish):
            assert event.span_id == id_of(trace.root)
            continue
        span = trace.by_id[event.span_id]
        assert scope_of(span) == "spanflow"
        start, end = times(span)
        if isinstance(event, StepStart | StepWaiting | ToolCall):
            assert event.span_id not in told
            told.add(event.span_id)
            assert start == event.timestamp, (event.type, event.path)
        else:
            assert start <= event.timestamp
        if isinstance(event, ToolCall):
            assert span.name == f"execute_tool {event.payload.tool_name}"
            assert (span.attributes or {})["gen_ai.tool.call.id"] == event.payload.tool_call_id
        elif isinstance(event, StepStart | StepWaiting):
            assert span.name == known[without_numbers(event.path)].span_name
            assert (span.attributes or {})["spanflow.step.path"] == event.path
        elif isinstance(event, StepSuspended | ToolResultEvent):
            assert end == event.timestamp, (event.type, event.path)
    first, last = story.recorded[0], story.recorded[-1]
    assert times(trace.root) == (first.timestamp, last.timestamp)
    untold = {id_of(span) for span in trace.ours} - told
    between = {id_of(span) for reason in ("retry", "suspension") for span in trace.waits(reason)}
    late = {id_of(span) for span in trace.ours if trace.outlived(span)}
    started = [span for span in trace.ours if span.name == "run.started"]
    assert untold - late == between | {id_of(trace.root)} | {id_of(span) for span in started}
    assert len(started) <= 1


def what_is_left_out_is_counted(story: Story) -> None:
    """Every span that an event names is there, or among those that ``finish`` says were left out."""
    trace = Trace(story)
    named = {event.span_id for event in story.recorded if not isinstance(event, Finish | Start)} - {None}
    missing = named - set(trace.by_id) - story.outlived()
    counts = [event.payload.counts for event in story.recorded if isinstance(event, Finish)][-1]
    assert len(missing) <= counts.spans_left_out
    if not story.outlived():
        assert len(missing) == counts.spans_left_out
        assert counts.spans == len(trace.ours)


def every_gap_has_a_name(story: Story) -> None:
    """Each delay before another attempt, and each time that a question waited, is a span from end to start."""
    trace = Trace(story)
    wanted: Counter[tuple[str, str, int, int]] = Counter()
    for number, event in enumerate(story.recorded):
        if not isinstance(event, StepRetry | StepSuspended):
            continue
        reason = "retry" if isinstance(event, StepRetry) else "suspension"
        wanted[reason, event.path, event.timestamp, _goes_on(story.recorded[number:], event)] += 1
    found = Counter(
        (reason, str((span.attributes or {})["spanflow.step.path"]), *times(span))
        for reason in ("retry", "suspension")
        for span in trace.waits(reason)
    )
    assert _lasting(found) == _lasting(wanted)


def _lasting(gaps: Counter[tuple[str, str, int, int]]) -> Counter[tuple[str, str, int, int]]:
    """Leave out delays of no length: such a gap is one only where storing takes its time."""
    return Counter({gap: number for gap, number in gaps.items() if gap[0] == "suspension" or gap[2] < gap[3]})


def _goes_on(following: Sequence[Event], event: StepRetry | StepSuspended) -> int:
    """Return when a step goes on, or is given up."""
    for other in following:
        if other.path == event.path and other.type in ("step-start", "step-result"):
            return other.timestamp
    raise AssertionError(f"{event.type} {event.path} is not followed by anything")


def a_run_of_more_than_a_second_announces_itself(story: Story) -> None:
    trace = Trace(story)
    waits = [span for reason in ("sleep", "event", "retry") for span in trace.waits(reason)]
    starts = times(trace.root)[0]
    suspended = any(isinstance(event, Finish) and event.payload.status == "suspended" for event in story.recorded)
    started = [span for span in trace.ours if span.name == "run.started"]
    if suspended or any(_waited_past(span, starts + 10**9) for span in waits):
        assert len(started) == 1
    for span in started:
        assert times(span) == (starts, starts + 1)
        root = {key: value for key, value in (trace.root.attributes or {}).items() if key not in AT_THE_END}
        assert dict(span.attributes or {}) == root
        assert trace.above(span) is trace.root


def _waited_past(span: ReadableSpan, moment: int) -> bool:
    start, end = times(span)
    return start < end > moment


# ---------------------------------------------------------------- failures


def errors_are_where_attempts_failed(story: Story) -> None:
    trace = Trace(story)
    failed = set[str]()
    for event in story.recorded:
        error = _failure(event)
        if error is not None and error.type.rpartition(".")[2] not in STOPPED:
            assert event.span_id is not None
            failed.add(event.span_id)
            assert (trace.by_id[event.span_id].attributes or {})["error.type"] == error.type
    late = {id_of(span) for span in trace.ours if trace.outlived(span)}
    assert {id_of(span) for span in trace.ours if is_error(span)} - late == failed - late
    for span in trace.ours:
        assert span.status.status_code is not StatusCode.OK
        assert is_error(span) == ("error.type" in (span.attributes or {}))


def _failure(event: Event) -> StepError | None:
    """Return what an attempt, a tool call, a frame or the run failed with."""
    match event:
        case StepRetry() | ToolResultEvent():
            return event.payload.error
        case StepResultEvent() | Finish() if event.payload.status == "failed":
            return event.payload.error
        case _:
            return None


def each_exception_is_recorded_once_where_it_was_raised(story: Story) -> None:
    """No two ``Boom`` have the same text, so each is found on one span: the innermost that failed with it."""
    trace = Trace(story)
    for span in trace.ours:
        recorded = [dict(event.attributes or {}) for event in span.events if event.name == "exception"]
        below = [each for each in trace.ours if each.parent is not None and trace.above(each) is span]
        text = span.status.description
        inherited = any(is_error(each) and each.status.description == text for each in below)
        if not is_error(span) or inherited or "ExceptionGroup" in str((span.attributes or {})["error.type"]):
            assert recorded == [], span.name
        else:
            (only,) = recorded
            assert only["exception.type"] == (span.attributes or {})["error.type"]
            assert only["exception.message"] == text
    texts = Counter(_texts(trace))
    assert [text for text, number in texts.items() if text.startswith("boom") and number > 1] == []


def _texts(trace: Trace) -> list[Any]:
    return [
        (event.attributes or {})["exception.message"]
        for span in trace.ours
        for event in span.events
        if event.name == "exception"
    ]


# ---------------------------------------------------------------- whose child is whose


def each_span_hangs_below_what_it_happens_in(story: Story) -> None:
    """Below the innermost nested run or foreach around its path; a tool and a user's span below their attempt."""
    trace, known = Trace(story), nodes(story.scenario.plan)
    frames: dict[str, ReadableSpan] = {"": trace.root}
    for event in story.recorded:
        if isinstance(event, StepStart) and known[without_numbers(event.path)].is_frame:
            frames[event.path] = trace.by_id[event.span_id or ""]
    for span in trace.all:
        path = (span.attributes or {}).get("spanflow.step.path")
        if isinstance(path, str):
            assert trace.above(span) is frames[_frame_of(path, frames)], (span.name, path)
        elif scope_of(span) == TRACER:
            assert trace.above(span).name.startswith("step ")
    current: dict[str, str] = {}
    for event in story.recorded:
        if isinstance(event, StepStart):
            current[event.path] = event.span_id or ""
        elif isinstance(event, ToolCall) and known[without_numbers(event.path)].kind != "condition":
            assert id_of(trace.above(trace.by_id[event.span_id or ""])) == current[event.path]


def _frame_of(path: str, frames: dict[str, ReadableSpan]) -> str:
    around = [frame for frame in frames if frame == "" or path.startswith((f"{frame}/", f"{frame}["))]
    return max(around, key=len)
