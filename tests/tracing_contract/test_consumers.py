"""Nobody outside of a run is ever below it: readers, requests, other runs; and leaving early upsets no context."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx
import pytest
from opentelemetry import propagate, trace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from spanflow import Event, Runtime, StepContext, Workflow, step, tool
from spanflow.testing import Traces
from tests.tracing_contract.inside import count, open_one, parent_of, same, shop, user, weigh
from tests.tracing_contract.reading import attributes, check, parent_id, span_id, trace_id

pytestmark = pytest.mark.usefixtures("no_failed_detach")


# ---------------------------------------------------------------- consumers


async def test_spans_of_whoever_reads_a_stream_are_never_below_the_run(traces: Traces) -> None:
    stream = await (await shop().then(open_one).then(weigh).create_run()).stream(1)
    with user.start_as_current_span("page"):
        async for event in stream:
            with user.start_as_current_span(f"render {event.type}"):
                await asyncio.sleep(0)
    async for _ in stream:
        raise AssertionError("the stream was read to its end")
    with user.start_as_current_span("later"):
        await stream.get_workflow_state()
    rendered = traces.find("render *")
    assert len(rendered) > 8
    assert {parent_id(span) for span in rendered} == {span_id(traces.one("page"))}
    assert traces.one("later").parent is None
    ours = {trace_id(span) for span in traces.spans if span.name.startswith(("step", "invoke", "execute", "scales"))}
    assert ours == {stream.trace_id}
    assert trace_id(traces.one("page")) != stream.trace_id


async def test_a_reader_below_the_same_parent_stands_beside_the_run(traces: Traces) -> None:
    run = await shop().then(open_one).create_run()
    with user.start_as_current_span("request"):
        async for event in await run.stream(1):
            with user.start_as_current_span(f"render {event.seq}"):
                pass
    check(traces)
    request = span_id(traces.one("request"))
    assert {parent_id(span) for span in traces.find("render *")} == {request}
    assert parent_id(traces.one("invoke_workflow shop")) == request


async def test_spans_of_observers_are_never_below_the_run(traces: Traces) -> None:
    run = await shop().then(open_one).create_run()
    stream = await run.stream(1)

    async def observe(name: str) -> int:
        seen = 0
        with user.start_as_current_span(name):
            async for _ in run.observe_stream():
                with user.start_as_current_span(f"seen by {name}"):
                    seen += 1
        return seen

    one, two = await asyncio.gather(observe("one"), observe("two"))
    await stream.get_workflow_state()
    assert one == two > 3
    for name in ("one", "two"):
        assert {parent_id(span) for span in traces.find(f"seen by {name}")} == {span_id(traces.one(name))}
        assert traces.one(name).parent is None


async def test_a_step_may_read_the_stream_of_a_run_of_its_own(traces: Traces) -> None:
    inner = Workflow("inner", input=int).then(open_one)

    @step
    async def read(value: int) -> int:
        seen = 0
        async for _ in await (await inner.create_run()).stream(value):
            with user.start_as_current_span("render"):
                seen += 1
        return seen

    (await (await shop().then(read).create_run()).start(1)).unwrap()
    check(traces)
    assert parent_of(traces, "invoke_workflow inner") == "step read"
    assert {parent_id(span) for span in traces.find("render")} == {span_id(traces.one("step read"))}


# ---------------------------------------------------------------- runs in runs, runs side by side


async def test_a_run_in_a_run_in_a_web_request_is_one_trace(traces: Traces) -> None:
    inner = Workflow("inner", input=int).then(open_one).then(weigh)

    @step
    async def delegate(value: int) -> int:
        return (await (await inner.create_run()).start(value)).unwrap()

    @step
    def delegate_from_thread(value: int) -> int:
        async def run_inner() -> int:
            run = await inner.with_id("inner in a thread").create_run()
            return (await run.start(value)).unwrap()

        return asyncio.run(run_inner())

    outer = shop().then(delegate).then(delegate_from_thread)

    async def order(request: Request) -> JSONResponse:
        run = await outer.create_run()
        stream = await run.stream(int(request.path_params["value"]))
        types = [event.type async for event in stream]
        return JSONResponse({"trace_id": stream.trace_id, "events": len(types)})

    app = _traced(Starlette(routes=[Route("/orders/{value}", order)]))
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        response = await client.get("/orders/3", headers={"traceparent": traceparent})
    assert response.json()["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    check(traces)
    assert traces.trace_ids == ("0af7651916cd43dd8448eb211c80319c",)
    assert parent_of(traces, "invoke_workflow shop") == "GET /orders/3"
    assert parent_of(traces, "invoke_workflow inner") == "step delegate"
    assert parent_of(traces, "invoke_workflow inner in a thread") == "step delegate_from_thread"
    inner_ids = {attributes(span)["spanflow.run.id"] for span in traces.find("invoke_workflow *")}
    assert len(inner_ids) == 3


async def test_requests_side_by_side_do_not_mix(traces: Traces) -> None:
    meet = asyncio.Barrier(3)

    @step
    async def gather_here(value: int) -> int:
        await meet.wait()
        with user.start_as_current_span(f"mine {value}"):
            await asyncio.sleep(0)
        await meet.wait()
        return await weigh(item=value)

    async def order(request: Request) -> JSONResponse:
        run = await shop().then(gather_here).create_run()
        return JSONResponse((await run.start(int(request.path_params["value"]))).unwrap())

    app = _traced(Starlette(routes=[Route("/orders/{value}", order)]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        await asyncio.gather(*(client.get(f"/orders/{value}") for value in range(3)))
    traces.assert_complete(traces=3)
    by_trace: dict[str, set[str]] = {}
    for span in traces.spans:
        by_trace.setdefault(trace_id(span), set()).add(span.name)
    assert sorted(map(sorted, by_trace.values())) == [
        sorted(
            [
                f"GET /orders/{value}",
                "invoke_workflow shop",
                "step gather_here",
                f"mine {value}",
                "execute_tool weigh",
                "scales",
            ]
        )
        for value in range(3)
    ]


async def test_spans_of_runs_side_by_side_do_not_mix(traces: Traces) -> None:
    meet = asyncio.Barrier(20)

    @step
    async def hold(value: int) -> int:
        await meet.wait()
        with user.start_as_current_span("mine") as mine:
            mine.set_attribute("value", value)
            await asyncio.sleep(0)
        return await weigh(item=value)

    @step
    def hold_in_thread(value: int) -> int:
        with user.start_as_current_span("in thread") as mine:
            mine.set_attribute("value", value)
        return value

    workflow = Workflow("shop", input=int).then(hold).then(hold_in_thread)
    runs = [await workflow.create_run(run_id=f"run-{number}") for number in range(20)]
    results = await asyncio.gather(*(run.start(number) for number, run in enumerate(runs)))
    traces.assert_complete(traces=20)
    for number, result in enumerate(results):
        found = [span for span in traces.spans if trace_id(span) == result.trace_id]
        assert len(found) == 7
        (root,) = [span for span in found if span.name == "invoke_workflow shop"]
        assert attributes(root)["spanflow.run.id"] == f"run-{number}"
        assert {attributes(span)["value"] for span in found if "value" in attributes(span)} == {number}


async def test_spans_of_arms_side_by_side_do_not_mix(traces: Traces) -> None:
    meet = asyncio.Barrier(5)

    @step
    async def hold(value: int, ctx: StepContext) -> int:
        await meet.wait()
        with user.start_as_current_span(f"mine {value}"):
            await meet.wait()
            return await weigh(item=value)

    workflow = Workflow("shop", input=list[int]).foreach(hold, concurrency=5)
    (await (await workflow.create_run()).start(list(range(5)))).unwrap()
    check(traces)
    for item in traces.find("step hold"):
        (mine,) = traces.children(item)
        assert mine.name == f"mine {attributes(item)['spanflow.foreach.index']}"
        assert [span.name for span in traces.children(mine)] == ["execute_tool weigh"]


async def test_a_run_started_by_a_step_and_left_running_is_still_complete(traces: Traces) -> None:
    stop = asyncio.Event()

    @step
    async def wait_here(value: int) -> int:
        await stop.wait()
        return value

    inner = Workflow("inner", input=int).then(wait_here)
    left: list[Awaitable[Any]] = []

    @step
    async def start_only(value: int) -> int:
        stream = await (await inner.create_run()).stream(value)
        left.append(stream.get_workflow_state())
        return value

    (await (await shop().then(start_only).create_run()).start(1)).unwrap()
    stop.set()
    await left[0]
    traces.assert_complete()
    assert parent_of(traces, "invoke_workflow inner") == "step start_only"


async def test_a_task_that_outlives_its_step_stays_below_it_and_out_of_the_events(traces: Traces) -> None:
    go = asyncio.Event()
    left: list[asyncio.Task[int]] = []

    @step
    async def leave_behind(value: int) -> int:
        async def later() -> int:
            await go.wait()
            with user.start_as_current_span("late"):
                return await weigh(item=value)

        left.append(asyncio.create_task(later()))
        return value

    stream = await (await shop().then(leave_behind).create_run()).stream(4)
    types = [event.type async for event in stream]
    assert types == ["start", "step-start", "step-result", "step-finish", "finish"]
    go.set()
    assert await left[0] == 4
    traces.assert_complete()
    assert parent_of(traces, "late") == "step leave_behind"
    assert parent_of(traces, "execute_tool weigh") == "late"


# ---------------------------------------------------------------- leaving early


async def _slow(started: asyncio.Event, stop: asyncio.Event) -> Workflow[int, int]:
    @step
    async def work(value: int) -> int:
        with user.start_as_current_span("mine"):
            started.set()
            await stop.wait()
        return value

    return shop().then(same).then(work)


@pytest.mark.parametrize("leave", ["break", "aclose", "cancel", "forget"])
async def test_leaving_a_stream_early_neither_stops_the_run_nor_upsets_any_context(traces: Traces, leave: str) -> None:
    started, stop = asyncio.Event(), asyncio.Event()
    run = await (await _slow(started, stop)).create_run()
    stream = await run.stream(1)

    async def read(events: AsyncIterator[Event]) -> None:
        with user.start_as_current_span("reader"):
            async for event in events:
                if event.type == "step-finish" and leave == "break":
                    break
            if leave == "cancel":
                raise AssertionError("it was canceled before")

    match leave:
        case "break":
            await read(stream)
        case "aclose":
            await anext(stream)
            await stream.aclose()
        case "cancel":
            reader = asyncio.create_task(read(stream))
            await started.wait()
            reader.cancel()
            await asyncio.wait([reader])
            assert reader.cancelled()
        case _:
            await anext(stream)
    del stream
    gc.collect()
    await started.wait()
    assert trace.get_current_span() is trace.INVALID_SPAN
    stop.set()
    assert (await run.wait()).unwrap() == 1
    assert parent_of(traces, "mine") == "step work"
    assert trace_id(traces.one("invoke_workflow shop")) == run.trace_id


async def test_canceling_the_caller_of_start_leaves_the_run_going(traces: Traces) -> None:
    started, stop = asyncio.Event(), asyncio.Event()
    run = await (await _slow(started, stop)).create_run()
    caller = asyncio.create_task(run.start(1))
    await started.wait()
    caller.cancel()
    await asyncio.wait([caller])
    stop.set()
    assert (await run.wait()).unwrap() == 1
    check(traces)


async def test_a_runtime_that_is_left_ends_the_spans_of_what_it_still_executes(traces: Traces) -> None:
    started = asyncio.Event()
    async with Runtime() as runtime:
        run = await runtime.create_run(await _slow(started, asyncio.Event()))
        with user.start_as_current_span("request"):
            await run.stream(1)
        await started.wait()
    check(traces)
    assert attributes(traces.one("invoke_workflow shop"))["spanflow.run.status"] == "canceled"


def test_a_loop_that_ends_with_a_run_going_closes_its_spans(traces: Traces) -> None:
    async def main() -> None:
        started = asyncio.Event()
        run = await (await _slow(started, asyncio.Event())).create_run()
        stream = await run.stream(1)
        await anext(stream)
        await started.wait()

    asyncio.run(main())
    gc.collect()
    check(traces)
    assert attributes(traces.one("invoke_workflow shop"))["spanflow.run.status"] == "canceled"


@pytest.mark.parametrize(
    "place",
    [
        "step",
        "tool",
        "streaming tool",
        "nested run",
        "sleep",
    ],
)
def test_a_loop_that_is_closed_over_a_run_upsets_no_context(
    traces: Traces, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    started: list[asyncio.Event] = []

    async def hang() -> None:
        started[0].set()
        await asyncio.Event().wait()

    @step
    async def wait_here(value: int) -> int:
        await hang()
        return value

    @tool
    async def hanging(item: int) -> int:
        """Hang."""
        await hang()
        return item

    @step
    async def read(value: int) -> int:
        async for _ in count(up_to=100):
            await hang()
        return value

    workflow: Workflow[int, int] = {
        "step": shop().then(wait_here),
        "tool": shop().then(hanging),
        "streaming tool": shop().then(read),
        "nested run": shop().then(Workflow("inner", input=int).then(wait_here)),
        "sleep": shop()
        .parallel(Workflow("inner", input=int).sleep(3600), wait_here)
        .map(lambda both: max(both), id="larger"),
    }[place]

    async def main() -> None:
        started.append(asyncio.Event())
        stream = await (await workflow.create_run()).stream(1)
        await anext(stream)
        await started[0].wait()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    del loop
    gc.collect()
    logged = caplog.text
    caplog.clear()
    assert "detach" not in logged
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_loop_that_ends_with_a_streaming_tool_half_read_upsets_no_context(traces: Traces) -> None:
    async def main() -> None:
        started = asyncio.Event()

        @step
        async def read(value: int) -> int:
            async for _ in count(up_to=100):
                started.set()
                await asyncio.Event().wait()
            return value

        await (await shop().then(read).create_run()).stream(1)
        await started.wait()

    asyncio.run(main())
    gc.collect()
    check(traces)


async def test_canceling_a_run_ends_the_spans_inside_it_in_their_own_context(traces: Traces) -> None:
    started = asyncio.Event()

    @step
    async def read(value: int) -> int:
        with user.start_as_current_span("mine"):
            async for _ in count(up_to=100):
                started.set()
                await asyncio.Event().wait()
        return value

    run = await shop().then(Workflow("inner", input=int).then(read)).create_run()
    await run.stream(1)
    await started.wait()
    await run.cancel()
    check(traces)
    assert parent_of(traces, "execute_tool count") == "mine"


Scope = MutableMapping[str, Any]


def _traced(app: Starlette) -> Callable[[Scope, Any, Any], Awaitable[None]]:
    """Wrap an application as an instrumentation does: a span for each request, below what the request carries."""

    async def traced(scope: Scope, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        name = f"{scope['method']} {scope['path']}"
        with trace.get_tracer("asgi").start_as_current_span(name, propagate.extract(headers)):
            await app(scope, receive, send)

    return traced
