"""Whatever is composed: how a run ends, what it tells on the way, and its trace are what the contract says."""

from dataclasses import replace

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from spanflow import TracingOptions
from tests.properties import events, replaying, spans, timeline, travelling
from tests.properties.driving import Story, tell
from tests.properties.plans import Scenario
from tests.properties.reference import Unpredictable, predict
from tests.properties.strategies import NIGHTLY, examples, more_examples, scenarios

# Seconds where all is well; to make a failure small may take minutes.
pytestmark = pytest.mark.timeout(0 if NIGHTLY else 600)


def told(scenario: Scenario) -> Story:
    story = tell(scenario)
    assert story.complaints == []
    return story


@more_examples
@given(scenarios)
def test_a_run_comes_to_what_the_contract_says_and_everything_happens_when_it_says(scenario: Scenario) -> None:
    try:
        expected = predict(scenario)
    except Unpredictable:
        event("two things of different meaning in one moment")
        return
    story = told(scenario)
    timeline.it_ends_as_predicted(story, expected)
    timeline.everything_happens_when_predicted(story, expected)
    timeline.the_state_is_as_predicted(story, expected)


@examples
@given(scenarios)
def test_the_events_of_a_run_are_numbered_in_order_and_of_its_plan(scenario: Scenario) -> None:
    story = told(scenario)
    events.numbered_without_gaps(story.recorded)
    events.one_finish_at_the_end_of_each_stretch(story)
    events.each_live_stream_is_a_stretch(story)
    events.every_path_is_the_plans(story)
    events.every_step_has_its_events_in_order(story)
    events.everything_happens_inside_what_is_open(story)
    events.no_item_starts_after_another_has_failed(story)


@examples
@given(scenarios)
def test_the_fold_of_the_events_is_the_result(scenario: Scenario) -> None:
    events.the_fold_of_the_events_is_the_result(told(scenario))


@examples
@given(scenarios)
def test_walking_the_plan_again_over_its_journal_wants_nothing_new(scenario: Scenario) -> None:
    replaying.walking_the_plan_again_wants_nothing_new(told(scenario))


@examples
@given(scenarios)
def test_a_reader_that_joins_late_sees_the_same_tail(scenario: Scenario) -> None:
    events.a_reader_that_joins_late_sees_the_same_tail(told(scenario))


@examples
@given(scenarios)
def test_a_run_is_one_trace_in_which_nothing_is_lost(scenario: Scenario) -> None:
    story = told(scenario)
    spans.one_trace_one_root_no_orphan_no_id_twice(story)
    spans.a_span_lies_within_its_parent(story)
    spans.each_span_hangs_below_what_it_happens_in(story)
    spans.a_run_of_more_than_a_second_announces_itself(story)


@examples
@given(scenarios)
def test_the_spans_of_a_run_and_its_events_tell_the_same(scenario: Scenario) -> None:
    story = told(scenario)
    spans.events_and_spans_match_one_to_one(story)
    spans.every_gap_has_a_name(story)


@examples
@given(scenarios)
def test_errors_are_where_attempts_failed_and_each_exception_is_recorded_once(scenario: Scenario) -> None:
    story = told(scenario)
    spans.errors_are_where_attempts_failed(story)
    spans.each_exception_is_recorded_once_where_it_was_raised(story)


@examples
@given(scenarios, st.integers(0, 4))
def test_a_wide_run_leaves_no_orphan_and_no_failure_out(scenario: Scenario, most: int) -> None:
    story = tell(scenario, TracingOptions(max_step_spans=most))
    assert story.complaints == []
    spans.one_trace_one_root_no_orphan_no_id_twice(story)
    spans.a_span_lies_within_its_parent(story)
    spans.errors_are_where_attempts_failed(story)
    spans.each_exception_is_recorded_once_where_it_was_raised(story)
    spans.what_is_left_out_is_counted(story)


@examples
@given(scenarios)
def test_going_back_to_any_step_comes_to_the_same(scenario: Scenario) -> None:
    story = tell(replace(scenario, canceled_after=None, joins=()), then_travel=travelling.points_of)
    assert story.complaints == []
    event(f"{len(story.journeys)} journeys")
    travelling.it_ends_again_as_it_did(story)
    travelling.what_is_taken_over_is_not_done_again(story)
    travelling.each_trace_is_whole(story)


@examples
@given(scenarios)
def test_each_stretch_of_a_run_is_a_whole_trace_where_that_is_wanted(scenario: Scenario) -> None:
    story = tell(scenario, TracingOptions(resume="link"))
    assert story.complaints == []
    event(f"{len(story.live)} stretches")
    spans.each_stretch_is_a_trace_with_a_root_and_no_orphan(story)
    events.the_fold_of_the_events_is_the_result(story)
