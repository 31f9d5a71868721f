"""A wall clock that is set while a run executes: nothing ends before it has begun, and nothing waits for a lost day."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from spanflow import Retry, Run, Runtime, StepContext, Workflow, step, tool
from spanflow.events import Event
from spanflow.testing import Metrics, Traces
from tests.contract.support import recorded

DAY = 24 * 3600 * 10**9  # ns


class SetClock:
    """The machine's clock, which somebody sets."""

    def __init__(self) -> None:
        self.set_by = 0

    def time_ns(self) -> int:
        return time.time_ns() + self.set_by

    async def sleep_until(self, deadline_ns: int) -> None:
        await asyncio.sleep((deadline_ns - self.time_ns()) / 1e9)

    def timeout(self, seconds: float) -> asyncio.Timeout:
        return asyncio.timeout(seconds)


jumps = pytest.mark.parametrize("jump", [DAY, -DAY], ids=["forward", "back"])


def check(events: Sequence[Event], traces: Traces, metrics: Metrics) -> None:
    times = [event.timestamp for event in events]
    assert times == sorted(times)
    durations = [event.payload.duration for event in events if event.type == "step-finish" or event.type == "finish"]
    assert min(durations) >= 0
    traces.assert_complete()
    (root,) = traces.roots
    for span in traces.spans:
        assert span.start_time is not None
        assert span.end_time is not None
        assert root.start_time is not None
        assert root.end_time is not None
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time, span.name
    assert all(each.sum >= 0 for each in metrics.find("*duration"))
    assert metrics.find("*duration")


@jumps
async def test_a_clock_that_is_set_while_steps_run_makes_no_time_negative(
    jump: int, traces: Traces, metrics: Metrics
) -> None:
    clock = SetClock()

    @tool
    async def look_up(number: int) -> int:
        """Take as long as it takes to set a clock."""
        clock.set_by += jump
        return number

    @step(retry=Retry(max_attempts=2, delay=0.01))
    async def first(number: int, ctx: StepContext) -> int:
        if ctx.attempt == 1:
            clock.set_by += jump
            raise ConnectionError("busy")
        return await look_up(number=number)

    @step
    def second(number: int) -> int:
        clock.set_by += jump
        return number

    inner = Workflow("inner", input=int).then(second)
    flow = Workflow("flow", input=list[int]).foreach(first).map(sum).then(inner).sleep(0.01)
    run = await flow.create_run(clock=clock)
    async with asyncio.timeout(30):
        result = await run.start([1, 2])

    assert result.unwrap() == 3
    check(await recorded(run), traces, metrics)


@jumps
async def test_a_clock_that_is_set_while_a_run_is_suspended_makes_no_time_negative(
    jump: int, traces: Traces, metrics: Metrics
) -> None:
    clock = SetClock()

    @step
    async def ask(number: int, ctx: StepContext) -> int:
        return number * await ctx.suspend("?", resume=int)

    flow = Workflow("flow", input=int).then(ask).sleep(0.01)
    async with Runtime(workflows=[flow], clock=clock) as runtime, asyncio.timeout(30):
        run: Run[Any, Any] = await runtime.create_run(flow)
        await run.start(2)
        clock.set_by += jump
        assert (await run.resume(3)).unwrap() == 6
        check(await recorded(run), traces, metrics)


async def test_an_event_is_waited_for_as_long_as_was_said_wherever_the_clock_goes(
    traces: Traces, metrics: Metrics
) -> None:
    clock = SetClock()

    @step
    async def turn_back(number: int) -> int:
        clock.set_by -= DAY
        return number

    flow = Workflow("flow", input=int).then(turn_back).wait_for_event("news", payload=str, timeout=0.05)
    run = await flow.create_run(clock=clock)
    async with asyncio.timeout(30):
        result = await run.start(1)

    assert result.status == "failed"
    check(await recorded(run), traces, metrics)
