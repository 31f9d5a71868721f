"""Traces: the tree for snapshots, lookups, completeness, and whose span is whose."""

import asyncio
import gc
import re
import threading
import time
import weakref
from collections.abc import Sequence
from inspect import cleandoc
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from spanflow import Retry, Runtime, StepContext, TracingOptions, Workflow, step, tool
from spanflow.testing import FakeClock, Traces, capture_traces
from spanflow.testing.recording import Recording, key_of

TRACE = 0xABC
DAY = 86_400.0  # s


def tracer() -> trace.Tracer:
    """Return the tracer of code that knows nothing of spanflow."""
    return trace.get_tracer("app")


@step
async def increment(value: int) -> int:
    return value + 1


@step
async def double(value: int) -> int:
    return value * 2


@tool
async def search(query: str) -> list[str]:
    """Find passages."""
    return [query]


@step
async def ask(value: int, ctx: StepContext) -> int:
    ctx.tracing_context.current_span.set_attribute("app.value", value)
    await asyncio.gather(search(query="one"), search(query="two"))
    return value


@step
async def approve(value: int, ctx: StepContext) -> int:
    return value if await ctx.suspend(resume=bool) else 0


numbers = Workflow("numbers", input=int).then(increment).then(double)


async def start(workflow: Workflow[int, Any], value: int = 1, **options: Any) -> Any:
    return (await (await workflow.create_run()).start(value, **options)).unwrap()


# --- the tree


async def test_the_tree_is_what_happened_in_the_order_in_which_it_started(traces: Traces) -> None:
    await start(Workflow("qa", input=int).then(increment).then(ask).then(double))
    assert traces.tree() == cleandoc("""
        invoke_workflow qa
        ├── step increment
        ├── step ask
        │   ├── execute_tool search
        │   └── execute_tool search
        └── step double
    """)


async def test_the_tree_shows_attributes_that_are_asked_for(traces: Traces) -> None:
    await start(Workflow("qa", input=int).then(ask), 7)
    assert "step ask  [app.value=7]" in traces.tree(attributes=["app.value"])


async def test_the_tree_shows_times_where_they_are_wanted(traces: Traces) -> None:
    await start(numbers)
    assert re.search(r"step double +\d+ [mµ]s", traces.tree(times=True))


def test_the_tree_of_nothing_is_empty(traces: Traces) -> None:
    assert traces.tree() == ""
    assert traces.spans == traces.roots == traces.orphans == traces.find() == ()


def test_steps_that_start_in_the_same_instant_stand_in_the_order_of_the_plan(traces: Traces) -> None:
    zebra, ant = increment.with_id("zebra"), increment.with_id("ant")
    workflow = Workflow("herd", input=int).parallel(zebra, double, ant)

    async def main() -> None:
        await (await workflow.create_run(clock=FakeClock())).start(1)

    drawn: set[str] = set()
    for _ in range(5):
        asyncio.run(main())
        assert len({span.start_time for span in traces.spans}) == 1
        drawn.add(traces.tree())
        traces.clear()
    assert drawn == {
        cleandoc("""
            invoke_workflow herd
            ├── step zebra
            ├── step double
            └── step ant
        """)
    }


def failing(id: str, *, wakes: threading.Event | None = None, waits_for: threading.Event | None = None) -> Any:
    """Make a step that fails once, in a thread, after another has."""
    tried: list[int] = []

    @step(id=id, retry=Retry(max_attempts=2, delay=0.001, jitter=0.0))
    def fail(value: int) -> int:
        if waits_for is not None:
            assert waits_for.wait(10)
        tried.append(value)
        if len(tried) == 1:
            raise ConnectionError("not yet")
        if wakes is not None:
            wakes.set()
        return value

    return fail


@pytest.mark.parametrize("first", ["a", "b"])
async def test_the_attempts_of_a_step_stand_together_whoever_of_its_siblings_is_faster(
    traces: Traces, first: str
) -> None:
    done = threading.Event()
    a, b = (
        failing(id, wakes=done if id == first else None, waits_for=None if id == first else done) for id in ("a", "b")
    )
    await start(Workflow("race", input=int).parallel(a, b))
    assert traces.tree() == cleandoc("""
        invoke_workflow race
        ├── step a  ERROR ConnectionError: not yet
        ├── wait a
        ├── step a  [attempt 2]
        ├── step b  ERROR ConnectionError: not yet
        ├── wait b
        └── step b  [attempt 2]
    """)


