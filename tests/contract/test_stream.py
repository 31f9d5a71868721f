"""What a reader of a run sees: every event, in order, once, at its own pace, and without any hold on the run."""

import asyncio
import gc
import json
import re
import weakref
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ValidationError

from spanflow import (
    Event,
    MemoryStore,
    Retry,
    RunState,
    Runtime,
    SQLiteStore,
    StepContext,
    TracingOptions,
    Workflow,
    step,
    tool,
)
from spanflow.events import parse_event
from spanflow.testing import FakeClock, Traces
from tests.contract.support import SlowStore, lines, read_all, recorded, turns, until

DELTAS = {"step-output", "tool-call-delta"}
TYPES = {
    "start",
    "step-start",
    "step-output",
    "tool-call",
    "tool-call-streaming-start",
    "tool-call-delta",
    "tool-result",
    "step-retry",
    "step-suspended",
    "step-waiting",
    "step-result",
    "step-finish",
    "finish",
}


class Decision(BaseModel):
    approved: bool


class Boom(Exception):
    """What a step of these tests raises."""


@tool
async def search(query: str, limit: int = 3) -> list[str]:
    """Find passages."""
    return [f"{query} {number}" for number in range(limit)]


@tool
async def write(topic: str) -> AsyncGenerator[str, None]:
    """Write, word by word."""
    for word in ("on", topic, "done"):
        yield word


@tool
async def broken(query: str) -> int:
    raise Boom("no index")


@step(retry=Retry(max_attempts=2, delay=1.5, jitter=0))
async def flaky(value: int, ctx: StepContext) -> int:
    if ctx.attempt == 1:
        raise Boom("first try")
    return value + 1


@step
async def ask_tools(value: int, ctx: StepContext) -> int:
    await ctx.emit({"progress": 0.5})
    found = await search(query="what", limit=value)
    await write(topic="trees")
    try:
        await broken(query="x")
    except Boom:
        return len(found)
    return -1


@step
async def approve(value: int, ctx: StepContext) -> int:
    decision = await ctx.suspend({"amount": value}, resume=Decision)
    return value if decision.approved else 0


@step
async def double(value: int) -> int:
    return 2 * value


def listed(value: int) -> list[int]:
    return [value, value + 1]


def total(values: list[int]) -> int:
    return sum(values)


EVERYTHING = (
    Workflow("everything", input=int)
    .then(flaky)
    .then(ask_tools)
    .sleep(30, id="nap")
    .then(approve)
    .map(listed)
    .foreach(double.with_id("each"), concurrency=2)
    .map(total)
    .do_while(double.with_id("grow"), lambda value: value < 20)
    .parallel(double.with_id("left"), Workflow("nested", input=int).then(double))
    .wait_for_event("go", str, timeout=60)
)


async def everything() -> list[Event]:
    """Every event of a run that does everything there is."""
    clock = FakeClock()
    run = await EVERYTHING.create_run(clock=clock)
    first = await read_all(await run.stream(1, tracing_options=TracingOptions(metadata={"user.id": "u-42"})))
    await run.send_event("go", "now")
    second = await read_all(await run.resume_stream({"approved": True}))
    return [*first, *second]


def one(events: Sequence[Event], type: str, path: str | None = None) -> Any:
    found = [event for event in events if event.type == type and path in (None, event.path)]
    assert len(found) == 1, f"{len(found)} of {type} at {path}"
    return found[0]


def lifecycle(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.type not in DELTAS]


# --- what events hold


async def test_a_run_that_does_everything_gives_every_type_of_event() -> None:
    assert {event.type for event in await everything()} == TYPES


