"""``TracingOptions(resume="link")``: each stretch of a run, from its start or an answer on, is a trace of its own."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, StatusCode, format_span_id, format_trace_id

from spanflow import Event, MemoryStore, Run, Runtime, StepContext, TracingOptions, Workflow, WorkflowResult, step
from spanflow.ports import Store
from spanflow.testing import FakeClock, Traces
from tests.stores.conftest import Open

LINK = TracingOptions(resume="link", user_id="u-1", metadata={"flag": "v2"})


@step
async def double(value: int) -> int:
    return 2 * value


@step
async def ask(value: int, ctx: StepContext) -> int:
    return value + await ctx.suspend({"value": value}, resume=int)


inner = Workflow("inner", input=int).then(double).then(ask)
flow = Workflow("flow", input=int).then(double.with_id("first")).then(inner).then(double.with_id("last"))
wide = (
    Workflow("wide", input=int)
    .map(lambda value: [value, value + 1], id="list")
    .foreach(inner, concurrency=2)
    .map(sum, id="sum")
)


@pytest.fixture
async def runtime(store: Store) -> AsyncIterator[Runtime]:
    async with Runtime(store, workflows=[flow, wide]) as opened:
        yield opened


async def started(runtime: Runtime, workflow: Workflow[Any, Any], value: int = 1) -> Run[Any, Any]:
    run = await runtime.create_run(workflow)
    result = await run.start(value, tracing_options=LINK)
    assert result.status == "suspended"
    return run


async def recorded(run: Run[Any, Any]) -> list[Event]:
    return [event async for event in run.observe_stream()]


def context_of(span: ReadableSpan) -> SpanContext:
    assert span.context is not None
    return span.context


def links_of(span: ReadableSpan) -> list[str]:
    return [format_span_id(link.context.span_id) for link in span.links]


def spans_lie_within_their_parents(traces: Traces) -> None:
    known = {(context_of(span).trace_id, context_of(span).span_id): span for span in traces.spans}
    for span in traces.spans:
        if span.parent is not None:
            around = known[span.parent.trace_id, span.parent.span_id]
            assert (around.start_time or 0) <= (span.start_time or 0) <= (span.end_time or 0) <= (around.end_time or 0)


async def test_each_stretch_is_a_whole_trace_that_is_linked_to_the_one_before(runtime: Runtime, traces: Traces) -> None:
    run = await started(runtime, flow)
    traces.assert_complete()  # before anybody has answered
    assert traces.tree().splitlines() == [
        "invoke_workflow flow  [suspended]",
        "├── step first",
        "└── invoke_workflow inner  [suspended]",
        "    ├── step double",
        "    └── step ask  [suspended]",
    ]
    assert (await run.resume(10)).unwrap() == 28
    traces.assert_complete(2)
    spans_lie_within_their_parents(traces)
    first, second = traces.roots
    assert traces.tree().endswith("""\
