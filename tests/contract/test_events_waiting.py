"""Runs wait for a time or for an event, of any length, and a test of months takes no time."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import BaseModel

from spanflow import (
    EventTimeout,
    InvalidInput,
    InvalidOutput,
    RunConflict,
    Runtime,
    SpanflowError,
    StepContext,
    UnknownEvent,
    Workflow,
    step,
)
from spanflow.testing import FakeClock
from tests.contract.support import lines, read_all, read_up_to_now, recorded, turns, until

START = datetime(2026, 1, 1, tzinfo=UTC)


class Approval(BaseModel):
    approved: bool
    by: str = "nobody"


@step
async def double(value: int) -> int:
    return 2 * value


@step
async def describe(approval: Approval) -> str:
    return f"{approval.approved} by {approval.by}"


def still() -> FakeClock:
    """A clock that moves only when it is told to."""
    return FakeClock(START, auto=False)


# --- sleeping


async def test_a_sleep_hands_its_input_on_when_its_time_is_over_and_not_before() -> None:
    clock = still()
    run = await Workflow("flow", input=int).then(double).sleep(60).then(double.with_id("d2")).create_run(clock=clock)
    stream = await run.stream(1)
    await clock.advance(59.9)
    assert lines(await read_up_to_now(run))[-1] == "step-waiting sleep"
    await clock.advance(0.1)
    assert (await stream.get_workflow_state()).unwrap() == 4


async def test_months_of_sleep_are_over_at_once_on_a_fake_clock() -> None:
    clock = FakeClock(START)
    run = await Workflow("flow", input=int).sleep(90 * 24 * 3600).then(double).create_run(clock=clock)
    assert (await run.start(1)).unwrap() == 2
    assert clock.now == START + timedelta(days=90)


@pytest.mark.parametrize("seconds", [0, 0.25, 12])
async def test_the_length_of_a_sleep_may_be_a_function_of_the_value(seconds: float) -> None:
    clock = FakeClock(START)
    flow = Workflow("flow", input=float).sleep(lambda value: value).sleep(_twice)
    assert (await (await flow.create_run(clock=clock)).start(seconds)).unwrap() == seconds
    assert clock.now == START + timedelta(seconds=3 * seconds)


async def _twice(value: float, ctx: StepContext) -> float:
    assert ctx.init_data == value
    return 2 * value


@pytest.mark.parametrize(
    "moment",
    [datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 1, 5, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))],
)
async def test_sleep_until_waits_for_a_moment_in_any_time_zone(moment: datetime) -> None:
    clock = FakeClock(START)
    run = await Workflow("flow", input=int).sleep_until(moment).then(double).create_run(clock=clock)
    assert (await run.start(1)).unwrap() == 2
    assert clock.now == datetime(2026, 3, 1, tzinfo=UTC)


async def test_sleep_until_takes_a_function_too() -> None:
    def after(value: int, ctx: StepContext) -> datetime:
        return START + timedelta(days=value)

    clock = FakeClock(START)
    await (await Workflow("flow", input=int).sleep_until(after).create_run(clock=clock)).start(3)
    assert clock.now == START + timedelta(days=3)


async def test_a_moment_that_has_passed_is_no_wait() -> None:
    clock = still()
    run = await Workflow("flow", input=int).sleep_until(START - timedelta(days=1)).then(double).create_run(clock=clock)
    async with asyncio.timeout(30):
        assert (await run.start(1)).unwrap() == 2
    assert clock.now == START


@pytest.mark.parametrize("told", [-1, float("inf"), float("nan"), "soon", None])
async def test_a_sleep_function_that_tells_no_time_fails_the_run(told: Any) -> None:
    def seconds(value: Any) -> Any:
        return told

    result = await (await Workflow("flow", input=int).sleep(seconds).create_run(clock=FakeClock())).start(1)
    assert result.status == "failed"
    assert result.error is not None
    assert isinstance(result.error.exception, InvalidOutput)
    assert repr(told) in result.error.message
    assert "seconds" in result.error.message


@pytest.mark.parametrize("told", [datetime(2026, 3, 1), "tomorrow", 12, None])  # noqa: DTZ001  # that is the point
async def test_a_sleep_until_function_that_tells_no_moment_fails_the_run(told: Any) -> None:
    def moment(value: Any) -> Any:
        return told

    result = await (await Workflow("flow", input=int).sleep_until(moment).create_run(clock=FakeClock())).start(1)
    assert result.status == "failed"
    assert result.error is not None
    assert isinstance(result.error.exception, InvalidOutput)
    assert "time zone" in result.error.message


async def test_a_sleep_function_that_raises_fails_the_run_with_what_it_raised() -> None:
    def seconds(value: int) -> float:
        raise KeyError("no such plan")

    result = await (await Workflow("flow", input=int).sleep(seconds).create_run()).start(1)
    assert result.error is not None
    assert isinstance(result.error.exception, KeyError)


async def test_sleeps_side_by_side_take_the_longest_of_them() -> None:
    nap = Workflow("nap", input=int).sleep(lambda value: value)
    clock = FakeClock(START)
    run = await Workflow("flow", input=list[int]).foreach(nap, concurrency=3).create_run(clock=clock)
    assert (await run.start([10, 30, 20])).unwrap() == [10, 30, 20]
    assert clock.now == START + timedelta(seconds=30)


async def test_a_sleep_in_a_loop_sleeps_in_every_iteration() -> None:
    body = Workflow("body", input=int).sleep(10).then(double)
    clock = FakeClock(START)
    run = await Workflow("flow", input=int).do_while(body, lambda value: value < 8).create_run(clock=clock)
    assert (await run.start(1)).unwrap() == 8
    assert clock.now == START + timedelta(seconds=30)


async def test_a_sleep_reports_when_it_will_be_over() -> None:
    run = await Workflow("flow", input=int).sleep(60, id="nap").create_run(clock=FakeClock(START))
    events = await read_all(await run.stream(1))
    assert lines(events) == ["start", "step-waiting nap", "step-result nap", "step-finish nap", "finish"]
    waiting = events[1]
    assert waiting.type == "step-waiting"
    assert waiting.payload.until == int((START + timedelta(seconds=60)).timestamp()) * 1_000_000_000
    assert waiting.payload.event is None


# --- waiting for an event


APPROVED = Workflow("flow", input=int).then(double).wait_for_event("approved", Approval, timeout=3600).then(describe)


async def test_a_run_waits_until_its_event_comes_and_goes_on_with_the_payload() -> None:
    run = await APPROVED.create_run(clock=still())
    stream = await run.stream(1)
    waiting = await until(stream, "step-waiting")
    assert (waiting.payload.id, waiting.payload.event) == ("approved", "approved")
    await turns()
    assert lines(await read_up_to_now(run))[-1] == "step-waiting approved"

    await run.send_event("approved", {"approved": True, "by": "ada"})
    result = await stream.get_workflow_state()
    assert result.unwrap() == "True by ada"
    assert result.steps["approved"].output == Approval(approved=True, by="ada")


async def test_an_event_may_be_sent_through_another_handle_of_the_runtime() -> None:
    async with Runtime(workflows=[APPROVED]) as runtime:
        run = await runtime.create_run(APPROVED, run_id="r-1")
        stream = await run.stream(1)
        await until(stream, "step-waiting")
        await (await runtime.get_run("r-1")).send_event("approved", Approval(approved=False))
        assert (await stream.get_workflow_state()).unwrap() == "False by nobody"


async def test_an_event_sent_before_the_start_is_kept() -> None:
    run = await APPROVED.create_run()
    await run.send_event("approved", {"approved": True, "by": "early"})
    assert (await run.start(1)).unwrap() == "True by early"


async def test_an_event_sent_before_the_run_waits_is_kept() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @step
    async def work(value: int) -> int:
        begun.set()
        await go.wait()
        return value

    run = await Workflow("flow", input=int).then(work).wait_for_event("go", str).create_run()
    stream = await run.stream(1)
    await begun.wait()
    await run.send_event("go", "kept")
    go.set()
    assert (await stream.get_workflow_state()).unwrap() == "kept"


@pytest.mark.parametrize("when", ["before the start", "before the suspension", "while suspended"])
async def test_an_event_is_kept_over_a_suspension(when: str) -> None:
    begun = asyncio.Event()

    @step
    async def ask(value: int, ctx: StepContext) -> int:
        begun.set()
        await turns()
        return await ctx.suspend(resume=int)

    run = await Workflow("flow", input=int).then(ask).wait_for_event("go", str).create_run()
    if when == "before the start":
        await run.send_event("go", "kept")
    stream = await run.stream(1)
    if when == "before the suspension":
        await begun.wait()
        await run.send_event("go", "kept")
    assert (await stream.get_workflow_state()).status == "suspended"
    if when == "while suspended":
        await run.send_event("go", "kept")
    async with asyncio.timeout(30):
        assert (await run.resume(1)).unwrap() == "kept"


async def test_events_of_one_name_are_taken_in_the_order_they_were_sent_and_once_each() -> None:
    flow = (
        Workflow("flow", input=int)
        .wait_for_event("word", str)
        .wait_for_event("word", str, id="second")
        .map(lambda value, ctx: [ctx.result_of("word"), value])
    )
    run = await flow.create_run()
    await run.send_event("word", "one")
    stream = await run.stream(1)
    await until(stream, "step-waiting", "second")
    await run.send_event("word", "two")
    assert (await stream.get_workflow_state()).unwrap() == ["one", "two"]


async def test_an_event_taken_before_a_suspension_is_not_taken_again_after_it() -> None:
    @step
    async def ask(value: str, ctx: StepContext) -> str:
        return await ctx.suspend(resume=str)

    flow = Workflow("flow", input=int).wait_for_event("word", str).then(ask).wait_for_event("word", str, id="second")
    run = await flow.create_run(clock=still())
    await run.send_event("word", "one")
    await run.start(1)
    stream = await run.resume_stream("yes")
    await until(stream, "step-waiting", "second")
    await turns()
    assert lines(await read_up_to_now(run))[-1] == "step-waiting second"
    await run.send_event("word", "two")
    assert (await stream.get_workflow_state()).unwrap() == "two"


async def test_waits_for_different_events_side_by_side_take_each_their_own() -> None:
    left = Workflow("left", input=int).wait_for_event("l", str)
    right = Workflow("right", input=int).wait_for_event("r", int)
    run = await Workflow("flow", input=int).parallel(left, right).create_run()
    stream = await run.stream(1)
    await until(stream, "step-waiting")
    await until(stream, "step-waiting")
    await run.send_event("r", "7")
    await turns()
    await run.send_event("l", "seven")
    assert (await stream.get_workflow_state()).unwrap() == ("seven", 7)


async def test_a_nested_workflow_in_a_loop_waits_for_its_event_each_time() -> None:
    body = Workflow("body", input=int).wait_for_event("number", int)
    run = await Workflow("flow", input=int).do_until(body, lambda value: value == 3).create_run()
    stream = await run.stream(0)
    for number in (1, 2, 3):
        await until(stream, "step-waiting", f"body#{number}/number")
        await run.send_event("number", number)
    assert (await stream.get_workflow_state()).unwrap() == 3


async def test_an_event_without_a_payload_model_carries_anything_or_nothing() -> None:
    flow = Workflow("flow", input=int).wait_for_event("go")
    for payload in ({"a": [1]}, None, 7):
        run = await flow.create_run()
        await run.send_event("go", payload)
        assert (await run.start(1)).unwrap() == payload


# --- the event that does not come


async def test_an_event_that_does_not_come_in_time_fails_the_run() -> None:
    clock = still()
    run = await APPROVED.create_run(clock=clock)
    stream = await run.stream(1)
    await clock.advance(3599)
    assert lines(await read_up_to_now(run))[-1] == "step-waiting approved"
    await clock.advance(1)
    result = await stream.get_workflow_state()

    assert result.status == "failed"
    assert result.error is not None
    error = result.error.exception
    assert isinstance(error, EventTimeout)
    assert (error.name, error.path, error.timeout) == ("approved", "approved", 3600)
    assert [word for word in ("'approved'", "3600", "send_event", "timeout") if word not in str(error)] == []
    assert lines(await recorded(run))[-3:] == ["step-result approved", "step-finish approved", "finish"]


async def test_other_events_do_not_prolong_the_wait() -> None:
    clock = still()
    flow = Workflow("flow", input=int).wait_for_event("first", timeout=60).wait_for_event("second", timeout=60)
    run = await flow.create_run(clock=clock)
    stream = await run.stream(1)
    for _ in range(5):
        await clock.advance(10)
        await run.send_event("second", "too early")
    await clock.advance(9.9)
    assert lines(await read_up_to_now(run))[-1] == "step-waiting first"
    await clock.advance(0.1)
    assert (await stream.get_workflow_state()).status == "failed"


async def test_without_a_timeout_a_run_waits_for_ever() -> None:
    clock = still()
    run = await Workflow("flow", input=int).wait_for_event("go", str).create_run(clock=clock)
    stream = await run.stream(1)
    await clock.advance(10 * 365 * 24 * 3600)
    assert lines(await read_up_to_now(run))[-1] == "step-waiting go"
    await run.send_event("go", "at last")
    assert (await stream.get_workflow_state()).unwrap() == "at last"


# --- events that are refused


async def test_an_unknown_event_name_is_refused_with_those_the_workflow_knows() -> None:
    nested = Workflow("nested", input=int).wait_for_event("inner", str)
    flow = Workflow("flow", input=int).parallel(nested, Workflow("n2", input=int).wait_for_event("other", str))
    run = await flow.create_run()
    with pytest.raises(UnknownEvent) as caught:
        await run.send_event("outer", "x")
    assert [word for word in ("'outer'", "'flow'", "'inner'", "'other'") if word not in str(caught.value)] == []
    assert (caught.value.name, set(caught.value.known)) == ("outer", {"inner", "other"})

    with pytest.raises(UnknownEvent, match="no events"):
        await (await Workflow("none", input=int).then(double).create_run()).send_event("go")


async def test_a_payload_that_does_not_fit_is_refused_and_the_run_still_waits() -> None:
    run = await APPROVED.create_run(clock=still())
    stream = await run.stream(1)
    await until(stream, "step-waiting")
    before = lines(await read_up_to_now(run))
    with pytest.raises(InvalidInput) as caught:
        await run.send_event("approved", {"by": "ada"})
    assert [word for word in ("'approved'", "Approval", "approved") if word not in str(caught.value)] == []
    await turns()
    assert lines(await read_up_to_now(run)) == before
    await run.send_event("approved", {"approved": True})
    assert (await stream.get_workflow_state()).status == "success"


async def test_an_event_for_a_run_that_is_over_is_refused() -> None:
    run = await APPROVED.create_run()
    await run.send_event("approved", {"approved": True})
    await run.start(1)
    before = lines(await recorded(run))
    with pytest.raises(RunConflict, match="success"):
        await run.send_event("approved", {"approved": True})
    assert lines(await recorded(run)) == before


async def test_every_refusal_is_a_spanflow_error() -> None:
    assert all(issubclass(each, SpanflowError) for each in (UnknownEvent, InvalidInput, RunConflict, EventTimeout))
