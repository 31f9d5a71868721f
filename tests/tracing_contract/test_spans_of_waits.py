"""Sleeps, suspensions and waits for events are spans, so that every gap in the timeline has a name."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from spanflow import (
    Retry,
    StepContext,
    Workflow,
    step,
)
from spanflow.testing import FakeClock, Traces
from tests.tracing_contract.reading import (
    attributes,
    check_run,
    errors,
    is_error,
    parent_id,
    recorded,
    run_to_end,
    seconds,
    span_id,
    times,
)
from tests.tracing_contract.scenario import OutOfStock
from tests.tracing_contract.steps import (
    ask,
    same,
    twice,
    weigh,
    workflow,
)


async def test_a_sleep_is_a_span_of_its_length(traces: Traces) -> None:
    nested = workflow("inner").sleep(3600)
    await run_to_end(await workflow().then(same).then(nested).create_run(clock=FakeClock()), 1, traces)
    span = traces.one("sleep")
    assert seconds(span) == 3600
    assert parent_id(span) == span_id(traces.one("invoke_workflow inner"))
    assert attributes(span)["spanflow.step.path"] == "inner/sleep"


async def test_a_sleep_until_a_moment_is_a_span_up_to_that_moment(traces: Traces) -> None:
    clock = FakeClock()
    moment = clock.now + timedelta(days=40)
    await run_to_end(await workflow().sleep_until(moment).create_run(clock=clock), 1, traces)
    assert datetime.fromtimestamp(times(traces.one("sleep"))[1] / 1e9, UTC) == moment


async def test_a_sleep_whose_function_raises_is_recorded_once(traces: Traces) -> None:
    await run_to_end(await workflow().sleep(lambda value: value // 0).create_run(clock=FakeClock()), 1, traces)
    assert [type for _, type, _ in recorded(traces)] == ["ZeroDivisionError"]


async def test_a_canceled_sleep_is_a_span_up_to_the_cancel(traces: Traces) -> None:
    clock = FakeClock(auto=False)
    run = await workflow().sleep(3600).create_run(clock=clock)
    await run.stream(1)
    await clock.advance(60)
    await run.cancel()
    await check_run(run, traces)
    assert seconds(traces.one("sleep")) == 60
    assert not is_error(traces.one("sleep"))


async def test_a_suspension_is_a_span_between_the_two_attempts(traces: Traces) -> None:
    clock = FakeClock()
    run = await workflow().then(ask).create_run(clock=clock)
    assert (await run_to_end(run, 1, traces)).status == "suspended"
    await clock.advance(86_400)
    assert (await run.resume(5)).unwrap() == 5
    await check_run(run, traces)
    first, second = traces.find("step ask")
    wait = traces.one("wait ask")
    assert [attributes(each)["spanflow.step.attempt"] for each in (first, second)] == [1, 2]
    assert times(wait) == (times(first)[1], times(second)[0])
    assert seconds(wait) == 86_400
    assert parent_id(wait) == parent_id(first) == parent_id(second) == span_id(traces.one("invoke_workflow shop"))
    assert attributes(first)["spanflow.step.status"] == "suspended"
    assert errors(traces) == {}


async def test_each_question_of_a_step_has_its_own_wait(traces: Traces) -> None:
    @step
    async def ask_twice(value: int, ctx: StepContext) -> int:
        first = await ctx.suspend("first?", resume=int)
        return first + await ctx.suspend("second?", resume=int)

    result = await run_to_end(await workflow().then(ask_twice).create_run(clock=FakeClock()), 1, traces, 2, 3)
    assert result.unwrap() == 5
    assert len(traces.find("step ask_twice")) == 3
    assert len(traces.find("wait ask_twice")) == 2


async def test_a_step_that_asks_and_fails_and_asks_again_names_every_gap(traces: Traces) -> None:
    @step(retry=Retry(max_attempts=3, delay=5, jitter=0))
    async def stumble(value: int, ctx: StepContext) -> int:
        answer = await ctx.suspend("how many?", resume=int)
        if ctx.attempt == 2:
            raise OutOfStock("just now")
        return answer + await ctx.suspend("sure?", resume=int)

    await run_to_end(await workflow().then(stumble).create_run(clock=FakeClock()), 1, traces, 2, 3)
    assert [attributes(each)["spanflow.step.attempt"] for each in traces.find("step stumble")] == [1, 2, 3, 4]
    assert sorted(seconds(each) for each in traces.find("wait stumble")) == [0, 0, 5]


async def test_completed_steps_have_no_second_span_after_a_resume(traces: Traces) -> None:
    nested = workflow("inner").then(twice).then(ask)
    shop = workflow().then(same).parallel(nested, weigh).map(lambda both: both[0])
    await run_to_end(await shop.create_run(), 1, traces, 9)
    counted = Counter(span.name for span in traces.spans)
    assert counted["step same"] == counted["step twice"] == counted["step weigh"] == 1
    assert counted["execute_tool weigh"] == counted["invoke_workflow inner"] == counted["invoke_workflow shop"] == 1


async def test_a_nested_run_and_a_foreach_that_were_suspended_are_one_span_each_from_start_to_end(
    traces: Traces,
) -> None:
    clock = FakeClock()
    shop = Workflow("shop", input=list[int]).foreach(workflow("inner").then(same).then(ask), concurrency=2)
    run = await shop.create_run(clock=clock)
    await run_to_end(run, [1, 2], traces)
    await clock.advance(100)
    await run.resume(7, step="inner[1]/ask")
    await clock.advance(100)
    result = await run.resume(8, step="inner[0]/ask")
    assert result.unwrap() == [8, 7]
    await check_run(run, traces)
    foreach, (first, second) = traces.one("foreach inner"), traces.find("invoke_workflow inner")
    assert (seconds(foreach), seconds(first), seconds(second)) == (200, 200, 100)
    assert [attributes(each)["spanflow.foreach.index"] for each in (first, second)] == [0, 1]
    for span in (foreach, first, second):
        assert (attributes(span)["spanflow.succeeded"], attributes(span)["spanflow.failed"]) == (2, 0)


async def test_a_nested_run_that_is_canceled_after_a_resume_keeps_its_counts(traces: Traces) -> None:
    started = asyncio.Event()

    @step
    async def hang(value: int) -> int:
        started.set()
        await asyncio.Event().wait()
        return value

    nested = workflow("inner").then(same).then(ask).then(hang)
    run = await workflow().then(nested).create_run()
    await run.start(1)
    await run.resume_stream(2)
    await started.wait()
    await run.cancel()
    await check_run(run, traces)
    found = attributes(traces.one("invoke_workflow inner"))
    assert found["spanflow.step.status"] == "canceled"
    assert (found["spanflow.succeeded"], found["spanflow.failed"]) == (2, 0)


async def test_a_suspended_run_that_is_canceled_leaves_no_orphan_and_no_unnamed_gap(traces: Traces) -> None:
    clock = FakeClock()
    shop = Workflow("shop", input=list[int]).foreach(workflow("inner").then(same).then(ask))
    run = await shop.create_run(clock=clock)
    await run.start([1])
    await clock.advance(60)
    await run.cancel()
    await check_run(run, traces)
    assert seconds(traces.one("wait ask")) == 60
    assert attributes(traces.one("foreach inner"))["spanflow.step.status"] == "canceled"
    assert attributes(traces.one("invoke_workflow inner"))["spanflow.succeeded"] == 1


@pytest.mark.parametrize("ending", ["fail", "bail", "abort"])
async def test_a_run_that_ends_beside_a_suspended_arm_leaves_no_orphan(traces: Traces, ending: str) -> None:
    suspended = asyncio.Event()

    @step
    async def end(value: int, ctx: StepContext) -> int:
        await suspended.wait()
        if ending == "bail":
            ctx.bail(1)
        if ending == "abort":
            ctx.abort()
        raise OutOfStock("late")

    nested = workflow("inner").then(same).then(ask)
    run = await workflow().parallel(nested, end).create_run()
    async for event in await run.stream(1):
        if event.type == "step-suspended":
            suspended.set()
    await check_run(run, traces)
    assert len(traces.find("invoke_workflow inner")) == 1


async def test_frames_that_the_end_of_a_run_closes_count_and_say_what_any_other_does(traces: Traces) -> None:
    nested = workflow("inner").then(same).then(twice).then(ask)
    run = await Workflow("shop", input=list[int]).foreach(nested).create_run()
    await run.start([1, 2])
    await run.resume(4, step="inner[0]/ask")
    await run.cancel()
    await check_run(run, traces)
    found = attributes(traces.one("foreach inner"))
    assert (found["spanflow.succeeded"], found["spanflow.failed"]) == (1, 0)
    finished, closed = (attributes(span) for span in traces.find("invoke_workflow inner"))
    assert (finished["spanflow.succeeded"], closed["spanflow.succeeded"]) == (3, 2)
    assert [each["spanflow.foreach.index"] for each in (finished, closed)] == [0, 1]
    assert closed.keys() - finished.keys() == {"spanflow.step.status"}


async def test_a_wait_for_an_event_is_a_span_until_it_comes(traces: Traces) -> None:
    clock = FakeClock(auto=False)
    run = await workflow().wait_for_event("paid", int).create_run(clock=clock)
    stream = await run.stream(1)
    await clock.advance(30)
    await run.send_event("paid", 5)
    assert (await stream.get_workflow_state()).unwrap() == 5
    await check_run(run, traces)
    wait = traces.one("wait paid")
    assert seconds(wait) == 30
    assert parent_id(wait) == span_id(traces.one("invoke_workflow shop"))
    assert not is_error(wait)


async def test_an_event_that_does_not_come_in_time_is_an_error_of_its_wait(traces: Traces) -> None:
    shop = workflow().wait_for_event("paid", int, timeout=30)
    await run_to_end(await shop.create_run(clock=FakeClock()), 1, traces)
    assert errors(traces) == dict.fromkeys(["wait paid", "invoke_workflow shop"], "spanflow.errors.EventTimeout")
    assert [name for name, _, _ in recorded(traces)] == ["wait paid"]
    assert seconds(traces.one("wait paid")) == 30


async def test_a_wait_for_an_event_that_is_canceled_is_a_span_up_to_the_cancel(traces: Traces) -> None:
    clock = FakeClock(auto=False)
    run = await workflow().wait_for_event("paid", int).create_run(clock=clock)
    await run.stream(1)
    await clock.advance(30)
    await run.cancel()
    await check_run(run, traces)
    assert seconds(traces.one("wait paid")) == 30
    assert not is_error(traces.one("wait paid"))