async def test_items_of_a_foreach_stand_in_the_order_of_their_indexes(traces: Traces) -> None:
    @step
    async def nap(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    await (await Workflow("naps", input=list[int]).foreach(nap, concurrency=2).create_run()).start([50, 1, 20, 1])
    assert traces.tree() == cleandoc("""
        invoke_workflow naps
        └── foreach nap
            ├── step nap[0]
            ├── step nap[1]
            ├── step nap[2]
            └── step nap[3]
    """)


async def test_a_suspended_run_that_was_resumed_is_one_tree(traces: Traces) -> None:
    run = await Workflow("pay", input=int).then(increment).then(approve).then(double).create_run()
    await run.start(1)
    await run.resume(True)
    traces.assert_complete()
    assert traces.tree() == cleandoc("""
        invoke_workflow pay
        ├── run.started
        ├── step increment
        ├── step approve  [suspended]
        ├── wait approve
        ├── step approve  [attempt 2]
        └── step double
    """)


async def test_a_run_of_months_has_a_tree_without_a_gap(traces: Traces) -> None:
    workflow = Workflow("patient", input=int).then(increment).sleep(90 * DAY).then(double)
    await (await workflow.create_run(clock=FakeClock())).start(1)
    traces.assert_complete()
    assert traces.tree() == cleandoc("""
        invoke_workflow patient
        ├── run.started
        ├── step increment
        ├── sleep
        └── step double
    """)
    assert "90 d" in traces.tree(times=True)


async def test_several_traces_are_drawn_in_the_order_in_which_they_began(traces: Traces) -> None:
    await start(Workflow("b", input=int).then(increment))
    await start(Workflow("a", input=int).then(double))
    assert traces.tree() == "invoke_workflow b\n└── step increment\ninvoke_workflow a\n└── step double"
    assert [f"{root.name}" for root in traces.roots] == ["invoke_workflow b", "invoke_workflow a"]


async def test_steps_of_one_run_do_not_stand_where_those_of_another_did(traces: Traces) -> None:
    await start(Workflow("one", input=int).then(increment).then(double))
    await start(Workflow("two", input=int).then(double).then(increment))
    assert traces.tree().splitlines()[3:] == ["invoke_workflow two", "├── step double", "└── step increment"]


async def test_a_run_that_was_resumed_stands_where_it_began(traces: Traces) -> None:
    first = await Workflow("first", input=int).then(approve).create_run()
    await first.start(1)
    await start(Workflow("second", input=int).then(double))
    await first.resume(True)
    assert [root.name for root in traces.roots] == ["invoke_workflow first", "invoke_workflow second"]
    assert traces.tree().startswith("invoke_workflow first")


# --- lookups


async def test_spans_are_kept_in_the_order_in_which_they_ended(traces: Traces) -> None:
    await start(numbers)
    assert [span.name for span in traces.spans] == ["step increment", "step double", "invoke_workflow numbers"]


async def test_spans_are_found_by_name_pattern_and_attributes(traces: Traces) -> None:
    options = TracingOptions(user_id="u-42", tags=["a", "b"])
    await start(Workflow("qa", input=int).then(ask).then(ask.with_id("again")), tracing_options=options)

    def names(*args: Any) -> list[str]:
        return [span.name for span in traces.find(*args)]

    assert names("step ask") == ["step ask"]
    assert names("step *") == ["step ask", "step again"]
    assert names("execute_tool *") == ["execute_tool search"] * 4
    assert names("*", {"spanflow.step.attempt": 1}) == ["step ask", "step again"]
    assert names("*", {"spanflow.step.attempt": 1, "spanflow.step.id": "again"}) == ["step again"]
    assert names("*", {"user.id": ...}) == ["invoke_workflow qa"]
    assert names("*", {"spanflow.tags": ["a", "b"]}) == ["invoke_workflow qa"]
    assert names("*", {"user.id": "u-43"}) == names("step") == names("*", {"nothing": None}) == []


def test_a_name_that_looks_like_a_pattern_finds_itself(traces: Traces) -> None:
    tracer().start_span("SELECT [dbo]").end()
    tracer().start_span("GET /*").end()
    assert traces.one("SELECT [dbo]").name == "SELECT [dbo]"
    assert traces.one("GET /*").name == "GET /*"


async def test_one_span_is_one_or_an_error_that_shows_the_tree(traces: Traces) -> None:
    await start(numbers)
    assert traces.one("step double").attributes is not None
    with pytest.raises(AssertionError, match=r"one span 'step x' with \{'a.b': 1\}, found 0 in\ninvoke_workflow numb"):
        traces.one("step x", {"a.b": 1})
    with pytest.raises(AssertionError, match="one span 'step \\*', found 2 in\ninvoke_workflow numbers"):
        traces.one("step *")


async def test_children_of_a_span_are_those_right_below_it(traces: Traces) -> None:
    await start(Workflow("qa", input=int).then(ask).then(double))
    root = traces.one("invoke_workflow qa")
    assert [span.name for span in traces.children(root)] == ["step ask", "step double"]
    assert traces.children(traces.one("step double")) == ()


async def test_the_trace_id_is_the_stream_s(traces: Traces) -> None:
    stream = await (await numbers.create_run()).stream(1)
    await stream.get_workflow_state()
    assert traces.trace_ids == (stream.trace_id,)


async def test_what_was_cleared_is_gone_and_what_follows_is_kept(traces: Traces) -> None:
    await start(numbers)
    traces.clear()
    assert traces.spans == ()
    await start(Workflow("next", input=int).then(double))
    traces.assert_complete()
    assert traces.tree() == "invoke_workflow next\n└── step double"


def test_a_span_that_is_open_when_all_is_cleared_is_kept_when_it_ends(traces: Traces) -> None:
    span = tracer().start_span("open")
    traces.clear()
    span.end()
    assert [span.name for span in traces.spans] == ["open"]


# --- completeness


async def test_a_complete_trace_is_complete(traces: Traces) -> None:
    await start(Workflow("qa", input=int).then(ask).parallel(numbers, double))
    traces.assert_complete()
    assert len(traces.roots) == 1


async def test_as_many_traces_as_were_announced_are_complete(traces: Traces) -> None:
    await start(numbers)
    await start(numbers)
    traces.assert_complete(traces=2)
    with pytest.raises(AssertionError, match="2 traces instead of 1"):
        traces.assert_complete()


def test_no_span_at_all_is_not_complete(traces: Traces) -> None:
    with pytest.raises(AssertionError, match=r"0 traces instead of 1\n\(no spans\)"):
        traces.assert_complete()


async def test_a_run_that_has_not_ended_is_not_complete(traces: Traces) -> None:
    run = await Workflow("pay", input=int).then(approve).create_run()
    await run.start(1)
    assert [span.name for span in traces.orphans] == ["step approve", "run.started"]
    with pytest.raises(AssertionError) as refused:
        traces.assert_complete()
    text = str(refused.value)
    assert "has 0 roots instead of 1" in text
    assert "the parent of 'step approve' ('invoke_workflow pay') has not ended" in text
    assert "'invoke_workflow pay' was started and has not ended" in text
    assert "step approve" in text.splitlines()[-1]
    await run.cancel()
    traces.assert_complete()


def broken(*spans: tuple[str, int, int | None], remote: bool = False) -> Traces:
    """Return traces as no sound program makes them: name, id and parent of each span."""
    recording = Recording()
    for name, id, parent in spans:
        context = SpanContext(TRACE, id, False, TraceFlags(TraceFlags.SAMPLED))
        above = None if parent is None else SpanContext(TRACE, parent, remote, TraceFlags(TraceFlags.SAMPLED))
        recording.start(key_of(context), name)
        recording.end(ReadableSpan(name, context=context, parent=above, start_time=0, end_time=1))
    return Traces(recording)


def test_a_parent_that_never_was_makes_an_orphan() -> None:
    traces = broken(("root", 1, None), ("child", 2, 9))
    assert [span.name for span in traces.orphans] == ["child"]
    with pytest.raises(AssertionError, match=r"the parent of 'child' was never seen\nroot"):
        traces.assert_complete()


def test_a_parent_in_another_process_makes_no_orphan_but_a_root() -> None:
    traces = broken(("server", 2, 1), ("child", 3, 2), remote=True)
    assert traces.orphans == ()
    assert [span.name for span in traces.roots] == ["server"]
    traces.assert_complete()


def test_a_second_root_is_not_complete() -> None:
    with pytest.raises(AssertionError, match="has 2 roots instead of 1"):
        broken(("one", 1, None), ("two", 2, None)).assert_complete()


def test_a_span_id_that_is_there_twice_is_not_complete() -> None:
    with pytest.raises(AssertionError, match=f"2 spans have the id {2:016x}"):
        broken(("root", 1, None), ("child", 2, 1), ("child", 2, 1)).assert_complete()


def test_a_remote_parent_that_is_still_open_here_makes_an_orphan(traces: Traces) -> None:
    client = tracer().start_span("client")
    found = client.get_span_context()
    received = SpanContext(found.trace_id, found.span_id, True, found.trace_flags)
    tracer().start_span("server", trace.set_span_in_context(NonRecordingSpan(received), Context())).end()
    assert [span.name for span in traces.orphans] == ["server"]
    client.end()
    assert traces.orphans == ()
    traces.assert_complete()


# --- whose span is whose


def test_spans_of_a_block_stay_in_it() -> None:
    with capture_traces() as one:
        tracer().start_span("one").end()
    tracer().start_span("between").end()
    with capture_traces() as two:
        tracer().start_span("two").end()
    assert (one.tree(), two.tree()) == ("one", "two")


async def test_a_run_that_outlives_its_block_does_not_land_in_the_next() -> None:
    @step
    async def work(value: int) -> int:
        with tracer().start_as_current_span("request"):
            await search(query="late")
        return value

    @step
    async def wait(value: int) -> int:
        waiting.set()
        await go.wait()
        return value

    waiting, go = asyncio.Event(), asyncio.Event()
    workflow = Workflow("late", input=int).then(wait).then(work)
    with capture_traces() as one:
        run = await workflow.create_run()
        result = asyncio.create_task(run.start(1))
        tracer().start_span("one").end()
        await waiting.wait()
    with capture_traces() as two:
        go.set()
        assert (await result).unwrap() == 1
        await start(numbers)
    assert two.tree() == "invoke_workflow numbers\n├── step increment\n└── step double"
    two.assert_complete()
    assert one.tree() == "one"


async def test_a_run_that_began_while_nobody_looked_stays_unseen() -> None:
    @step
    async def work(value: int) -> int:
        with tracer().start_as_current_span("outer"), tracer().start_as_current_span("inner"):
            return value

    with capture_traces():
        pass  # from here on, spans are made
    run = await Workflow("unseen", input=int).wait_for_event("go", int).then(work).create_run()
    result = asyncio.create_task(run.start(1))
    await asyncio.sleep(0)
    with capture_traces() as traces:
        await run.send_event("go", 1)
        assert (await result).unwrap() == 1
    assert traces.tree() == ""


async def test_a_run_that_is_taken_up_again_belongs_to_whoever_does_it() -> None:
    async with Runtime() as runtime:
        run = await runtime.create_run(Workflow("pay", input=int).then(approve).then(double))
        with capture_traces() as one:
            await run.start(1)
        with capture_traces() as two:
            await run.resume(True)
    assert "approve  [suspended]" in one.tree()
    assert two.tree() == cleandoc("""
        invoke_workflow pay
        ├── wait approve
        ├── step approve  [attempt 2]
        └── step double
    """)
    two.assert_complete()


def test_blocks_below_one_span_share_its_trace_and_not_their_spans() -> None:
    with tracer().start_as_current_span("session"):
        drawn: list[str] = []
        for _ in range(2):
            with capture_traces() as traces:
                asyncio.run(start(numbers))
            traces.assert_complete()
            drawn.append(traces.tree())
    expected = """
        (remote parent)
        └── invoke_workflow numbers
            ├── step increment
            └── step double
    """
    assert drawn == [cleandoc(expected)] * 2


def test_spans_of_threads_belong_to_the_block_that_started_them() -> None:
    def work() -> None:
        for _ in range(50):
            with tracer().start_as_current_span("outer"):
                tracer().start_span("inner").end()

    with capture_traces() as traces:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(traces.find("outer")) == len(traces.find("inner")) == 200
    traces.assert_complete(traces=200)


async def test_a_span_is_there_as_soon_as_it_has_ended(traces: Traces) -> None:
    for number in range(1, 21):  # a tool outside of a run: nothing waits for a thread that would end spans
        await search(query="one")
        assert len(traces.spans) == number


def test_a_recording_keeps_no_span_alive_beyond_its_traces() -> None:
    with capture_traces() as traces:
        asyncio.run(start(numbers))
        spans: Sequence[Any] = [weakref.ref(span) for span in traces.spans]
    del traces
    gc.collect()
    assert [span() for span in spans] == [None] * len(spans)


def test_time_is_not_waited_for() -> None:
    began = time.monotonic()
    with capture_traces() as traces:
        for _ in range(100):
            tracer().start_span("quick").end()
    assert len(traces.spans) == 100
    assert time.monotonic() - began < 4.0  # five is how long the SDK lets spans wait for others
