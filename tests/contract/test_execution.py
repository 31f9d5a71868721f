"""What a run does with its steps: order, values, failure, nesting, threads; and runs side by side."""

import asyncio
import contextvars
import gc
import threading
import weakref
from typing import Any

import pytest
from pydantic import BaseModel

from spanflow import (
    DefinitionError,
    InvalidOutput,
    MemoryStore,
    RunFailed,
    RunSuspended,
    Runtime,
    StepContext,
    TracingOptions,
    Workflow,
    step,
    tool,
)
from tests.contract.support import (
    Boom,
    as_int,
    describe,
    double,
    explode,
    increment,
    lines,
    recorded,
    result_of,
    turns,
    untyped,
)

# --- one after the other


async def test_each_step_gets_the_output_of_the_one_before() -> None:
    flow = Workflow("flow", input=int).then(double).then(increment).then(describe)

    result = await result_of(flow, 3)

    assert result.status == "success"
    assert result.result == "number 7"
    assert result.unwrap() == "number 7"
    assert {path: each.output for path, each in result.steps.items()} == {
        "double": 6,
        "increment": 7,
        "describe": "number 7",
    }
    assert {each.status for each in result.steps.values()} == {"success"}
    assert result.error is None
    assert result.suspended == {}


async def test_values_are_validated_in_and_out_of_each_step() -> None:
    class Numbers(BaseModel):
        numbers: list[int]

    @step
    async def take(value: Numbers) -> Numbers:
        assert isinstance(value, Numbers)
        return untyped({"numbers": [*value.numbers, "4"]})

    @step
    async def total(value: Numbers) -> int:
        return sum(value.numbers)

    flow = Workflow("flow", input=Numbers).then(take).then(total)
    assert (await result_of(flow, {"numbers": ["1", 2]})).unwrap() == 7


async def test_a_step_without_ctx_a_plain_def_and_a_lambda_map_run_alike() -> None:
    @step
    def plain(value: int) -> int:
        return value + 10

    flow = Workflow("flow", input=int).then(plain).map(lambda value: value * 2).map(double_in_words).then(describe)
    assert (await result_of(flow, 1)).unwrap() == "number 22"


async def double_in_words(value: int) -> int:
    return value


async def test_a_result_that_does_not_fit_the_declared_output_fails_the_run() -> None:
    class Answer(BaseModel):
        text: str

    @step
    async def give(value: int) -> Any:
        return {"words": value}

    result = await result_of(Workflow("flow", input=int, output=Answer).then(give), 1)
    assert result.status == "failed"
    assert result.error is not None
    assert "text" in result.error.message
    assert isinstance(result.error.exception, InvalidOutput)


# --- failure


async def test_a_failed_step_is_a_failed_result_not_an_exception() -> None:
    later: list[int] = []

    @step
    async def after(value: int) -> int:
        later.append(value)
        return value

    result = await result_of(Workflow("flow", input=int).then(double).then(explode).then(after), 2)

    assert result.status == "failed"
    assert result.result is None
    assert later == []
    assert result.error is not None
    assert result.error.path == "explode"
    assert result.error.type.endswith("Boom")
    assert result.error.message == "cannot do 4"
    assert "raise Boom" in result.error.traceback
    assert isinstance(result.error.exception, Boom)
    assert result.steps["explode"].status == "failed"


async def test_unwrap_of_a_failed_run_raises_with_the_users_exception_as_cause() -> None:
    result = await result_of(Workflow("flow", input=int).then(explode), 2)
    with pytest.raises(RunFailed) as caught:
        result.unwrap()
    assert isinstance(caught.value.__cause__, Boom)
    assert caught.value.__cause__.__traceback__ is not None
    assert caught.value.path == "explode"
    assert caught.value.run_id == result.run_id
    assert "cannot do 2" in str(caught.value)


async def test_a_failure_in_a_nested_workflow_names_the_whole_path() -> None:
    inner = Workflow("inner", input=int).then(double).then(explode)
    result = await result_of(Workflow("flow", input=int).then(Workflow("middle", input=int).then(inner)), 2)
    assert result.error is not None
    assert result.error.path == "middle/inner/explode"
    assert result.steps["middle/inner/double"].status == "success"


async def test_an_exception_group_out_of_a_steps_own_task_group_fails_the_step() -> None:
    @step
    async def grouped(value: int) -> int:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(3600))
            raise Boom("in a group")

    result = await result_of(Workflow("flow", input=int).then(grouped), 1)
    assert result.status == "failed"
    assert result.error is not None
    assert isinstance(result.error.exception, ExceptionGroup)


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_step_that_runs_into_the_end_of_an_iterator_fails_and_does_not_hang(is_async: bool) -> None:
    @step
    async def first_async(values: list[int]) -> int:
        return next(iter(values))

    @step
    def first_plain(values: list[int]) -> int:
        return next(iter(values))

    flow = Workflow("flow", input=list[int])
    run = await (flow.then(first_async) if is_async else flow.then(first_plain)).create_run()
    async with asyncio.timeout(30):
        result = await run.start([])
    assert result.status == "failed"


