"""What must hold for the events of every run, whatever its plan."""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_jsonable_python

from spanflow import Event, RunState, WorkflowResult
from spanflow.events import (
    Finish,
    StepFinish,
    StepResultEvent,
    StepRetry,
    StepStart,
    StepSuspended,
    ToolCall,
    parse_event,
)
from tests.properties.driving import Story
from tests.properties.plans import nodes, without_numbers

TOOL_EVENTS = ("tool-call", "tool-call-streaming-start", "tool-call-delta", "tool-result")


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(to_jsonable_python(value)))


def told(events: Sequence[Event]) -> list[Any]:
    """Return what the JSON of events says."""
    return [json.loads(event.model_dump_json()) for event in events]


def frames_around(path: str) -> list[str]:
    """Return the paths that a path stands in: ``s0[1]/s2`` in ``s0[1]`` and ``s0``."""
    ends = [found.start() for found in re.finditer(r"/|\[", path)]
    return [path[:end] for end in ends]


# ---------------------------------------------------------------- the stream


def numbered_without_gaps(events: Sequence[Event]) -> None:
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert all(event.lifecycle for event in events)
    times = [event.timestamp for event in events]
    assert times == sorted(times), "time went back"


def one_finish_at_the_end_of_each_stretch(story: Story) -> None:
    events = story.recorded
    assert events[0].type == "start"
    assert events[-1].type == "finish"
    ends = [event for event in events if event.type in ("start", "finish")]
    statuses = [event.payload.status for event in ends if isinstance(event, Finish)]
    kinds = [event.type for event in ends]
    if story.scenario.canceled_after is not None and statuses[-1] == "canceled" and len(statuses) > 1:
        kinds.insert(-1, "start")  # a run that is canceled while it is suspended begins no stretch
    assert kinds == ["start", "finish"] * len(statuses)
    assert statuses[:-1] == ["suspended"] * (len(statuses) - 1)
    assert statuses[-1] != "suspended"
    for before, event in itertools.pairwise(events):
        if before.type == "finish" and event.type != "start":
            assert statuses[-1] == "canceled", f"{event.type} after finish"


def each_live_stream_is_a_stretch(story: Story) -> None:
    """What was streamed is what was stored, with deltas where they happened."""
    streamed = [event for live in story.live for event in live if event.lifecycle]
    assert told(streamed) == told(story.recorded[: len(streamed)])
    left = {event.type for event in story.recorded[len(streamed) :]}
    assert left <= {"step-result", "step-finish", "finish"}, left
    for live in story.live:
        assert live[0].type == "start"
        assert [event.type for event in live].count("finish") == 1
        assert live[-1].type == "finish"
        seq = live[0].seq
        for event in live:
            seq = event.seq if event.lifecycle else seq
            assert event.seq == seq, "a delta carries the number of the event before it"


def every_path_is_the_plans(story: Story) -> None:
    known = nodes(story.scenario.plan)
    for event in story.recorded:
        if event.type in ("start", "finish"):
            assert event.path == ""
            continue
        node = known[without_numbers(event.path)]
        if event.type in TOOL_EVENTS:
            assert node.kind in ("step", "condition")
            continue
        payload: Any = event.payload
        assert payload.id == node.id
        if event.type == "step-waiting":
            assert node.kind in ("sleep", "event")
        elif isinstance(event, StepStart):
            item, iteration = re.search(r"\[(\d+)\]$", event.path), re.search(r"#(\d+)$", event.path)
            assert event.payload.foreach_index == (int(item[1]) if item else None)
            assert event.payload.loop_iteration == (int(iteration[1]) if iteration else None)


def every_step_has_its_events_in_order(story: Story) -> None:
    known = nodes(story.scenario.plan)
    by_path: dict[str, list[Event]] = {}
    for event in _with_deltas(story):
        if event.path:
            by_path.setdefault(event.path, []).append(event)
    for path, events in by_path.items():
        if known[without_numbers(path)].kind == "condition":
            continue
        words = " ".join(event.type for event in events if event.type not in (*TOOL_EVENTS, "step-output"))
        assert re.fullmatch(_ORDER[known[without_numbers(path)].kind], words), (path, words)
        result = next(event for event in events if event.type == "step-result")
        finish = events[-1]
        assert finish.seq == result.seq + 1, "step-finish stands right after step-result"
        starts = [event for event in events if isinstance(event, StepStart)]
        assert [event.payload.attempt for event in starts] == list(range(1, len(starts) + 1))
        if result.span_id not in story.outlived():
            _attempts_hold_what_is_theirs(events)


_ENDING = "step-result step-finish"
_ATTEMPTS = f"(step-start (step-retry|step-suspended) )*(step-start )?{_ENDING}"
_ORDER = {
    "step": _ATTEMPTS,
    "map": _ATTEMPTS,
    "workflow": f"step-start {_ENDING}",
    "foreach": f"step-start {_ENDING}",
    "sleep": f"step-waiting {_ENDING}",
    "event": f"step-waiting {_ENDING}",
}


