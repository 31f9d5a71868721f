"""What random workflows have found, each as small as it can be."""

import pytest

from tests.properties import events, spans
from tests.properties.driving import tell
from tests.properties.plans import (
    Ask,
    Condition,
    Fail,
    Foreach,
    Loop,
    Nested,
    Parallel,
    Pause,
    Reshape,
    Scenario,
    Take,
    Task,
    ToolTask,
    Tries,
)


@pytest.mark.parametrize(
    "plan",
    [
        Nested((Reshape(), Foreach(ToolTask("async"), 4, 3, "collect"))),
        Nested((Parallel((Task((Fail(1, 1),)), Nested((Pause(2),)))),)),
    ],
)
@pytest.mark.parametrize("canceled_after", [None, 0])
def test_what_is_canceled_while_its_first_event_is_stored_has_a_result_and_a_span(
    plan: Nested, canceled_after: float | None
) -> None:
    story = tell(Scenario(plan, canceled_after=canceled_after, through_json=True))
    assert story.complaints == []
    events.every_step_has_its_events_in_order(story)
    spans.events_and_spans_match_one_to_one(story)


def test_a_run_that_is_canceled_as_a_delay_ends_has_the_result_of_the_step_and_the_delay_once() -> None:
    arms = (Task(), Task((Fail(1, 1),)))
    plan = Nested((Parallel(arms, "collect"),), Tries(2, 1))
    story = tell(Scenario(plan, canceled_after=1))
    events.every_step_has_its_events_in_order(story)
    spans.one_trace_one_root_no_orphan_no_id_twice(story)
    spans.every_gap_has_a_name(story)


def test_a_tool_that_the_condition_of_a_loop_calls_is_none_of_the_iteration_that_is_over() -> None:
    plan = Nested((Loop(Task(), Condition(1, calls=True), until=True, cap=2),))
    story = tell(Scenario(plan))
    assert [event.path for event in story.recorded if event.type == "tool-call"] == ["s0"]
    events.every_step_has_its_events_in_order(story)
    spans.events_and_spans_match_one_to_one(story)


@pytest.mark.parametrize("canceled_after", [None, 0.5])
def test_a_question_is_closed_before_the_nested_run_that_it_waits_in(canceled_after: float | None) -> None:
    failing = Task((Take(1), Fail(1, 1)))
    nested = Nested((Parallel((failing, Task((Ask(),)))),))
    plan = Nested((Foreach(nested, 2, 2, "collect"), Pause(5)))
    story = tell(Scenario(plan, canceled_after=canceled_after))
    events.everything_happens_inside_what_is_open(story)
    spans.a_span_lies_within_its_parent(story)
    spans.every_gap_has_a_name(story)