async def test_a_step_that_cancels_itself_fails_and_does_not_cancel_the_run() -> None:
    @step
    async def give_up(value: int) -> int:
        raise asyncio.CancelledError

    result = await result_of(Workflow("flow", input=int).then(give_up), 1)
    assert result.status == "failed"


async def test_an_exception_that_cannot_describe_itself_still_fails_the_run() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @step
    async def mute(value: int) -> int:
        raise Mute

    result = await result_of(Workflow("flow", input=int).then(mute), 1)
    assert result.status == "failed"
    assert result.error is not None
    assert result.error.path == "mute"
    assert isinstance(result.error.exception, Mute)


# --- nesting


async def test_a_workflow_stands_wherever_a_step_may_stand() -> None:
    inner = Workflow("inner", input=int).then(double).then(increment)  # 2n + 1
    flow = (
        Workflow("flow", input=int)
        .then(inner)  # 1 → 3
        .parallel(inner.with_id("left"), double)  # 7, 6
        .map(lambda pair: pair[0] + pair[1], id="sum")
        .map(as_int)
        .branch((lambda value: value > 10, inner.with_id("big")), default=double.with_id("small"))  # 27
        .do_while(inner.with_id("grow"), lambda value: value < 100)  # 55, 111
        .map(as_list)
        .foreach(inner.with_id("each"), concurrency=2)
    )
    result = await result_of(flow, 1)
    assert result.unwrap() == [223, 3]
    assert [path for path in result.steps if path.endswith("/double")] == [
        "inner/double",
        "left/double",
        "big/double",
        "grow#1/double",
        "grow#2/double",
        "each[0]/double",
        "each[1]/double",
    ]


def as_list(value: int) -> list[int]:
    return [value, 1]


async def test_containers_nest_in_containers_through_workflows() -> None:
    pair = Workflow("pair", input=int).parallel(double, increment).map(sum, id="sum").map(as_int)
    rows = Workflow("rows", input=list[int]).foreach(pair, concurrency=2)
    table = Workflow("table", input=list[list[int]]).foreach(rows, concurrency=2, on_error="collect")
    outcomes = (await result_of(table, [[1, 2], [3]])).unwrap()
    assert [each.value for each in outcomes] == [[4, 7], [10]]


async def test_a_nested_workflow_sees_its_own_input_and_id() -> None:
    @step
    async def look(value: int, ctx: StepContext) -> str:
        return f"{ctx.workflow_id} {ctx.init_data} {ctx.path} {ctx.step_id}"

    nested = Workflow("nested", input=int).then(increment).then(look)
    result = await result_of(Workflow("flow", input=int).then(double).then(nested), 4)
    assert result.unwrap() == "nested 8 nested/look look"


async def test_a_run_of_another_workflow_inside_a_step_is_a_run_of_its_own() -> None:
    inner = Workflow("inner", input=int).then(double)

    @step
    async def outer_step(value: int, ctx: StepContext) -> int:
        run = await inner.create_run()
        assert run.run_id != ctx.run_id
        return (await run.start(value)).unwrap()

    assert (await result_of(Workflow("flow", input=int).then(outer_step).then(increment), 4)).unwrap() == 9


# --- plain def steps


who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


async def test_a_plain_def_runs_in_another_thread_with_the_callers_context() -> None:
    threads: list[int] = []

    @step
    def look(value: int) -> str:
        threads.append(threading.get_ident())
        return who.get()

    token = who.set("ada")
    try:
        assert (await result_of(Workflow("flow", input=int).then(look), 1)).unwrap() == "ada"
    finally:
        who.reset(token)
    assert threads
    assert threading.get_ident() not in threads


async def test_a_plain_def_has_all_of_ctx() -> None:
    @tool
    def add(a: int, b: int) -> int:
        return a + b

    @step
    def work(value: int, ctx: StepContext) -> int:
        ctx.emit("half way")
        ctx.set_state(seen=value)
        ctx.tracing_context.current_span.set_attribute("value", value)
        return add(a=value, b=ctx.attempt)

    run = await Workflow("flow", input=int).then(work).create_run()
    stream = await run.stream(4)
    events = [event async for event in stream]

    assert [event.type for event in events if event.path == "work"] == [
        "step-start",
        "step-output",
        "tool-call",
        "tool-result",
        "step-result",
        "step-finish",
    ]
    result = await stream.get_workflow_state()
    assert result.unwrap() == 5
    assert result.state["seen"] == 4


async def test_plain_defs_run_side_by_side() -> None:
    barrier = threading.Barrier(2, timeout=10)

    @step
    def left(value: int) -> int:
        return barrier.wait()

    result = await result_of(Workflow("flow", input=int).parallel(left, left.with_id("right")), 1)
    assert sorted(result.unwrap()) == [0, 1]


