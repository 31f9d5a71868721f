"""Spans of runs, steps and tools as the contract tables them: name, attributes, parent, status, errors once."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from spanflow import (
    InvalidInput,
    InvalidOutput,
    Retry,
    Step,
    StepContext,
    StepTimeout,
    Workflow,
    step,
    tool,
)
from spanflow.testing import FakeClock, Traces
from tests.tracing_contract.processes import in_process
from tests.tracing_contract.reading import (
    attributes,
    check_run,
    errors,
    exceptions,
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
    OUT_OF_STOCK,
    fail,
    last_forever,
    same,
    twice,
    weigh,
    weigh_nothing,
    workflow,
)

# ---------------------------------------------------------------- attributes are given at the start


AT_THE_END = {
    "spanflow.run.status",
    "spanflow.step.status",
    "spanflow.succeeded",
    "spanflow.failed",
    "error.type",
}


def test_samplers_see_all_attributes_but_those_that_only_the_end_knows() -> None:
    facts = in_process("""
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from tests.tracing_contract.hostile import RecordingSampler
        from tests.tracing_contract.scenario import everything, run_everything

        sampler, memory = RecordingSampler(), InMemorySpanExporter()
        provider = TracerProvider(sampler)
        provider.add_span_processor(SimpleSpanProcessor(memory))
        trace.set_tracer_provider(provider)

        async def main():
            return await run_everything(await everything.create_run())

        asyncio.run(main())
        show(
            asked=sampler.asked,
            exported=[(span.name, dict(span.attributes)) for span in memory.get_finished_spans()],
        )
    """).facts

    def known_at_the_start(spans: list[tuple[str, dict[str, Any]]]) -> Counter[str]:
        return Counter(
            f"{name} {sorted((key, value) for key, value in found.items() if key not in AT_THE_END)}"
            for name, found in spans
        )

    asked, exported = facts["asked"], facts["exported"]
    assert not AT_THE_END & {key for _, found in asked for key in found}
    assert known_at_the_start(asked) == known_at_the_start(exported)
    assert {"execute_tool spell", "step quote", "foreach quote", "sleep", "wait approve", "wait flaky"} <= {
        name for name, _ in asked
    }


# ---------------------------------------------------------------- run


async def test_a_run_is_a_span_named_for_its_workflow(traces: Traces) -> None:
    run = await workflow().then(same).create_run(run_id="run-1")
    await run_to_end(run, 1, traces)
    root = traces.one("invoke_workflow shop")
    assert root.parent is None
    assert attributes(root) == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "shop",
        "spanflow.run.id": "run-1",
        "spanflow.run.status": "success",
    }
    assert not is_error(root)
    assert root.instrumentation_scope is not None
    assert root.instrumentation_scope.name == "spanflow"


async def test_a_failed_run_says_so_without_repeating_the_exception(traces: Traces) -> None:
    result = await run_to_end(await workflow().then(same).then(fail).create_run(), 3, traces)
    assert result.status == "failed"
    root = traces.one("invoke_workflow shop")
    assert attributes(root)["spanflow.run.status"] == "failed"
    assert errors(traces) == {"invoke_workflow shop": OUT_OF_STOCK, "step fail": OUT_OF_STOCK}
    assert recorded(traces) == [("step fail", OUT_OF_STOCK, "no 3")]


async def test_a_canceled_run_and_its_step_are_no_errors(traces: Traces) -> None:
    started = asyncio.Event()

    @step
    async def wait_here(value: int) -> int:
        started.set()
        await asyncio.Event().wait()
        return value

    run = await workflow().then(wait_here).create_run()
    await run.stream(1)
    await started.wait()
    assert (await run.cancel()).status == "canceled"
    await check_run(run, traces)
    assert attributes(traces.one("invoke_workflow shop"))["spanflow.run.status"] == "canceled"
    assert attributes(traces.one("step wait_here"))["spanflow.step.status"] == "canceled"
    assert errors(traces) == {}
    assert recorded(traces) == []


async def test_a_canceled_run_ends_every_span_that_is_open(traces: Traces) -> None:
    started = asyncio.Event()

    @tool
    async def hang(item: int) -> int:
        """Hang."""
        started.set()
        await asyncio.Event().wait()
        return item

    @step
    async def call(value: int) -> int:
        return await hang(item=value)

    inner = Workflow("inner", input=list[int]).foreach(call, concurrency=2)
    run = await Workflow("outer", input=list[int]).parallel(inner, inner.with_id("inner2")).create_run()
    await run.stream([1, 2, 3])
    await started.wait()
    await run.cancel()
    await check_run(run, traces)
    assert Counter(span.name for span in traces.spans) == {
        "invoke_workflow outer": 1,
        "invoke_workflow inner": 1,
        "invoke_workflow inner2": 1,
        "foreach call": 2,
        "step call": 4,
        "execute_tool hang": 4,
    }
    assert errors(traces) == {}


async def test_a_run_that_bails_succeeds(traces: Traces) -> None:
    started = asyncio.Event()

    @step
    async def stay(value: int) -> int:
        started.set()
        await asyncio.Event().wait()
        return value

    @step
    async def leave(value: int, ctx: StepContext) -> int:
        await started.wait()
        ctx.bail(7)

    result = await run_to_end(await workflow().parallel(leave, stay).create_run(), 1, traces)
    assert result.unwrap() == 7
    assert attributes(traces.one("invoke_workflow shop"))["spanflow.run.status"] == "success"
    assert attributes(traces.one("step leave"))["spanflow.step.status"] == "bailed"
    assert attributes(traces.one("step stay"))["spanflow.step.status"] == "canceled"
    assert errors(traces) == {}


async def test_a_run_that_is_aborted_is_canceled_and_no_error(traces: Traces) -> None:
    @step
    async def leave(value: int, ctx: StepContext) -> int:
        ctx.abort("changed my mind")

    nested = workflow("inner").then(leave)
    assert (await run_to_end(await workflow().then(nested).create_run(), 1, traces)).status == "canceled"
    assert attributes(traces.one("invoke_workflow shop"))["spanflow.run.status"] == "canceled"
    assert errors(traces) == {}


async def test_a_result_that_does_not_fit_is_recorded_on_the_root(traces: Traces) -> None:
    shop: Workflow[int, Any] = Workflow("shop", input=int, output=list[int])

    @step
    async def anything(value: int) -> Any:
        return value

    result = await run_to_end(await shop.then(anything).create_run(), 1, traces)
    assert result.error is not None
    kind = f"{InvalidOutput.__module__}.{InvalidOutput.__qualname__}"
    assert recorded(traces) == [("invoke_workflow shop", kind, result.error.message)]


# ---------------------------------------------------------------- step


async def test_an_attempt_is_a_span_below_the_run_without_any_gen_ai_attribute(traces: Traces) -> None:
    await run_to_end(await workflow().then(same).create_run(), 1, traces)
    span = traces.one("step same")
    assert parent_id(span) == span_id(traces.one("invoke_workflow shop"))
    assert attributes(span) == {
        "spanflow.step.id": "same",
        "spanflow.step.path": "same",
        "spanflow.step.attempt": 1,
    }


async def test_a_map_is_a_step(traces: Traces) -> None:
    await run_to_end(await workflow().map(lambda value: value + 1, id="increase").create_run(), 1, traces)
    assert attributes(traces.one("step increase"))["spanflow.step.path"] == "increase"


async def test_each_attempt_is_a_span_and_the_delay_between_is_another(traces: Traces) -> None:
    @step(retry=Retry(max_attempts=3, delay=10, backoff=2, jitter=0))
    async def flaky(value: int, ctx: StepContext) -> int:
        if ctx.attempt < 3:
            raise OutOfStock(f"attempt {ctx.attempt}")
        return value

    await run_to_end(await workflow().then(flaky).create_run(clock=FakeClock()), 1, traces)
    root = traces.one("invoke_workflow shop")
    first, second, third = traces.find("step flaky")
    short, long = traces.find("wait flaky")
    assert [attributes(each)["spanflow.step.attempt"] for each in (first, second, third)] == [1, 2, 3]
    assert [is_error(each) for each in (first, second, third)] == [True, True, False]
    assert {parent_id(each) for each in (first, second, third, short, long)} == {span_id(root)}
    assert recorded(traces) == [
        ("step flaky", OUT_OF_STOCK, "attempt 1"),
        ("step flaky", OUT_OF_STOCK, "attempt 2"),
    ]
    assert times(short) == (times(first)[1], times(second)[0])
    assert times(long) == (times(second)[1], times(third)[0])
    assert (seconds(short), seconds(long)) == (10, 20)
    assert not is_error(short)
    assert not is_error(root)


async def test_a_retry_without_delay_leaves_no_wait_and_no_gap(traces: Traces) -> None:
    @step(retry=Retry(max_attempts=2, delay=0))
    async def flaky(value: int, ctx: StepContext) -> int:
        if ctx.attempt == 1:
            raise OutOfStock("once")
        return value

    await run_to_end(await workflow().then(flaky).create_run(), 1, traces)
    assert len(traces.find("step flaky")) == 2
    assert traces.find("wait *") == ()


async def test_a_run_canceled_during_a_delay_still_names_the_gap(traces: Traces) -> None:
    failed = asyncio.Event()

    @step(retry=Retry(max_attempts=2, delay=50, jitter=0))
    async def flaky(value: int) -> int:
        failed.set()
        raise OutOfStock("once")

    clock = FakeClock(auto=False)
    run = await workflow().then(flaky).create_run(clock=clock)
    await run.stream(1)
    await failed.wait()
    await clock.advance(20)
    await run.cancel()
    await check_run(run, traces)
    assert seconds(traces.one("wait flaky")) == 20


@pytest.mark.parametrize("call", ["async def", "def"])
async def test_the_exception_is_the_true_one_with_the_users_own_traceback(traces: Traces, call: str) -> None:
    def look_up(value: int) -> int:
        raise KeyError(f"item {value}")

    @step
    async def find(value: int) -> int:
        try:
            return look_up(value)
        except KeyError as error:
            raise OutOfStock("not there") from error

    @step(id="find")
    def find_in_thread(value: int) -> int:
        try:
            return look_up(value)
        except KeyError as error:
            raise OutOfStock("not there") from error

    chosen: Step[int, int, Any] = find if call == "async def" else find_in_thread
    result = await run_to_end(await workflow().then(chosen).create_run(), 5, traces)
    (exception,) = exceptions(traces.one("step find"))
    assert exception["exception.type"] == OUT_OF_STOCK
    assert exception["exception.message"] == "not there"
    assert "KeyError: 'item 5'" in exception["exception.stacktrace"]
    assert "in look_up" in exception["exception.stacktrace"]
    assert result.error is not None
    assert (result.error.type, result.error.message) == (OUT_OF_STOCK, "not there")


async def test_a_builtin_exception_is_typed_by_its_bare_name(traces: Traces) -> None:
    await run_to_end(await workflow().map(lambda value: value // 0, id="divide").create_run(), 1, traces)
    assert errors(traces) == {"step divide": "ZeroDivisionError", "invoke_workflow shop": "ZeroDivisionError"}


async def test_a_message_of_megabytes_is_cut_on_the_span_and_whole_in_the_result(traces: Traces) -> None:
    @step
    async def parse(text: str) -> str:
        raise ValueError(text)

    run = await Workflow("parser", input=str).then(parse).create_run()
    result = await run.start("x" * 5_000_000)
    assert result.error is not None
    assert len(result.error.message) == 5_000_000
    span = traces.one("step parse")
    assert span.status.description == "x" * 8191 + "…"
    (event,) = span.events
    attributes = event.attributes or {}
    assert attributes["exception.message"] == span.status.description
    assert "raise ValueError(text)" in str(attributes["exception.stacktrace"])
    assert sum(len(str(value)) for value in attributes.values()) < 20_000


async def test_an_exception_that_cannot_say_what_it_is_is_still_an_error_on_its_span(traces: Traces) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    @step
    async def mumble(value: int) -> int:
        raise Mute

    result = await run_to_end(await workflow().then(mumble).create_run(), 1, traces)
    assert result.status == "failed"
    assert is_error(traces.one("step mumble"))
    assert is_error(traces.one("invoke_workflow shop"))
    assert len(exceptions(traces.one("step mumble"))) == 1


async def test_a_base_exception_of_the_users_fails_step_and_run(traces: Traces) -> None:
    class Stop(BaseException):
        """What test frameworks and such raise, so that nobody swallows it."""

    @step
    async def give_up(value: int) -> int:
        raise Stop("at once")

    run = await workflow().then(give_up).create_run()
    async with asyncio.timeout(30):
        result = await run_to_end(run, 1, traces)
    assert result.status == "failed"
    assert [(name, message) for name, _, message in recorded(traces)] == [("step give_up", "at once")]


async def test_a_step_out_of_time_failed_by_step_timeout(traces: Traces) -> None:
    slow = step(id="slow", timeout=3)(last_forever.fn)
    await run_to_end(await workflow().then(slow).create_run(clock=FakeClock()), 1, traces)
    kind = f"{StepTimeout.__module__}.{StepTimeout.__qualname__}"
    assert errors(traces) == {"step slow": kind, "invoke_workflow shop": kind}
    assert [(name, type) for name, type, _ in recorded(traces)] == [("step slow", kind)]
    assert seconds(traces.one("step slow")) == 3


async def test_a_step_out_of_time_inside_a_tool_is_recorded_on_the_step_and_the_tool_is_no_error(
    traces: Traces,
) -> None:
    @tool
    async def hang(item: int) -> int:
        """Hang."""
        await asyncio.Event().wait()
        return item

    @step(timeout=3)
    async def use(value: int) -> int:
        return await hang(item=value)

    await run_to_end(await workflow().then(use).create_run(clock=FakeClock()), 1, traces)
    kind = f"{StepTimeout.__module__}.{StepTimeout.__qualname__}"
    assert [(name, type) for name, type, _ in recorded(traces)] == [("step use", kind)]
    assert not is_error(traces.one("execute_tool hang"))
    assert seconds(traces.one("execute_tool hang")) == 3


async def test_each_attempt_records_the_failure_of_its_own_tool(traces: Traces) -> None:
    always = OutOfStock("the very same object")

    @tool
    async def refuse(item: int) -> int:
        """Raise."""
        raise always

    @step(retry=Retry(max_attempts=2, delay=0))
    async def use(value: int) -> int:
        return await refuse(item=value)

    await run_to_end(await workflow().then(use).create_run(), 1, traces)
    assert [name for name, _, _ in recorded(traces)] == ["execute_tool refuse"] * 2


async def test_output_that_does_not_fit_is_recorded_on_the_step(traces: Traces) -> None:
    async def wrong(value: int) -> int:
        return "many"  # pyright: ignore[reportReturnType]  # what the step must not do

    result = await run_to_end(await workflow().then(step(wrong)).create_run(), 1, traces)
    assert result.status == "failed"
    kind = f"{InvalidOutput.__module__}.{InvalidOutput.__qualname__}"
    assert [(name, type) for name, type, _ in recorded(traces)] == [("step wrong", kind)]


# ---------------------------------------------------------------- tool


async def test_a_tool_call_is_a_span_below_its_step(traces: Traces) -> None:
    @step
    async def use(value: int) -> int:
        return await weigh(item=value)

    run = await workflow().then(use).create_run()
    stream = await run.stream(4)
    (call,) = [event async for event in stream if event.type == "tool-call"]
    await check_run(run, traces)
    span = traces.one("execute_tool weigh")
    assert parent_id(span) == span_id(traces.one("step use"))
    assert attributes(span) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "weigh",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": call.payload.tool_call_id,
        "gen_ai.tool.description": "Weigh an item.",
    }


async def test_a_tool_as_a_step_is_both_spans(traces: Traces) -> None:
    await run_to_end(await workflow().then(weigh).create_run(), 4, traces)
    assert parent_id(traces.one("execute_tool weigh")) == span_id(traces.one("step weigh"))


async def test_a_tool_outside_of_any_run_has_its_span_below_the_ambient_one(traces: Traces) -> None:
    assert await weigh(item=2) == 2
    with pytest.raises(OutOfStock):
        await weigh_nothing(item=2)
    traces.assert_complete(traces=2)
    assert traces.one("execute_tool weigh").parent is None
    assert recorded(traces) == [("execute_tool weigh_nothing", OUT_OF_STOCK, "tool 2")]


async def test_a_failed_tool_has_the_exception_and_its_step_and_run_only_the_error(traces: Traces) -> None:
    @step
    async def use(value: int) -> int:
        return await weigh_nothing(item=value)

    nested = workflow("inner").then(use)
    await run_to_end(await workflow().then(nested).create_run(), 4, traces)
    assert recorded(traces) == [("execute_tool weigh_nothing", OUT_OF_STOCK, "tool 4")]
    assert errors(traces) == dict.fromkeys(
        ["invoke_workflow shop", "invoke_workflow inner", "step use", "execute_tool weigh_nothing"], OUT_OF_STOCK
    )


async def test_a_failed_tool_that_a_step_survives_is_the_only_error(traces: Traces) -> None:
    @step
    async def use(value: int) -> int:
        try:
            return await weigh_nothing(item=value)
        except OutOfStock:
            return 0

    assert (await run_to_end(await workflow().then(use).create_run(), 4, traces)).unwrap() == 0
    assert errors(traces) == {"execute_tool weigh_nothing": OUT_OF_STOCK}
    assert recorded(traces) == [("execute_tool weigh_nothing", OUT_OF_STOCK, "tool 4")]


async def test_an_error_of_the_steps_own_after_a_failed_tool_is_recorded_on_the_step(traces: Traces) -> None:
    @step
    async def use(value: int) -> int:
        try:
            return await weigh_nothing(item=value)
        except OutOfStock as error:
            raise RuntimeError("cannot do without") from error

    await run_to_end(await workflow().then(use).create_run(), 4, traces)
    assert recorded(traces) == [
        ("step use", "RuntimeError", "cannot do without"),
        ("execute_tool weigh_nothing", OUT_OF_STOCK, "tool 4"),
    ]


async def test_a_tool_within_a_tool_has_the_exception_alone(traces: Traces) -> None:
    @tool
    async def outer(item: int) -> int:
        """Call another tool."""
        return await weigh_nothing(item=item)

    @step
    async def use(value: int) -> int:
        return await outer(item=value)

    await run_to_end(await workflow().then(use).create_run(), 4, traces)
    assert parent_id(traces.one("execute_tool weigh_nothing")) == span_id(traces.one("execute_tool outer"))
    assert [name for name, _, _ in recorded(traces)] == ["execute_tool weigh_nothing"]


async def test_the_error_of_two_tools_side_by_side_is_recorded_where_it_was_raised(traces: Traces) -> None:
    @step
    async def use(value: int) -> int:
        found = await asyncio.gather(weigh_nothing(item=1), weigh_nothing(item=2), return_exceptions=True)
        (first, _) = found
        assert isinstance(first, OutOfStock)
        raise first

    await run_to_end(await workflow().then(use).create_run(), 4, traces)
    assert sorted(recorded(traces)) == [
        ("execute_tool weigh_nothing", OUT_OF_STOCK, "tool 1"),
        ("execute_tool weigh_nothing", OUT_OF_STOCK, "tool 2"),
    ]


async def test_arguments_that_do_not_fit_are_an_error_of_the_tools_span(traces: Traces) -> None:
    @step
    async def use(value: int) -> int:
        return await weigh(item="heavy")  # pyright: ignore[reportArgumentType]  # what a model may give

    await run_to_end(await workflow().then(use).create_run(), 4, traces)
    kind = f"{InvalidInput.__module__}.{InvalidInput.__qualname__}"
    assert [(name, type) for name, type, _ in recorded(traces)] == [("execute_tool weigh", kind)]


async def test_a_condition_and_the_step_of_its_loop_may_both_call_tools(traces: Traces) -> None:
    @step
    async def use(value: int) -> int:
        return await weigh(item=value + 1)

    async def heavy_enough(value: int) -> bool:
        return await weigh(item=value) >= 3

    result = await run_to_end(await workflow().do_until(use, heavy_enough, max_iterations=5).create_run(), 1, traces)
    assert result.unwrap() == 3
    calls = traces.find("execute_tool weigh")
    assert len({span_id(each) for each in calls}) == 4
    assert len({attributes(each)["gen_ai.tool.call.id"] for each in calls}) == 4


async def test_two_conditions_of_a_branch_may_both_call_tools(traces: Traces) -> None:
    async def light(value: int) -> bool:
        return await weigh(item=value) < 3

    async def heavy(value: int) -> bool:
        return await weigh(item=value) >= 3

    await run_to_end(await workflow().branch((light, same), (heavy, twice)).create_run(), 4, traces)
    assert len({span_id(each) for each in traces.find("execute_tool weigh")}) == 2


# ---------------------------------------------------------------- ids


async def test_span_ids_follow_from_run_path_and_attempt(traces: Traces) -> None:
    async def ids(run_id: str) -> set[str]:
        traces.clear()
        shop = workflow().then(same).then(workflow("inner").parallel(twice, weigh))
        await run_to_end(await shop.create_run(run_id=run_id), 1, traces)
        return {span_id(span) for span in traces.spans}

    first, again, other = await ids("a"), await ids("a"), await ids("b")
    assert first == again
    assert not first & other
    assert len(first) == 6


async def test_names_of_spans_hold_no_values(traces: Traces) -> None:
    shop = Workflow("shop", input=list[int]).foreach(twice).map(sum, id="add").do_while(same, lambda value: False)
    for number in range(3):
        await run_to_end(await shop.create_run(run_id=f"run-{number}"), list(range(number)), traces)
        traces.clear()
    await run_to_end(await shop.create_run(), [1, 2], traces)
    assert {span.name for span in traces.spans} == {
        "invoke_workflow shop",
        "foreach twice",
        "step twice",
        "step add",
        "step same",
    }