async def test_payloads_hold_what_the_contract_says() -> None:
    events = await everything()

    start = events[0]
    assert start.type == "start"
    assert (start.payload.workflow_id, start.payload.input) == ("everything", 1)
    assert start.payload.metadata == {"user.id": "u-42"}
    assert start.payload.resumed is None

    first, second = (event.payload for event in events if event.type == "step-start" and event.path == "flaky")
    assert (first.id, first.attempt, first.input) == ("flaky", 1, 1)
    assert (second.id, second.attempt, second.input) == ("flaky", 2, 1)
    assert first.foreach_index is None
    assert first.loop_iteration is None

    retry = one(events, "step-retry", "flaky").payload
    assert (retry.id, retry.attempt, retry.delay) == ("flaky", 1, 1.5)
    assert (retry.error.path, retry.error.message) == ("flaky", "first try")
    assert retry.error.type.endswith("Boom")
    assert "raise Boom" in retry.error.traceback

    output = one(events, "step-output", "ask_tools").payload
    assert (output.id, output.output) == ("ask_tools", {"progress": 0.5})

    waiting = one(events, "step-waiting", "nap")
    assert waiting.payload.id == "nap"
    assert waiting.payload.until == waiting.timestamp + 30_000_000_000
    assert one(events, "step-waiting", "go").payload.event == "go"

    suspended = one(events, "step-suspended").payload
    assert (suspended.id, suspended.payload) == ("approve", {"amount": 2})

    indices = [event.payload.foreach_index for event in events if event.type == "step-start" and "each[" in event.path]
    assert indices == [0, 1]
    rounds = [event.payload.loop_iteration for event in events if event.type == "step-start" and "grow#" in event.path]
    assert rounds == [1]

    result = one(events, "step-result", "flaky").payload
    assert (result.id, result.status, result.output, result.error) == ("flaky", "success", 2, None)
    finish = one(events, "step-finish", "flaky").payload
    assert (finish.id, finish.attempt) == ("flaky", 2)
    assert finish.duration == pytest.approx(0)


async def test_tool_events_tell_one_call_from_another() -> None:
    events: list[Any] = [event for event in await everything() if event.type.startswith("tool-")]
    calls = [event.payload for event in events if event.type == "tool-call"]
    assert [(call.tool_name, call.args) for call in calls] == [
        ("search", {"query": "what", "limit": 2}),
        ("write", {"topic": "trees"}),
        ("broken", {"query": "x"}),
    ]
    searched, written, failed = (call.tool_call_id for call in calls)
    assert len({searched, written, failed}) == 3

    def of(call_id: str) -> list[Any]:
        return [event for event in events if event.payload.tool_call_id == call_id]

    assert [event.type for event in of(searched)] == ["tool-call", "tool-result"]
    assert of(searched)[-1].payload.result == ["what 0", "what 1"]
    assert [event.type for event in of(written)] == [
        "tool-call",
        "tool-call-streaming-start",
        "tool-call-delta",
        "tool-call-delta",
        "tool-call-delta",
        "tool-result",
    ]
    assert [event.payload.delta for event in of(written)[2:-1]] == ["on", "trees", "done"]
    assert of(written)[-1].payload.result == "done"
    assert [event.type for event in of(failed)] == ["tool-call", "tool-result"]
    assert of(failed)[-1].payload.error.message == "no index"
    assert of(failed)[-1].payload.error.type.endswith("Boom")
    assert {event.payload.tool_name for event in of(written)} == {"write"}


async def test_the_last_event_says_how_it_ended_and_counts() -> None:
    events = await everything()
    suspended, finish = (event.payload for event in events if event.type == "finish")

    assert (suspended.status, suspended.suspended) == ("suspended", {"approve": {"amount": 2}})
    assert suspended.counts.retries == 1
    assert suspended.counts.tool_calls == 3
    assert suspended.duration == pytest.approx(31.5)

    assert (finish.status, finish.result, finish.error, finish.suspended) == ("success", "now", None, {})
    assert finish.counts.retries == 1
    assert finish.counts.tool_calls == 3
    started = {event.path for event in events if event.type == "step-start"}
    assert finish.counts.steps == len(started)


async def test_a_failed_run_says_why_in_its_finish() -> None:
    @step
    async def fails(value: int) -> int:
        raise Boom("no way")

    events = await read_all(await (await Workflow("flow", input=int).then(fails).create_run()).stream(1))
    result, finish = events[-3], events[-1]
    assert result.type == "step-result"
    assert result.payload.status == "failed"
    assert result.payload.error is not None
    assert result.payload.error.message == "no way"
    assert finish.type == "finish"
    assert finish.payload.status == "failed"
    assert finish.payload.error is not None
    assert (finish.payload.error.path, finish.payload.error.message) == ("fails", "no way")


