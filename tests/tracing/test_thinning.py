"""Very wide runs: which steps get a span, and how those that get none are accounted for."""

import asyncio

import pytest
from opentelemetry import trace
from pydantic import BaseModel

from spanflow import Retry, StepContext, TracingOptions, Workflow, step, tool
from spanflow.errors import InvalidInput
from spanflow.events import Finish
from spanflow.testing import FakeClock, Traces
from spanflow.tracing.setup import set_capture

FIVE = TracingOptions(max_step_spans=5)


@step
async def double(number: int) -> int:
    return 2 * number


@step
async def picky(number: int) -> int:
    if number == 8:
        raise ValueError("eight")
    return number


doubled = Workflow("wide", input=list[int]).foreach(double)


async def test_beyond_the_limit_steps_that_end_well_get_no_span_and_the_fan_out_says_how_many(traces: Traces) -> None:
    run = await doubled.create_run()
    stream = await run.stream(list(range(12)), tracing_options=FIVE)
    last = [event async for event in stream][-1]
    assert (await stream.get_workflow_state()).unwrap() == [2 * number for number in range(12)]
    traces.assert_complete()
    assert [span.name for span in traces.find("step double")] == ["step double"] * 5
    fan_out = traces.one("foreach double")
    assert fan_out.attributes is not None
    assert fan_out.attributes["spanflow.spans.left_out"] == 7
    assert fan_out.attributes["spanflow.succeeded"] == 12
    assert isinstance(last, Finish)
    assert last.payload.counts.steps == 13  # with the foreach
    assert last.payload.counts.spans == 7
    assert last.payload.counts.spans_left_out == 7


async def test_without_a_limit_every_step_has_its_span(traces: Traces) -> None:
    run = await doubled.create_run()
    await run.start(list(range(12)), tracing_options=TracingOptions(max_step_spans=None))
    assert len(traces.find("step double")) == 12
    assert "left_out" not in str(traces.one("foreach double").attributes)


async def test_ten_thousand_steps_is_the_limit_where_none_is_given(traces: Traces) -> None:
    run = await doubled.create_run()
    result = await run.start(list(range(10_010)))
    assert len(result.unwrap()) == 10_010
    assert len(traces.find("step double")) == 10_000


async def test_one_that_fails_has_its_span_with_the_exception_and_the_usual_id(traces: Traces) -> None:
    workflow = Workflow("wide", input=list[int]).foreach(picky, on_error="collect")
    run = await workflow.create_run()
    stream = await run.stream(list(range(12)), tracing_options=FIVE)
    events = [event async for event in stream]
    traces.assert_complete()
    failed = traces.one("step picky", {"spanflow.foreach.index": 8})
    assert failed.status.description == "eight"
    assert [event.name for event in failed.events] == ["exception"]
    assert failed.context is not None
    began = next(event for event in events if event.type == "step-start" and event.path == "picky[8]")
    assert began.span_id == format(failed.context.span_id, "016x")
    assert failed.start_time == began.timestamp
    assert (
        traces.tree()
        == """\
invoke_workflow wide
└── foreach picky  [1 failed, 6 more without a span]
    ├── step picky[0]
    ├── step picky[1]
    ├── step picky[2]
    ├── step picky[3]
    ├── step picky[4]
    └── step picky[8]  ERROR ValueError: eight"""
    )


async def test_one_that_is_slow_among_its_kind_has_its_span(traces: Traces) -> None:
    clock = FakeClock()

    @step
    async def fetch(number: int) -> int:
        await clock.sleep_until(clock.time_ns() + (60 if number == 9 else 1) * 10**9)
        return number

    run = await Workflow("wide", input=list[int]).foreach(fetch).create_run(clock=clock)
    await run.start(list(range(12)), tracing_options=TracingOptions(max_step_spans=0))
    kept = [(span.attributes or {}).get("spanflow.foreach.index") for span in traces.find("step fetch")]
    assert kept == [0, 9]  # of the first, nobody knows yet what is slow for it