def _attempts_hold_what_is_theirs(events: Sequence[Event]) -> None:
    """Tool and output events stand inside an attempt, and each tool call is whole."""
    calls: dict[str, str] = {}
    attempt: int | None = None
    outputs = 0
    for event in events:
        if isinstance(event, StepStart):
            attempt = event.payload.attempt
            outputs = 0
        elif event.type in TOOL_EVENTS:
            assert attempt is not None, f"{event.type} outside of an attempt"
            payload: Any = event.payload
            calls[payload.tool_call_id] = f"{calls.get(payload.tool_call_id, '')}{event.type} "
        elif event.type == "step-output":
            assert attempt is not None, "output outside of an attempt"
            outputs += 1
            assert event.payload.output["order"] == outputs, "outputs in their order"
        elif isinstance(event, StepRetry | StepSuspended) or event.type == "step-result":
            for words in calls.values():
                assert re.fullmatch(_CALL, words), words
            if isinstance(event, StepRetry):
                assert event.payload.attempt == attempt
            attempt = None
        elif isinstance(event, StepFinish) and any(each.type == "step-start" for each in events):
            starts = [each for each in events if isinstance(each, StepStart)]
            assert event.payload.attempt == starts[-1].payload.attempt


_CALL = r"tool-call (tool-call-streaming-start (tool-call-delta )*)?tool-result "


def everything_happens_inside_what_is_open(story: Story) -> None:
    """A nested run or foreach begins before and ends after all that stands in it."""
    open_: set[str] = set()
    known = nodes(story.scenario.plan)
    for event in story.recorded:
        if not event.path:
            continue
        for frame in frames_around(event.path):
            assert frame in open_, f"{event.type} {event.path} outside of {frame}"
        if known[without_numbers(event.path)].is_frame:
            if event.type == "step-start":
                open_.add(event.path)
            elif event.type == "step-finish":
                open_.remove(event.path)
    assert not open_


def no_item_starts_after_another_has_failed(story: Story) -> None:
    """An item that failed, or ended the run, is the last thing that a foreach waits for, unless it collects."""
    stopped: set[str] = set()
    known = nodes(story.scenario.plan)
    for event in story.recorded:
        item = re.fullmatch(r"(.*)\[\d+\]", event.path)
        if item is None:
            continue
        if isinstance(event, StepStart) and event.payload.attempt == 1:
            assert item[1] not in stopped, f"{event.path} starts after another item has failed"
        elif isinstance(event, StepResultEvent):
            goes_on = ("success", "failed") if known[without_numbers(item[1])].collects else ("success",)
            if event.payload.status not in goes_on:
                stopped.add(item[1])


def _with_deltas(story: Story) -> list[Event]:
    """All events, deltas among them. What ends a run that nobody executes is not streamed."""
    streamed = [event for live in story.live for event in live]
    return streamed + story.recorded[sum(event.lifecycle for event in streamed) :]


# ---------------------------------------------------------------- the fold


def the_fold_of_the_events_is_the_result(story: Story) -> None:
    through_json = [parse_event(event.model_dump_json()) for event in story.recorded]
    for events in (story.recorded, through_json):
        at = 0
        finishes = [number for number, event in enumerate(events, 1) if event.type == "finish"]
        assert len(finishes) == len(_distinct(story.results))
        state = RunState()
        for end, result in zip(finishes, _distinct(story.results), strict=True):
            state = RunState.fold(events[:end])
            at = end
            assert facts_of(state) == facts_of(result)
        assert at == len(events)
        last: Any = events[-1].payload
        counts: dict[str, int] = last.counts.model_dump()
        assert counts["steps"] == len({event.path for event in events if event.type == "step-start"})
        assert counts["tool_calls"] == sum(isinstance(event, ToolCall) for event in events)
        assert counts["retries"] == sum(isinstance(event, StepRetry) for event in events)
        assert counts["spans_dropped"] == 0
        spans = sum(span.instrumentation_scope.name == "spanflow" for span in story.spans if span.instrumentation_scope)
        late = [span for span in story.spans if span.parent and f"{span.parent.span_id:016x}" in story.outlived()]
        assert spans - len(late) <= counts["spans"] <= spans
        assert state.counts_with(0, 0, 0).model_dump() == counts


def _distinct(results: Sequence[WorkflowResult[Any]]) -> list[WorkflowResult[Any]]:
    """The result of each stretch; the last one may have been asked for twice."""
    ended = [result for result in results if result.status != "suspended"]
    return [*(result for result in results if result.status == "suspended"), *ended[-1:]]


def facts_of(state: RunState | WorkflowResult[Any]) -> dict[str, Any]:
    """Return what a state and a result both say, as JSON."""
    kept = state.values.get("", {}) if isinstance(state, RunState) else state.state
    facts: dict[str, Any] = {
        "run_id": state.run_id,
        "trace_id": state.trace_id,
        "status": state.status,
        "result": state.result,
        "error": None if state.error is None else state.error.model_dump(),
        "suspended": state.suspended,
        "state": kept,
        "steps": dict(state.steps),
    }
    return as_json(facts)


# ---------------------------------------------------------------- readers


def a_reader_that_joins_late_sees_the_same_tail(story: Story) -> None:
    whole = told(story.recorded)
    for joined in story.replayed:
        assert told(joined.events) == whole[joined.after :]
    ends = [number for number, event in enumerate(story.recorded, 1) if event.type == "finish"]
    if story.scenario.canceled_after is None:  # else it may be canceled just as it suspends, and be read on
        del ends[1:]
    deltas = told([event for event in story.live[0] if not event.lifecycle])
    for joined in story.joined:
        read = told([event for event in joined.events if event.lifecycle])
        assert read in [whole[joined.after : end] for end in ends]
        seen = told([event for event in joined.events if not event.lifecycle])
        assert seen == deltas[len(deltas) - len(seen) :]
        numbers = [event.seq for event in joined.events]
        assert numbers == sorted(numbers)
