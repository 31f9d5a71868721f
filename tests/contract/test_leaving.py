"""A run ends before its last step: a step bails or aborts, or somebody cancels it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from spanflow import (
    InvalidOutput,
    Retry,
    Run,
    RunCanceled,
    RunConflict,
    StepContext,
    Workflow,
    WorkflowResult,
    step,
)
from spanflow.testing import FakeClock
from tests.contract.support import (
    Boom,
    double,
    endless,
    lines,
    list_of_int,
    never,
    recorded,
    result_of,
    turns,
    until,
    untyped,
)

# --- bail and abort


async def test_bail_ends_the_run_with_success_and_that_value() -> None:
    later: list[int] = []

    @step
    async def leave(value: int, ctx: StepContext) -> int:
        ctx.bail("early")
        later.append(1)

    @step
    async def after(value: int) -> int:
        later.append(2)
        return value

    result = await result_of(Workflow("flow", input=int).then(leave).then(after), 1)
    assert (result.status, result.result, later) == ("success", "early", [])
    assert result.unwrap() == "early"


async def test_bail_may_give_what_the_declared_output_allows_and_nothing_else() -> None:
    @step
    async def leave(value: Any, ctx: StepContext) -> int:
        ctx.bail(value)

    flow = Workflow("flow", input=Any, output=int).then(untyped(leave))
    assert (await result_of(flow, "7")).unwrap() == 7
    result = await result_of(flow, "seven")
    assert result.status == "failed"
    assert result.error is not None
    assert isinstance(result.error.exception, InvalidOutput)


def leaving(how: str) -> Any:
    """A step that leaves the run for 7, and lets any other number pass."""

    @step(id="leave")
    async def leave_async(value: int, ctx: StepContext) -> int:
        return _leave(value, ctx)

    @step(id="leave")
    def leave_plain(value: int, ctx: StepContext) -> int:
        return _leave(value, ctx)

    @step(id="leave")
    async def leave_in_group(value: int, ctx: StepContext) -> int:
        async def child() -> int:
            return _leave(value, ctx)

        async with asyncio.TaskGroup() as group:
            group.create_task(child())
        return value

    def _leave(value: int, ctx: StepContext) -> int:
        if value == 7:
            ctx.bail("bye") if how.startswith("bail") else ctx.abort("bye")
        return value

    if how.endswith("plain"):
        return leave_plain
    return leave_in_group if how.endswith("group") else leave_async


PLACES: dict[str, Callable[[Any], Workflow[Any, Any]]] = {
    "then": lambda leave: Workflow("flow", input=int).then(leave).then(never),
    "parallel": lambda leave: Workflow("flow", input=int).parallel(endless, leave).then(never),
    "parallel collect": lambda leave: (
        Workflow("flow", input=int).parallel(endless, leave, on_error="collect").then(never)
    ),
    "branch": lambda leave: Workflow("flow", input=int).branch((bool, leave)).then(never),
    "branch all": lambda leave: (
        Workflow("flow", input=int).branch((bool, leave), (bool, endless), mode="all").then(never)
    ),
    "foreach": lambda leave: (
        Workflow("flow", input=int).map(lambda value: [1, 7, 2]).map(list_of_int).foreach(leave).then(never)
    ),
    "foreach collect": lambda leave: (
        Workflow("flow", input=int)
        .map(lambda value: [1, 7, 2])
        .map(list_of_int)
        .foreach(leave, concurrency=2, on_error="collect")
        .then(never)
    ),
    "loop": lambda leave: Workflow("flow", input=int).do_while(leave, lambda value: True).then(never),
    "nested": lambda leave: (
        Workflow("flow", input=int)
        .then(Workflow("nested", input=int).then(leave).then(never))
        .then(never.with_id("n2"))
    ),
    "map": lambda leave: Workflow("flow", input=int).map(lambda value, ctx: leave.fn(value, ctx)).then(never),
    "nested in foreach in parallel": lambda leave: Workflow("flow", input=int).parallel(
        endless,
        Workflow("list", input=int)
        .map(lambda value: [1, 7])
        .map(list_of_int)
        .foreach(
            Workflow("nested", input=int).then(leave).then(endless.with_id("e2")), concurrency=2, on_error="collect"
        ),
    ),
}


@pytest.mark.parametrize("how", ["bail async", "bail plain", "bail group"])
@pytest.mark.parametrize("place", list(PLACES))
async def test_bail_ends_the_whole_run_from_anywhere(place: str, how: str) -> None:
    run = await PLACES[place](leaving(how)).create_run()
    async with asyncio.timeout(30):
        result = await run.start(7)
    assert (result.status, result.result) == ("success", "bye")
    assert result.error is None
    events = await recorded(run)
    assert [event.type for event in events].count("finish") == 1
    assert "running" not in {each.status for each in result.steps.values()}


@pytest.mark.parametrize("how", ["abort async", "abort plain", "abort group"])
@pytest.mark.parametrize("place", list(PLACES))
async def test_abort_cancels_the_whole_run_from_anywhere(place: str, how: str) -> None:
    run = await PLACES[place](leaving(how)).create_run()
    async with asyncio.timeout(30):
        result = await run.start(7)
    assert (result.status, result.result) == ("canceled", None)
    with pytest.raises(RunCanceled):
        result.unwrap()
    assert [event.type for event in await recorded(run)].count("finish") == 1
    assert "running" not in {each.status for each in result.steps.values()}


async def test_no_queued_item_starts_after_a_bail() -> None:
    go = asyncio.Event()
    started: list[int] = []

    @step
    async def work(value: int, ctx: StepContext) -> int:
        started.append(value)
        await go.wait()
        if value == 0:
            ctx.bail("done")
        return value

    run = await Workflow("flow", input=list[int]).foreach(work, concurrency=2).create_run()
    stream = await run.stream([0, 1, 2, 3])
    await turns()
    go.set()
    assert (await stream.get_workflow_state()).unwrap() == "done"
    assert started == [0, 1]


# --- cancel


async def canceled(run: Run[Any, Any]) -> WorkflowResult[Any]:
    async with asyncio.timeout(30):
        result = await run.cancel()
    assert result.status == "canceled"
    events = await recorded(run)
    assert events[-1].type == "finish"
    assert [event.type for event in events].count("finish") == 1
    assert (await run.wait()).status == "canceled"
    with pytest.raises(RunCanceled):
        result.unwrap()
    return result


async def test_cancel_stops_the_running_step_at_once_and_lets_it_clean_up() -> None:
    begun, cleaned = asyncio.Event(), asyncio.Event()

    @step
    async def work(value: int) -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await turns(2)
            cleaned.set()
        return value

    run = await Workflow("flow", input=int).then(work).then(never).create_run()
    stream = await run.stream(1)
    await begun.wait()
    result = await canceled(run)

    assert cleaned.is_set()
    assert result.steps["work"].status == "canceled"
    assert lines([event async for event in stream]) == [
        "start",
        "step-start work",
        "step-result work",
        "step-finish work",
        "finish",
    ]


@pytest.mark.parametrize("is_last", [True, False])
async def test_a_step_that_swallows_its_cancellation_does_not_save_the_run(is_last: bool) -> None:
    begun = asyncio.Event()

    @step
    async def stubborn(value: int) -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        return value

    flow = Workflow("flow", input=int).then(stubborn)
    run = await (flow if is_last else flow.then(never)).create_run()
    await run.stream(1)
    await begun.wait()
    result = await canceled(run)
    assert "never" not in result.steps


@pytest.mark.parametrize("place", ["loop", "nested", "parallel", "foreach", "branch all"])
async def test_cancel_reaches_into_every_container(place: str) -> None:
    begun = asyncio.Event()
    begins: list[int] = []

    @step
    async def work(value: int) -> int:
        begins.append(value)
        if len(begins) == 3 or place == "nested":
            begun.set()
        if place != "loop" or len(begins) == 3:
            await asyncio.Event().wait()
        return value

    flow = Workflow("flow", input=int)
    listed = flow.map(lambda value: [1, 2, 3, 4]).map(list_of_int)
    nested = Workflow("nested", input=int).then(work)
    flows: dict[str, Workflow[int, Any]] = {
        "loop": flow.do_while(nested, lambda value: True),
        "nested": flow.then(Workflow("middle", input=int).then(nested)),
        "parallel": flow.parallel(work, nested, work.with_id("w3")),
        "foreach": listed.foreach(nested, concurrency=3, on_error="collect"),
        "branch all": flow.branch((bool, work), (bool, nested), (bool, work.with_id("w3")), mode="all"),
    }
    run = await flows[place].then(never).create_run()
    await run.stream(1)
    await begun.wait()
    result = await canceled(run)
    await turns()

    assert "never" not in result.steps
    assert len(begins) == (1 if place == "nested" else 3)
    assert not {"running", "waiting"} & {each.status for each in result.steps.values()}


async def test_cancel_ends_a_sleep() -> None:
    clock = FakeClock(auto=False)
    run = await Workflow("flow", input=int).sleep(3600).then(never).create_run(clock=clock)
    await run.stream(1)
    await clock.advance(60)
    await canceled(run)
    begun = clock.now
    await clock.advance(7200)
    assert (await recorded(run))[-1].timestamp == int(begun.timestamp()) * 1_000_000_000


async def test_cancel_ends_a_wait_for_an_event() -> None:
    run = await Workflow("flow", input=int).wait_for_event("go").then(never).create_run()
    stream = await run.stream(1)
    await until(stream, "step-waiting")
    await canceled(run)


async def test_cancel_ends_the_delay_before_another_attempt_and_the_step_has_its_result() -> None:
    clock = FakeClock(auto=False)
    attempts: list[int] = []

    @step(retry=Retry(max_attempts=5, delay=60, jitter=0))
    async def work(value: int, ctx: StepContext) -> int:
        attempts.append(ctx.attempt)
        raise Boom("again")

    run = await Workflow("flow", input=int).then(work).create_run(clock=clock)
    await run.stream(1)
    await clock.advance(30)
    result = await canceled(run)
    assert attempts == [1]
    assert result.steps["work"].status == "canceled"
    assert lines(await recorded(run), only="work")[-2:] == ["step-result work", "step-finish work"]


async def test_cancel_ends_a_suspended_run() -> None:
    @step
    async def ask(value: int, ctx: StepContext) -> int:
        return await ctx.suspend("well?", resume=int)

    run = await Workflow("flow", input=int).then(ask).then(never).create_run()
    assert (await run.start(1)).status == "suspended"
    result = await run.cancel()
    assert result.status == "canceled"
    assert result.suspended == {}
    with pytest.raises(RunConflict):
        await run.resume(1)


async def test_cancel_of_a_run_that_is_over_leaves_it_as_it_is() -> None:
    run = await Workflow("flow", input=int).then(double).create_run()
    await run.start(1)
    before = lines(await recorded(run))
    result = await run.cancel()
    assert (result.status, result.result) == ("success", 2)
    assert lines(await recorded(run)) == before


async def test_two_cancels_at_once_end_in_one_finish() -> None:
    begun = asyncio.Event()

    @step
    async def work(value: int) -> int:
        begun.set()
        await asyncio.Event().wait()
        return value

    run = await Workflow("flow", input=int).then(work).create_run()
    await run.stream(1)
    await begun.wait()
    first, second = await asyncio.gather(run.cancel(), run.cancel())
    assert first.status == second.status == "canceled"
    assert [event.type for event in await recorded(run)].count("finish") == 1


async def test_to_be_canceled_while_waiting_for_a_run_does_not_stop_it() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @step
    async def work(value: int) -> int:
        begun.set()
        await go.wait()
        return value

    run = await Workflow("flow", input=int).then(work).create_run()
    waiter = asyncio.create_task(run.start(1))
    await begun.wait()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    go.set()
    assert (await run.wait()).unwrap() == 1