invoke_workflow flow  → link
├── invoke_workflow inner
│   ├── wait ask
│   └── step ask  [attempt 2]
└── step last""")
    assert links_of(second) == [format_span_id(context_of(first).span_id)]
    assert context_of(first).span_id != context_of(second).span_id
    statuses = [(root.attributes or {})["spanflow.run.status"] for root in (first, second)]
    assert (statuses, first.status.status_code) == (["suspended", "success"], StatusCode.UNSET)
    for root in (first, second):
        attributes = root.attributes or {}
        assert (attributes["user.id"], attributes["flag"], attributes["spanflow.run.id"]) == ("u-1", "v2", run.run_id)


async def test_streams_results_and_events_have_the_trace_of_their_stretch(runtime: Runtime, traces: Traces) -> None:
    run = await started(runtime, flow)
    waiting = await run.wait()
    stream = await run.resume_stream(10)
    events = [event async for event in stream]
    result = await stream.get_workflow_state()

    first, second = traces.trace_ids
    assert waiting.trace_id == first
    assert stream.trace_id == result.trace_id == second != first
    assert {event.trace_id for event in events} == {second}
    by_trace = [(event.trace_id, event.seq) for event in await recorded(run)]
    assert by_trace == [(first if seq < events[0].seq else second, seq) for _, seq in by_trace]
    ids = {(context_of(span).trace_id, context_of(span).span_id) for span in traces.spans}
    for event in await recorded(run):
        assert (int(event.trace_id or "", 16), int(event.span_id or "", 16)) in ids
    for trace_id in (first, second):
        assert [found.run_id for found in await runtime.find_runs(trace_id=trace_id)] == [run.run_id]
    assert await runtime.find_runs(trace_id="f" * 32) == []


async def test_whoever_resumes_is_linked_to_and_is_no_parent(runtime: Runtime, traces: Traces) -> None:
    run = await started(runtime, flow)
    with trace.get_tracer("tests").start_as_current_span("request") as request:
        await run.resume(1)
    (first, second) = traces.find("invoke_workflow flow")
    assert second.parent is None
    assert links_of(second) == [
        format_span_id(context_of(first).span_id),
        format_span_id(request.get_span_context().span_id),
    ]
    assert traces.one("wait ask").links == ()


async def test_several_suspensions_are_as_many_traces_and_frames_begin_anew_in_each(
    runtime: Runtime, traces: Traces
) -> None:
    run = await started(runtime, wide)
    assert (await run.resume(10, "inner[1]/ask")).status == "suspended"
    traces.assert_complete(2)
    assert (await run.resume(20, "inner[0]/ask")).unwrap() == 22 + 14
    traces.assert_complete(3)
    spans_lie_within_their_parents(traces)
    assert [(root.attributes or {})["spanflow.run.status"] for root in traces.roots] == [
        "suspended",
        "suspended",
        "success",
    ]
    assert [links_of(root) for root in traces.roots[1:]] == [
        [format_span_id(context_of(root).span_id)] for root in traces.roots[:-1]
    ]
    frames = [(span.attributes or {}).get("spanflow.step.status") for span in traces.find("foreach inner")]
    assert frames == ["suspended", "suspended", None]


async def test_a_suspended_run_that_is_canceled_ends_in_a_trace_of_its_own(runtime: Runtime, traces: Traces) -> None:
    run = await started(runtime, flow)
    result = await run.cancel()
    traces.assert_complete(2)
    spans_lie_within_their_parents(traces)
    first, second = traces.roots
    assert (second.attributes or {})["spanflow.run.status"] == "canceled"
    assert links_of(second) == [format_span_id(context_of(first).span_id)]
    assert [found.run_id for found in await runtime.find_runs(trace_id=traces.trace_ids[1])] == [run.run_id]
    assert result.trace_id == traces.trace_ids[1]
    assert [event.type for event in await recorded(run)].count("start") == 2


async def test_a_step_that_fails_after_the_answer_is_an_error_of_its_own_trace_only(
    runtime: Runtime, traces: Traces
) -> None:
    run = await started(runtime, flow)

    @step(id="last")
    async def fail(value: int) -> int:
        raise ValueError("no")

    async with Runtime(MemoryStore()) as other:
        broken = Workflow("flow", input=int).then(inner).then(fail)
        failing = await other.create_run(broken)
        await failing.start(1, tracing_options=LINK)
        assert (await failing.resume(1)).status == "failed"
    assert (await run.wait()).status == "suspended"
    codes = [root.status.status_code for root in traces.roots]
    assert codes == [StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR]


async def test_the_default_stays_one_trace(runtime: Runtime, traces: Traces) -> None:
    run = await runtime.create_run(flow)
    await run.start(1)
    assert traces.open
    await run.resume(1)
    traces.assert_complete(1)
    assert traces.one("wait ask").start_time == traces.one("step ask", {"spanflow.step.attempt": 1}).end_time


async def test_a_stretch_of_more_than_a_second_announces_itself_in_its_own_trace(traces: Traces) -> None:
    slow = Workflow("slow", input=int).then(ask).sleep(60)
    async with Runtime(MemoryStore(), clock=FakeClock()) as runtime:
        run = await started(runtime, slow)
        await run.resume(1)
    traces.assert_complete(2)
    assert [format_trace_id(context_of(span).trace_id) for span in traces.find("run.started")] == [traces.trace_ids[1]]


async def test_another_runtime_ends_it_in_a_trace_of_its_own(open_durable: Open, traces: Traces) -> None:
    async with Runtime(open_durable(), workflows=[flow]) as runtime:
        run = await started(runtime, flow)
    async with Runtime(open_durable(), workflows=[flow]) as runtime:
        again = await runtime.get_run(run.run_id)
        assert (await again.resume(10)).unwrap() == 28
        found = [(await runtime.find_runs(trace_id=trace_id))[0].run_id for trace_id in traces.trace_ids]
        assert found == [run.run_id, run.run_id]
    async with Runtime(open_durable(), workflows=[flow]) as runtime:
        ended: WorkflowResult[Any] = await (await runtime.get_run(run.run_id)).wait()
        assert ended.trace_id == traces.trace_ids[1]
        await runtime.delete_run(run.run_id)
        assert [await runtime.find_runs(trace_id=trace_id) for trace_id in traces.trace_ids] == [[], []]
    traces.assert_complete(2)


async def test_a_stretch_whose_process_leaves_goes_on_in_its_trace(open_durable: Open, traces: Traces) -> None:
    begun = asyncio.Event()

    @step
    async def hold(value: int, ctx: StepContext) -> int:
        if ctx.attempt == 1:
            begun.set()
            await asyncio.Event().wait()
        return value

    held = Workflow("held", input=int).then(Workflow("inner", input=int).then(ask).then(hold))
    async with Runtime(open_durable(), workflows=[held]) as runtime:
        run = await started(runtime, held)
        stream = await run.resume_stream(10)
        await begun.wait()
    async with Runtime(open_durable(), workflows=[held]) as runtime:
        result = await (await runtime.get_run(run.run_id)).wait()
        assert (result.unwrap(), result.trace_id) == (11, stream.trace_id)
    traces.assert_complete(2)
    spans_lie_within_their_parents(traces)
    first, second = traces.roots
    assert links_of(second) == [format_span_id(context_of(first).span_id)]
    assert format_trace_id(context_of(second).trace_id) == stream.trace_id
    assert len(traces.find("step hold")) == 2


async def test_a_run_that_goes_back_in_one_of_several_traces_has_one_of_its_own(
    runtime: Runtime, traces: Traces
) -> None:
    run = await started(runtime, flow)
    await run.resume(10)
    new = await run.time_travel("last")
    assert (await new.wait()).unwrap() == 28
    assert (await new.wait()).trace_id == new.trace_id == traces.trace_ids[2]
    traces.assert_complete(3)