async def test_what_a_thread_still_does_after_its_run_was_canceled_is_not_recorded() -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    @tool
    def late(value: int) -> int:
        return value

    @step
    def slow(value: int) -> int:
        begun.set()
        go.wait(10)
        try:
            return late(value)
        finally:
            done.set()

    run = await Workflow("flow", input=int).then(slow).create_run()
    await run.stream(1)
    await asyncio.to_thread(begun.wait, 10)
    await run.cancel()
    before = lines(await recorded(run))
    go.set()
    await asyncio.to_thread(done.wait, 10)
    await turns()
    assert lines(await recorded(run)) == before
    assert before[-1] == "finish"


# --- runs and runtimes


async def test_a_runtime_finds_its_runs_again() -> None:
    flow, other = Workflow("flow", input=int).then(double), Workflow("other", input=int).then(explode)
    async with Runtime(store=MemoryStore(), workflows=[flow, other]) as runtime:
        first = await runtime.create_run(flow, run_id="r-1", resource_id="order-7")
        await first.start(4)
        await (await runtime.create_run(other, run_id="r-2")).start(4)

        found = await runtime.get_run("r-1")
        assert (await found.wait()).unwrap() == 8
        assert lines(await recorded(found)) == lines(await recorded(first))
        assert {run.run_id for run in await runtime.find_runs()} == {"r-1", "r-2"}
        assert [run.run_id for run in await runtime.find_runs(status="failed")] == ["r-2"]
        assert [run.run_id for run in await runtime.find_runs(workflow="flow")] == ["r-1"]


async def test_runs_are_found_by_their_metadata() -> None:
    flow = Workflow("flow", input=int).then(double)
    async with Runtime(workflows=[flow]) as runtime:
        for user in ("ada", "bob"):
            run = await runtime.create_run(flow, run_id=f"r-{user}")
            await run.start(1, tracing_options=TracingOptions(metadata={"user.id": user, "team": "x"}))
        assert [run.run_id for run in await runtime.find_runs(metadata={"user.id": "bob"})] == ["r-bob"]
        assert len(await runtime.find_runs(metadata={"team": "x"})) == 2


async def test_leaving_a_runtime_stops_what_executes_on_it() -> None:
    begun, cleaned = asyncio.Event(), asyncio.Event()

    @step
    async def work(value: int) -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
        return value

    flow = Workflow("flow", input=int).then(work)
    async with Runtime(workflows=[flow]) as runtime:
        run = await runtime.create_run(flow)
        await run.stream(1)
        await begun.wait()
    assert cleaned.is_set()
    assert (await run.wait()).status == "canceled"


class Last(BaseModel):
    seen: int = 0


async def test_runs_side_by_side_do_not_mix() -> None:
    flow = Workflow("flow", input=int, state=Last).then(double).map(remember).then(increment)
    runs = [await flow.create_run() for _ in range(20)]
    results = await asyncio.gather(*(run.start(number) for number, run in enumerate(runs)))
    assert [result.unwrap() for result in results] == [2 * number + 1 for number in range(20)]
    assert [result.state.seen for result in results] == [2 * number for number in range(20)]


async def remember(value: int, ctx: StepContext) -> int:
    await ctx.set_state(seen=value)
    await turns(value % 5)
    return value


async def test_unwrap_of_a_suspended_run_names_what_waits() -> None:
    @step
    async def ask(value: int, ctx: StepContext) -> int:
        return await ctx.suspend({"question": value}, resume=int)

    result = await result_of(Workflow("flow", input=int).then(ask), 1)
    with pytest.raises(RunSuspended, match="'ask'") as caught:
        result.unwrap()
    assert caught.value.suspended == {"ask": {"question": 1}}


async def test_a_step_that_takes_ctx_cannot_be_called_without_one() -> None:
    @step
    async def look(value: int, ctx: StepContext) -> int:
        return value

    with pytest.raises(DefinitionError, match="ctx"):
        await look(1)


async def test_what_a_run_held_is_gone_with_it_and_waits_for_no_garbage_collector() -> None:
    """Else busy processes run on memory that is never warm: that was a tenth of what a run costs."""

    class Held(BaseModel):
        number: int

    made: list[weakref.ref[Held]] = []

    @step
    async def make(value: int) -> Held:
        held = Held(number=value)
        made.append(weakref.ref(held))
        return held

    flow = Workflow("flow", input=int).then(make)
    gc.disable()
    try:
        assert (await result_of(flow, 1)).status == "success"
        stream = await (await flow.create_run()).stream(2)
        assert [event.type async for event in stream][-1] == "finish"
        del stream
        await turns(2)
        assert [held() for held in made] == [None, None]
    finally:
        gc.enable()