async def test_what_user_code_opens_inside_hangs_below_the_fan_out(traces: Traces) -> None:
    tracer = trace.get_tracer("of.the.user")

    @step
    async def ask(number: int, ctx: StepContext) -> int:
        ctx.tracing_context.current_span.set_attribute("asked", number)
        with tracer.start_as_current_span("GET"):
            return number

    run = await Workflow("wide", input=list[int]).foreach(ask).create_run()
    await run.start([1, 2], tracing_options=TracingOptions(max_step_spans=1))
    traces.assert_complete()
    assert (
        traces.tree()
        == """\
invoke_workflow wide
└── foreach ask  [1 more without a span]
    ├── step ask[0]
    │   └── GET
    └── GET"""
    )
    assert "asked" not in (traces.one("foreach ask").attributes or {})


async def test_a_tool_that_fails_brings_the_step_around_it_along_even_if_that_goes_on(traces: Traces) -> None:
    @tool
    async def look_up(number: int) -> int:
        """Look a number up."""
        if number == 3:
            raise LookupError("three")
        return number

    @step
    async def find(number: int) -> int:
        try:
            return await look_up(number=number)
        except LookupError:
            return -1

    inner = Workflow("inner", input=int).then(find)
    run = await Workflow("wide", input=list[int]).foreach(inner).create_run()
    result = await run.start([1, 2, 3, 4], tracing_options=TracingOptions(max_step_spans=0))
    assert result.unwrap() == [1, 2, -1, 4]
    traces.assert_complete()
    assert (
        traces.tree()
        == """\
invoke_workflow wide
└── foreach inner  [9 more without a span]
    └── invoke_workflow inner[2]
        └── step find
            └── execute_tool look_up  ERROR LookupError: three"""
    )


async def test_a_retried_step_shows_the_attempt_that_failed_and_the_delay(traces: Traces) -> None:
    @step(retry=Retry(max_attempts=2, delay=5))
    async def flaky(number: int, ctx: StepContext) -> int:
        if ctx.attempt == 1 and number == 1:
            raise ConnectionError("busy")
        return number

    run = await Workflow("wide", input=list[int]).foreach(flaky).create_run(clock=FakeClock())
    await run.start([0, 1, 2], tracing_options=TracingOptions(max_step_spans=0))
    traces.assert_complete()
    assert "step flaky[1]  ERROR ConnectionError: busy" in traces.tree()
    assert traces.one("wait flaky")
    assert (traces.one("foreach flaky").attributes or {})["spanflow.spans.left_out"] == 3


async def test_suspended_items_have_their_spans_and_totals_cover_both_stretches(traces: Traces) -> None:
    class Yes(BaseModel):
        ok: bool

    @step
    async def approve(number: int, ctx: StepContext) -> int:
        if number == 2:
            await ctx.suspend({"number": number}, resume=Yes)
        return number

    run = await Workflow("wide", input=list[int]).foreach(approve).create_run()
    first = await run.start([0, 1, 2, 3], tracing_options=TracingOptions(max_step_spans=0))
    assert first.status == "suspended"
    stream = await run.resume_stream(Yes(ok=True))
    last = [event async for event in stream][-1]
    assert isinstance(last, Finish)
    assert last.payload.counts.spans_left_out == 4  # three items, and the second attempt of the one that waited
    traces.assert_complete()
    assert len(traces.find("step approve")) == 1
    assert traces.one("wait approve")
    # the first stretch left out three, which nothing but its finish event tells: no number is better than a wrong one
    assert "spanflow.spans.left_out" not in (traces.one("foreach approve").attributes or {})


async def test_a_failed_step_shows_what_it_was_given_where_content_is_captured(traces: Traces) -> None:
    set_capture(True)
    try:
        run = await Workflow("wide", input=list[int]).foreach(picky).create_run()
        await run.start([1, 8], tracing_options=TracingOptions(max_step_spans=0))
    finally:
        set_capture(None)
    assert (traces.one("step picky").attributes or {})["spanflow.step.input"] == "8"


async def test_many_at_a_time_are_counted_exactly(traces: Traces) -> None:
    @step
    async def turn(number: int) -> int:
        await asyncio.sleep(0)
        return number

    run = await Workflow("wide", input=list[int]).foreach(turn, concurrency=7).create_run()
    await run.start(list(range(100)), tracing_options=FIVE)
    assert len(traces.find("step turn")) == 5
    assert (traces.one("foreach turn").attributes or {})["spanflow.spans.left_out"] == 95


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "many"])
def test_a_limit_that_cannot_be_meant_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidInput, match="max_step_spans"):
        TracingOptions(max_step_spans=wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
