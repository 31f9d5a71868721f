"""Code inside a run stands below the right span: its steps, tools, threads, tasks, conditions and functions."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from typing import Any

import pytest
from opentelemetry import context, propagate, trace

from spanflow import StepContext, ToolResult, Workflow, step, tool
from spanflow.testing import FakeClock, Traces
from tests.tracing_contract.inside import count, open_one, parent_of, same, shop, user, weigh, weigh_now
from tests.tracing_contract.reading import attributes, check, parent_id, span_id, trace_id

pytestmark = pytest.mark.usefixtures("no_failed_detach")


# ---------------------------------------------------------------- the current span


async def test_the_current_span_of_a_step_is_live(traces: Traces) -> None:
    @step
    async def look(value: int, ctx: StepContext) -> str:
        span = ctx.tracing_context.current_span
        assert span is trace.get_current_span()
        assert span.is_recording()
        span.set_attribute("passages", value)
        span.add_event("looked")
        return format(span.get_span_context().span_id, "016x")

    result = await (await shop().then(look).create_run()).start(3)
    span = traces.one("step look")
    assert result.unwrap() == span_id(span)
    assert attributes(span)["passages"] == 3
    assert [event.name for event in span.events] == ["looked"]


async def test_the_current_span_is_the_innermost_that_is_active(traces: Traces) -> None:
    @step
    async def look(value: int, ctx: StepContext) -> int:
        with user.start_as_current_span("mine") as mine:
            assert ctx.tracing_context.current_span is mine
            ctx.tracing_context.current_span.set_attribute("inner", True)
        ctx.tracing_context.current_span.set_attribute("inner", False)
        return value

    (await (await shop().then(look).create_run()).start(3)).unwrap()
    assert attributes(traces.one("mine"))["inner"] is True
    assert attributes(traces.one("step look"))["inner"] is False


async def test_the_current_span_of_each_attempt_is_its_own(traces: Traces) -> None:
    @step
    async def look(value: int, ctx: StepContext) -> int:
        ctx.tracing_context.current_span.set_attribute("seen", ctx.attempt)
        return await ctx.suspend("?", resume=int)

    run = await shop().then(look).create_run()
    await run.start(1)
    await run.resume(2)
    assert [attributes(span)["seen"] for span in traces.find("step look")] == [1, 2]


async def test_the_current_span_of_a_thread_is_live(traces: Traces) -> None:
    @step
    def look(value: int, ctx: StepContext) -> int:
        assert threading.current_thread() is not threading.main_thread()
        ctx.tracing_context.current_span.set_attribute("passages", value)
        assert ctx.tracing_context.current_span is trace.get_current_span()
        return value

    (await (await shop().then(look).create_run()).start(3)).unwrap()
    assert attributes(traces.one("step look"))["passages"] == 3


async def test_the_current_span_of_a_condition_is_that_of_the_run_it_belongs_to(traces: Traces) -> None:
    def fits(value: int, ctx: StepContext) -> bool:
        ctx.tracing_context.current_span.set_attribute("asked", value)
        return True

    nested = Workflow("inner", input=int).branch((fits, same))
    (await (await shop().then(nested).create_run()).start(3)).unwrap()
    assert attributes(traces.one("invoke_workflow inner"))["asked"] == 3


# ---------------------------------------------------------------- spans of the user's own


async def test_a_span_opened_in_a_step_is_its_child(traces: Traces) -> None:
    (await (await shop().then(open_one).create_run()).start(1)).unwrap()
    check(traces)
    assert parent_of(traces, "mine 1") == "step open_one"


async def test_a_span_opened_in_a_step_that_runs_in_a_thread_is_its_child(traces: Traces) -> None:
    @step
    def work(value: int) -> int:
        with user.start_as_current_span("mine"):
            return weigh_now(item=value)

    (await (await shop().then(work).create_run()).start(1)).unwrap()
    check(traces)
    assert parent_of(traces, "mine") == "step work"
    assert parent_of(traces, "execute_tool weigh_now") == "mine"
    assert parent_of(traces, "scales") == "execute_tool weigh_now"


async def test_spans_of_tasks_that_a_step_starts_are_below_it(traces: Traces) -> None:
    @step
    async def spread(value: int) -> int:
        async def job(number: int) -> int:
            with user.start_as_current_span(f"job {number}"):
                return await weigh(item=number)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job(number)) for number in range(3)]
        return sum(task.result() for task in tasks)

    assert (await (await shop().then(spread).create_run()).start(1)).unwrap() == 3
    check(traces)
    for number in range(3):
        assert parent_of(traces, f"job {number}") == "step spread"
    below = {parent_id(span) for span in traces.find("execute_tool weigh")}
    assert below == {span_id(traces.one(f"job {number}")) for number in range(3)}


async def test_tools_side_by_side_keep_their_own_children(traces: Traces) -> None:
    @step
    async def spread(value: int) -> int:
        return sum(await asyncio.gather(weigh(item=1), weigh(item=2), weigh(item=3)))

    (await (await shop().then(spread).create_run()).start(1)).unwrap()
    check(traces)
    tools = traces.find("execute_tool weigh")
    assert {parent_id(span) for span in tools} == {span_id(traces.one("step spread"))}
    assert {parent_id(span) for span in traces.find("scales")} == {span_id(span) for span in tools}


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_span_opened_in_a_tool_is_its_child_also_when_the_tool_is_a_step(traces: Traces, kind: str) -> None:
    workflow = shop().then(weigh) if kind == "async" else shop().then(weigh_now)
    (await (await workflow.create_run()).start(1)).unwrap()
    check(traces)
    assert parent_of(traces, "scales").startswith("execute_tool weigh")


async def test_spans_of_a_streaming_tool_are_its_children_and_those_of_its_reader_are_not(traces: Traces) -> None:
    @step
    async def read(value: int) -> int:
        total = 0
        async for number in count(up_to=value):
            with user.start_as_current_span(f"reader {number}"):
                total += number
        with user.start_as_current_span("after"):
            return total

    assert (await (await shop().then(read).create_run()).start(2)).unwrap() == 3
    check(traces)
    for number in (1, 2):
        assert parent_of(traces, f"count {number}") == "execute_tool count"
        assert parent_of(traces, f"reader {number}") == "step read"
    assert parent_of(traces, "after") == "step read"


async def test_spans_of_a_streaming_tool_that_is_awaited_are_its_children(traces: Traces) -> None:
    @step
    async def read(value: int) -> int:
        return await count(up_to=value)

    assert (await (await shop().then(read).create_run()).start(2)).unwrap() == 2
    check(traces)
    assert {parent_of(traces, f"count {number}") for number in (1, 2)} == {"execute_tool count"}


async def test_a_streaming_tool_that_holds_a_span_over_its_yields_ends_in_order(traces: Traces) -> None:
    @tool
    async def hold(up_to: int) -> AsyncGenerator[int, None]:
        """Hold a span open over all yields, as careless code does."""
        with user.start_as_current_span("held"):
            for number in range(up_to):
                yield number

    @step
    async def read(value: int) -> int:
        last = 0
        async for number in hold(up_to=value):
            with user.start_as_current_span(f"reader {number}"):
                last = number
        with user.start_as_current_span("after"):
            return last

    (await (await shop().then(read).create_run()).start(2)).unwrap()
    check(traces)
    assert parent_of(traces, "held") == "execute_tool hold"
    assert parent_of(traces, "reader 1") == "step read"
    assert parent_of(traces, "after") == "step read"


async def test_a_streaming_tool_that_is_left_early_ends_its_span(traces: Traces) -> None:
    @step
    async def read(value: int) -> int:
        async for number in count(up_to=100):
            if number == value:
                return number
        return 0

    stream = await (await shop().then(read).create_run()).stream(2)
    types = [event.type async for event in stream]
    assert (await stream.get_workflow_state()).unwrap() == 2
    check(traces)
    assert types.count("tool-call") == types.count("tool-result") == 1
    assert parent_of(traces, "execute_tool count") == "step read"


async def test_streaming_tools_that_are_left_early_end_before_their_step_also_when_it_fails(traces: Traces) -> None:
    @step
    async def read(value: int) -> int:
        outer = aiter(count(up_to=100))
        first = await anext(outer)
        async for number in count(up_to=50):
            raise LookupError(f"{first} {number}")
        return value

    stream = await (await shop().then(read).create_run()).stream(2)
    types = [event.type async for event in stream]
    assert (await stream.get_workflow_state()).status == "failed"
    check(traces)
    assert len(traces.find("execute_tool count")) == 2
    assert types.count("tool-call") == types.count("tool-result") == 2
    assert types[-3:] == ["step-result", "step-finish", "finish"]


async def test_a_streaming_tool_that_is_closed_early_ends_its_span(traces: Traces) -> None:
    @step
    async def read(value: int) -> int:
        numbers = aiter(count(up_to=100))
        first = await anext(numbers)
        assert isinstance(numbers, AsyncGenerator)
        await numbers.aclose()
        with user.start_as_current_span("after"):
            return first

    (await (await shop().then(read).create_run()).start(2)).unwrap()
    check(traces)
    assert parent_of(traces, "after") == "step read"


async def test_a_tool_result_ends_a_streaming_tool_and_its_span(traces: Traces) -> None:
    @tool
    async def answer(up_to: int) -> AsyncGenerator[str | ToolResult[int], None]:
        """Say it, then give it."""
        yield "thinking"
        with user.start_as_current_span("inside"):
            yield ToolResult(up_to)

    @step
    async def read(value: int) -> int:
        found: Any = await answer(up_to=value)
        return found

    assert (await (await shop().then(read).create_run()).start(2)).unwrap() == 2
    check(traces)
    assert parent_of(traces, "inside") == "execute_tool answer"


async def test_a_tool_called_inside_a_span_of_the_users_is_its_child(traces: Traces) -> None:
    @step
    async def use(value: int) -> int:
        with user.start_as_current_span("mine"):
            return await weigh(item=value)

    (await (await shop().then(use).create_run()).start(2)).unwrap()
    check(traces)
    assert parent_of(traces, "execute_tool weigh") == "mine"
    assert parent_of(traces, "mine") == "step use"


async def test_spans_of_conditions_and_functions_are_below_the_run_they_belong_to(traces: Traces) -> None:
    def open_and(result: Any, name: str) -> Callable[[Any], Any]:
        def function(value: Any) -> Any:
            with user.start_as_current_span(name):
                return result

        return function

    async def again(value: int) -> bool:
        with user.start_as_current_span("again?"):
            await asyncio.sleep(0)
            return False

    nested = (
        Workflow("inner", input=int)
        .branch((open_and(True, "fits?"), same))
        .do_while(same.with_id("body"), again)
        .map(open_and(7, "reshape"), id="reshape")
        .sleep(open_and(5, "how long?"))
    )
    run = await shop().then(nested).create_run(clock=FakeClock())
    (await run.start(1)).unwrap()
    check(traces)
    for name in ("fits?", "again?", "how long?"):
        assert parent_of(traces, name) == "invoke_workflow inner"
    assert parent_of(traces, "reshape") == "step reshape"


async def test_spans_inside_a_frame_are_below_it_also_after_a_resume(traces: Traces) -> None:
    @step
    async def ask(value: int, ctx: StepContext) -> int:
        answer = await ctx.suspend("?", resume=int)
        with user.start_as_current_span("answered"):
            return answer

    def fits(value: int) -> bool:
        with user.start_as_current_span("fits?"):
            return True

    nested = Workflow("inner", input=int).then(ask).branch((fits, open_one))
    run = await shop().then(nested).create_run()
    await run.start(1)
    await run.resume(5)
    check(traces)
    assert parent_id(traces.one("answered")) == span_id(traces.find("step ask")[1])
    assert parent_of(traces, "fits?") == "invoke_workflow inner"
    assert parent_of(traces, "step open_one") == "invoke_workflow inner"
    assert parent_of(traces, "mine 5") == "step open_one"


async def test_what_leaves_a_step_carries_the_ids_of_its_span(traces: Traces) -> None:
    sent: list[dict[str, str]] = []

    @step
    async def call(value: int) -> int:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        sent.append(carrier)
        return value

    (await (await shop().then(call).create_run()).start(1)).unwrap()
    span = traces.one("step call")
    assert sent == [{"traceparent": f"00-{trace_id(span)}-{span_id(span)}-{sent[0]['traceparent'][-2:]}"}]


async def test_context_variables_of_the_caller_reach_the_steps(traces: Traces) -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")

    @step
    async def look(value: int) -> str:
        return tenant.get()

    @step
    def look_in_thread(value: str) -> list[str]:
        return [value, tenant.get()]

    tenant.set("acme")
    assert (await (await shop().then(look).then(look_in_thread).create_run()).start(1)).unwrap() == ["acme", "acme"]


async def test_what_a_step_attaches_and_forgets_ends_with_the_step(traces: Traces) -> None:
    @step
    async def careless(value: int) -> int:
        context.attach(trace.set_span_in_context(user.start_span("forgotten")))
        return value

    run = await shop().then(careless).then(open_one).create_run()
    (await run.start(1)).unwrap()
    assert parent_of(traces, "mine 1") == "step open_one"
    assert parent_id(traces.one("step open_one")) == span_id(traces.one("invoke_workflow shop"))
    assert trace.get_current_span() is trace.INVALID_SPAN