async def test_all_events_have_one_envelope() -> None:
    for event in await everything():
        plain = json.loads(event.model_dump_json())
        assert {"type", "payload", "run_id", "seq", "timestamp", "trace_id", "span_id", "path"} <= set(plain)
        assert event.run_id
        assert isinstance(event.timestamp, int)
        assert event.path == "" if event.type in ("start", "finish") else event.path


async def test_an_event_cannot_be_changed() -> None:
    event = (await everything())[0]
    with pytest.raises(ValidationError, match="frozen"):
        event.seq = 7
    with pytest.raises(ValidationError, match="frozen"):
        event.payload.workflow_id = "other"  # pyright: ignore[reportAttributeAccessIssue]  # start has it


async def test_timestamps_are_those_of_the_runs_clock_and_never_go_back() -> None:
    clock = FakeClock()
    begin = clock.time_ns()
    run = await Workflow("flow", input=int).then(double).sleep(90).then(double.with_id("d2")).create_run(clock=clock)
    events = await read_all(await run.stream(1))
    times = [event.timestamp - begin for event in events]
    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] == 90_000_000_000
    assert one(events, "finish").payload.duration == 90
    assert one(events, "step-finish", "sleep").payload.duration == 90


# --- order


async def test_lifecycle_events_are_numbered_without_gaps_over_all_stretches() -> None:
    events = await everything()
    numbers = [event.seq for event in lifecycle(events)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [event.seq for event in events] == sorted(event.seq for event in events)


async def test_a_stream_begins_with_one_start_and_ends_with_one_finish() -> None:
    run = await EVERYTHING.create_run(clock=FakeClock())
    first = [event.type for event in await read_all(await run.stream(1))]
    await run.send_event("go", "now")
    second = [event.type for event in await read_all(await run.resume_stream({"approved": True}))]
    for types in (first, second):
        assert (types[0], types[-1]) == ("start", "finish")
        assert (types.count("start"), types.count("finish")) == (1, 1)


async def test_the_events_of_every_step_come_in_their_order() -> None:
    rank = {"step-start": 0, "step-retry": 4, "step-suspended": 4, "step-result": 5, "step-finish": 6}
    events = await everything()
    for path in {event.path for event in events if event.type == "step-start"}:
        of_path = [event.type for event in events if event.path == path]
        attempt: list[str] = []
        for type in of_path:
            if type == "step-start":
                attempt = []
            attempt.append(type)
            if type in ("step-retry", "step-suspended", "step-finish"):
                ranks = [rank.get(each, 3) for each in attempt]
                assert ranks == sorted(ranks), attempt
                assert attempt[0] == "step-start", attempt
                assert len(set(ranks) - {3}) == len([each for each in ranks if each != 3]), attempt
        assert of_path[-2:] == ["step-result", "step-finish"], path


async def test_what_a_step_emits_stands_between_its_start_and_its_result() -> None:
    @step
    async def talk(value: int, ctx: StepContext) -> int:
        await ctx.emit("before")
        await search(query="x")
        ctx.emit("after")
        return value

    run = await Workflow("flow", input=int).then(talk).create_run()
    assert [event.type for event in await read_all(await run.stream(1))] == [
        "start",
        "step-start",
        "step-output",
        "tool-call",
        "tool-result",
        "step-output",
        "step-result",
        "step-finish",
        "finish",
    ]


async def test_a_containers_events_enclose_those_of_its_steps() -> None:
    nested = Workflow("nested", input=int).then(double)
    run = await Workflow("flow", input=list[int]).foreach(nested).create_run()
    assert lines(await read_all(await run.stream([1])))[1:-1] == [
        "step-start nested",
        "step-start nested[0]",
        "step-start nested[0]/double",
        "step-result nested[0]/double",
        "step-finish nested[0]/double",
        "step-result nested[0]",
        "step-finish nested[0]",
        "step-result nested",
        "step-finish nested",
    ]


async def test_lifecycle_events_are_stored_before_they_are_published() -> None:
    store = SlowStore()
    flow = Workflow("flow", input=int).then(ask_tools).parallel(double, double.with_id("d2"))
    async with Runtime(store=store, workflows=[flow]) as runtime:
        run = await runtime.create_run(flow)
        seen = 0
        async for event in await run.stream(1):
            assert event.seq <= store.stored
            seen += 1
        assert seen > 10


# --- JSON


async def test_every_event_comes_back_from_its_json() -> None:
    for event in await everything():
        text = event.model_dump_json()
        from_text, from_mapping = parse_event(text), parse_event(json.loads(text))
        assert type(from_text) is type(from_mapping) is type(event)
        assert json.loads(from_text.model_dump_json()) == json.loads(text)
        assert from_mapping == from_text
        assert from_text.seq == event.seq


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(ValidationError):
        parse_event('{"type": "step-dance", "payload": {}}')
    with pytest.raises(ValidationError):
        parse_event('{"type": "start"}')


async def test_the_state_of_a_run_is_a_fold_over_its_events_also_over_their_json() -> None:
    events = await everything()
    live = RunState.fold(events)
    again = RunState.fold([parse_event(event.model_dump_json()) for event in events])
    for state in (live, again):
        assert (state.status, state.result, state.workflow_id) == ("success", "now", "everything")
        assert state.steps["flaky"].output == 2
        assert state.steps["left"].output == 40
        assert state.steps["each"].output == [4, 6]
        assert state.retries == 1
    assert {path: step.output for path, step in again.steps.items()} == {
        path: step.output for path, step in live.steps.items()
    }


async def test_a_value_is_stored_once_however_many_steps_it_goes_through() -> None:
    class Book(BaseModel):
        text: str

    @step
    async def write_down(text: str) -> Book:
        return Book(text=f"<{text}>")

    @step
    async def weigh(book: Book) -> int:
        return len(book.text)

    @step
    async def copies(book: Book) -> list[Book]:
        return [Book(text=f"copy of {book.text[1:-1]}!")]

    flow = (
        Workflow("flow", input=str)
        .then(write_down)
        .parallel(weigh, Workflow("nested", input=Book).then(weigh))
        .map(lambda pair, ctx: ctx.result_of(write_down).text, id="again")
    )
    words = "to be stored once " * 10
    run = await flow.create_run()
    text = "".join(event.model_dump_json() for event in await read_all(await run.stream(words)))
    assert text.count(words) == 3  # input, output of write_down, output of the map
    assert text.count(f"<{words}>") == 2

    listed = (
        Workflow("flow", input=Book)
        .then(copies)
        .foreach(weigh)
        .parallel(Workflow("n2", input=list[int]).map(total), Workflow("n3", input=list[int]).map(total, id="t3"))
    )
    run = await listed.create_run()
    text = "".join(event.model_dump_json() for event in await read_all(await run.stream(Book(text=f"<{words}>"))))
    assert text.count(f"copy of {words}!") == 1


async def test_a_value_is_stored_once_also_over_a_resume() -> None:
    @step
    async def write_down(text: str) -> list[str]:
        return [f"<{text}>"]

    @step
    async def ask(texts: list[str], ctx: StepContext) -> int:
        return await ctx.suspend(len(texts), resume=int)

    words = "to be stored once " * 10
    run = await Workflow("flow", input=str).then(write_down).then(ask).create_run()
    await run.start(words)
    await run.resume(1)
    text = "".join(event.model_dump_json() for event in await recorded(run))
    assert text.count(words) == 2
    assert text.count(f"<{words}>") == 1


async def test_deltas_are_streamed_and_not_stored() -> None:
    run = await Workflow("flow", input=int).then(ask_tools).create_run()
    streamed = await read_all(await run.stream(1))
    assert {event.type for event in streamed} >= DELTAS
    assert [event.seq for event in await recorded(run)] == [event.seq for event in lifecycle(streamed)]
    assert not DELTAS & {event.type for event in await recorded(run)}


# --- readers


class Gate:
    """A step that waits until the test opens it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()

    async def work(self, value: int) -> int:
        self.begun.set()
        await self.go.wait()
        return value


async def gated() -> tuple[Gate, Any]:
    gate = Gate()
    flow = Workflow("flow", input=int).then(double).then(step(id="gate")(gate.work)).then(double.with_id("d2"))
    return gate, await flow.create_run()


async def test_the_trace_id_of_a_stream_is_known_first_and_is_that_of_everything(traces: Traces) -> None:
    _, run = await gated()
    stream = await run.stream(1)
    trace_id = stream.trace_id
    assert stream.run_id == run.run_id
    assert trace_id is not None
    assert re.fullmatch("[0-9a-f]{32}", trace_id)
    assert (await anext(stream)).trace_id == trace_id
    result = await run.cancel()
    assert result.trace_id == trace_id
    assert {event.trace_id for event in await recorded(run)} == {trace_id}
    assert traces.trace_ids == (trace_id,)


async def test_the_events_are_read_from_the_stream_itself_or_from_its_stream() -> None:
    run = await Workflow("flow", input=int).then(double).create_run()
    stream = await run.stream(1)
    seen = [await anext(stream.stream)]
    seen += [event async for event in stream.stream]
    assert lines(seen) == ["start", "step-start double", "step-result double", "step-finish double", "finish"]
    assert [event async for event in stream] == []


@pytest.mark.parametrize("how", ["break", "aclose", "error", "cancel"])
async def test_leaving_early_does_not_stop_the_run(how: str) -> None:
    gate, run = await gated()
    stream = await run.stream(1)

    async def read() -> None:
        async for event in stream:
            if event.type == "step-result":
                if how == "error":
                    raise Boom("reader")
                if how == "aclose":
                    await stream.aclose()
                if how != "cancel":
                    break

    if how == "cancel":
        reader = asyncio.create_task(read())
        await gate.begun.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
    elif how == "error":
        with pytest.raises(Boom):
            await read()
    else:
        await read()

    await gate.begun.wait()
    gate.go.set()
    assert (await stream.get_workflow_state()).unwrap() == 4


async def test_a_reader_who_left_may_come_back_to_the_same_stream() -> None:
    gate, run = await gated()
    stream = await run.stream(1)
    seen: list[Event] = []
    async for event in stream:
        seen.append(event)
        break
    gate.go.set()
    seen += [event async for event in stream]
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].type == "finish"


async def test_aclose_ends_the_reading_also_of_somebody_who_waits() -> None:
    gate, run = await gated()
    stream = await run.stream(1)
    reader = asyncio.create_task(read_all(stream))
    await gate.begun.wait()
    await turns()
    await stream.aclose()
    async with asyncio.timeout(30):
        assert lines(await reader)[-1] == "step-start gate"
    assert await read_all(stream) == []
    await stream.aclose()

    gate.go.set()
    assert (await stream.get_workflow_state()).status == "success"


async def test_a_stream_may_be_read_long_after_the_end() -> None:
    run = await Workflow("flow", input=int).then(double).create_run()
    stream = await run.stream(1)
    await run.wait()
    await turns()
    assert lines(await read_all(stream))[-1] == "finish"


async def test_any_number_of_observers_see_the_same_from_wherever_they_join() -> None:
    gate, run = await gated()
    stream = await run.stream(1)
    early = [asyncio.create_task(read_all(run.observe_stream())) for _ in range(5)]
    await gate.begun.wait()
    middle = asyncio.create_task(read_all(run.observe_stream()))
    tail = asyncio.create_task(read_all(run.observe_stream(after=3)))
    await turns()
    gate.go.set()

    own = await read_all(stream)
    everyone = [await task for task in [*early, middle]]
    late = await read_all(run.observe_stream())
    for seen in [*everyone, late]:
        assert seen == own
    assert await tail == own[3:]
    assert await read_all(run.observe_stream(after=6)) == own[6:]
    assert await read_all(run.observe_stream(after=own[-1].seq)) == []


async def test_an_observer_follows_over_a_suspension_it_has_already_seen() -> None:
    run = await Workflow("flow", input=int).then(approve).create_run()
    await run.start(1)
    before = await read_all(run.observe_stream())
    assert before[-1].type == "finish"

    await run.resume({"approved": True})
    after = await read_all(run.observe_stream(after=before[-1].seq))
    assert after[0].type == "start"
    assert [event.seq for event in [*before, *after]] == list(range(1, len(before) + len(after) + 1))
    whole = await read_all(run.observe_stream())
    assert whole == [*before, *after]
    assert [event.type for event in whole].count("finish") == 2


async def test_a_run_is_observed_through_another_handle_of_its_runtime() -> None:
    gate = Gate()
    flow = Workflow("flow", input=int).then(step(id="gate")(gate.work))
    async with Runtime(workflows=[flow]) as runtime:
        run = await runtime.create_run(flow, run_id="r-1")
        stream = await run.stream(1)
        await gate.begun.wait()
        observer = asyncio.create_task(read_all((await runtime.get_run("r-1")).observe_stream()))
        await turns()
        gate.go.set()
        assert await observer == await read_all(stream)


# --- slow readers


async def test_a_slow_reader_loses_no_lifecycle_event_and_slows_nothing() -> None:
    flow = Workflow("flow", input=list[int]).foreach(double, concurrency=50)
    run = await flow.create_run()
    stream = await run.stream(list(range(700)))
    slow = run.observe_stream()
    assert (await anext(stream)).seq == 1
    assert (await anext(slow)).seq == 1

    async with asyncio.timeout(30):
        assert len((await run.wait()).unwrap()) == 700

    for reader in (stream, slow):
        numbers = [event.seq async for event in reader]
        assert numbers == list(range(2, len(numbers) + 2))
        assert len(numbers) > 2100


async def test_a_reader_that_reads_now_and_then_loses_nothing_either() -> None:
    flow = Workflow("flow", input=list[int]).foreach(double, concurrency=50)
    run = await flow.create_run()
    numbers: list[int] = []
    async for event in await run.stream(list(range(700))):
        numbers.append(event.seq)
        if len(numbers) % 10 == 0:
            await asyncio.sleep(0)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 2100


class Token:
    """Something emitted, of which it can be told whether anybody still holds it."""

    alive: ClassVar["weakref.WeakSet[Token]"] = weakref.WeakSet()

    def __init__(self) -> None:
        Token.alive.add(self)


async def test_a_reader_that_never_reads_holds_a_bounded_number_of_deltas() -> None:
    @step
    async def talk(value: int, ctx: StepContext) -> int:
        for _ in range(value):
            await ctx.emit(Token())
        return value

    run = await Workflow("flow", input=int).then(talk).create_run()
    stream = await run.stream(10_000)
    observer = run.observe_stream()
    assert (await run.wait()).unwrap() == 10_000
    gc.collect()
    assert len(Token.alive) < 5_000
    assert [event.type for event in lifecycle(await read_all(stream))][-1] == "finish"
    assert [event.type for event in lifecycle(await read_all(observer))][-1] == "finish"


async def test_the_number_is_bounded_also_where_each_delta_is_of_another_step() -> None:
    @step
    async def talk(value: int, ctx: StepContext) -> int:
        await ctx.emit(Token())
        return value

    run = await Workflow("flow", input=list[int]).foreach(talk, concurrency=100).create_run()
    stream = await run.stream(list(range(4_000)))
    assert (await run.wait()).status == "success"
    gc.collect()
    assert len(Token.alive) < 2_000
    assert (await stream.get_workflow_state()).status == "success"


async def test_what_a_slow_reader_gets_of_a_text_is_merged_in_order_and_whole() -> None:
    words = [f"{number} " for number in range(3_000)]  # 14 kB

    @tool
    async def speak(topic: str) -> AsyncGenerator[str, None]:
        for word in words:
            yield word

    @step
    async def talk(value: str, ctx: StepContext) -> int:
        for word in words:
            ctx.emit(word)
        await speak(topic=value)
        return 1

    run = await Workflow("flow", input=str).then(talk).create_run()
    stream = await run.stream("trees")
    await run.wait()
    events = await read_all(stream)
    spoken = [event.payload.delta for event in events if event.type == "tool-call-delta"]
    emitted = [event.payload.output for event in events if event.type == "step-output"]
    assert "".join(spoken) == "".join(words)
    assert "".join(emitted) == "".join(words)
    assert len(spoken) < 3_000


async def test_deltas_stay_in_order_for_a_reader_that_falls_behind_again_and_again() -> None:
    words = [f"{number} " for number in range(6_000)]
    gates = [asyncio.Event() for _ in range(6)]

    @step
    async def talk(value: int, ctx: StepContext) -> int:
        for number, word in enumerate(words):
            if number % 1_000 == 0:
                await gates[number // 1_000].wait()
            ctx.emit(word)
        return value

    run = await Workflow("flow", input=int).then(talk).create_run()
    stream = await run.stream(1)
    text = ""
    for gate in gates:
        gate.set()
        await turns()
        for _ in range(100):  # of a thousand
            event = await anext(stream)
            if event.type == "step-output":
                text += event.payload.output
    async for event in stream:
        if event.type == "step-output":
            text += event.payload.output
    assert text == "".join(words)


async def test_deltas_of_two_steps_are_not_mixed_up_when_they_are_merged() -> None:
    @step
    async def left(value: int, ctx: StepContext) -> int:
        for number in range(2_000):
            await ctx.emit(f"l{number} ")
        return value

    @step
    async def right(value: int, ctx: StepContext) -> int:
        for number in range(2_000):
            await ctx.emit(f"r{number} ")
        return value

    run = await Workflow("flow", input=int).parallel(left, right).create_run()
    stream = await run.stream(1)
    await run.wait()
    texts = {"left": "", "right": ""}
    async for event in stream:
        if event.type == "step-output":
            texts[event.path] += event.payload.output
    assert texts["left"] == "".join(f"l{number} " for number in range(2_000))
    assert texts["right"] == "".join(f"r{number} " for number in range(2_000))


async def test_a_reader_sees_an_event_as_soon_as_it_happens() -> None:
    gate, run = await gated()
    stream = await run.stream(1)
    async with asyncio.timeout(30):
        assert (await until(stream, "step-start", "gate")).payload.id == "gate"
    gate.go.set()
    assert lines(await read_all(stream))[0] == "step-result gate"


async def test_deltas_are_read_while_the_step_still_runs() -> None:
    go = asyncio.Event()

    @step
    async def talk(value: int, ctx: StepContext) -> int:
        await ctx.emit("first")
        await go.wait()
        return value

    run = await Workflow("flow", input=int).then(talk).create_run()
    stream = await run.stream(1)
    async with asyncio.timeout(30):
        assert (await until(stream, "step-output")).payload.output == "first"
    go.set()
    assert (await stream.get_workflow_state()).unwrap() == 1


@pytest.mark.parametrize("concurrency", [2, 200, 20_000])
@pytest.mark.parametrize("durable", [False, True])
async def test_steps_that_never_wait_leave_readers_and_whoever_cancels_their_turn(
    durable: bool, concurrency: int, tmp_path: Path
) -> None:
    ran: list[int] = []

    @step
    async def work(number: int) -> int:
        ran.append(number)
        return number

    workflow = Workflow("flow", input=list[int]).foreach(work, concurrency=concurrency)
    store = SQLiteStore(tmp_path / "runs.db") if durable else MemoryStore()
    async with Runtime(store, workflows=[workflow]) as runtime:
        run = await runtime.create_run(workflow)
        stream = await run.stream(list(range(20_000)))
        async for event in stream:
            if event.path == "work[50]":
                break
        result = await run.cancel()
    assert result.status == "canceled"
    assert len(ran) < 2000


async def test_a_step_that_calls_tools_that_never_wait_leaves_whoever_cancels_a_turn() -> None:
    called: list[int] = []

    @tool
    async def look_up(number: int) -> int:
        called.append(number)
        return number

    @step
    async def work(number: int) -> int:
        return sum([await look_up(number=each) for each in range(number)])

    run = await Workflow("flow", input=int).then(work).create_run()
    stream = await run.stream(20_000)
    await until(stream, "tool-result")
    assert (await run.cancel()).status == "canceled"
    assert len(called) < 2000
