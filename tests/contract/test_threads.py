"""Plain functions run in threads, which nothing stops: the run goes on without them, and its record is whole."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from spanflow import MemoryStore, Runtime, SQLiteStore, StepContext, Workflow, step, tool
from spanflow.events import ToolCall, ToolResultEvent
from spanflow.ports import Store
from spanflow.testing import Traces
from tests.contract.support import recorded


class Gate:
    """What threads wait at, and what they have done behind it."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.opened = threading.Event()
        self.passed = threading.Event()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def threads_switch_often() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "runs.db")
    yield made
    await made.aclose()


async def canceled_inside(gate: Gate, store: Store, workflow: Workflow[int, Any]) -> Any:
    """Cancel a run while a thread works for it, and let the thread go on when the run is over."""
    async with Runtime(store=store, workflows=[workflow]) as runtime:
        run = await runtime.create_run(workflow)
        stream = await run.stream(1)
        await asyncio.to_thread(gate.inside.wait, 10)
        result = await run.cancel()
        gate.opened.set()
        await asyncio.to_thread(gate.passed.wait, 10)
        await stream.get_workflow_state()
        return result, await recorded(run)


@pytest.mark.parametrize("kind", ["called by a step", "as a step"])
async def test_a_tool_in_a_thread_is_canceled_with_its_run_and_what_it_does_later_is_dropped(
    gate: Gate, store: Store, kind: str, traces: Traces
) -> None:
    @tool
    def look_up(number: int) -> int:
        """Wait at the gate."""
        gate.inside.set()
        gate.opened.wait(10)
        return number

    @tool
    def note(number: int) -> int:
        """Come late."""
        return number

    @step
    def work(number: int, ctx: StepContext) -> int:
        try:
            return look_up(number=number)
        finally:
            note(number=number)
            ctx.set_state(late=True)
            gate.passed.set()

    flow = Workflow("flow", input=int)
    if kind == "as a step":
        gate.passed.set()
        flow = flow.then(look_up)
    else:
        flow = flow.then(work)
    result, events = await canceled_inside(gate, store, flow)

    assert result.status == "canceled"
    assert result.state == {}
    called = [event for event in events if isinstance(event, ToolCall)]
    (ended,) = [event for event in events if isinstance(event, ToolResultEvent)]
    assert [event.payload.tool_name for event in called] == ["look_up"]
    assert ended.payload.tool_call_id == called[0].payload.tool_call_id
    assert ended.payload.error is not None
    assert ended.payload.error.type == "asyncio.exceptions.CancelledError"
    assert [event.type for event in events][-3:] == ["step-result", "step-finish", "finish"]
    assert events[-1].type == "finish"
    late = traces.find("execute_tool note")  # it did happen, when the run was over
    assert events[-1].payload.counts.spans == len(traces.spans) - len(late)
    traces.assert_complete()
    root, call = traces.one("invoke_workflow flow"), traces.one("execute_tool look_up")
    assert call.end_time is not None
    assert root.end_time is not None
    assert call.end_time <= root.end_time


async def test_what_a_thread_did_before_its_step_was_canceled_counts(gate: Gate, store: Store, traces: Traces) -> None:
    @tool
    def look_up(number: int) -> int:
        """Be quick."""
        return number

    @step
    def work(number: int, ctx: StepContext) -> int:
        look_up(number=number)
        ctx.set_state(seen=number)
        gate.inside.set()
        gate.opened.wait(10)
        gate.passed.set()
        return number

    result, events = await canceled_inside(gate, store, Workflow("flow", input=int).then(work))

    assert result.state == {"seen": 1}
    (ended,) = [event for event in events if isinstance(event, ToolResultEvent)]
    assert ended.payload.result == 1
    traces.assert_complete()


async def test_a_tool_that_fails_as_its_step_is_canceled_has_one_outcome_in_journal_and_trace(
    gate: Gate, store: Store, traces: Traces
) -> None:
    class Wordy(Exception):
        """Is still being written down, in its thread, as the loop cancels the step."""

        def __str__(self) -> str:
            gate.inside.set()
            gate.opened.wait(0.2)
            return "no such number"

    @tool
    def look_up(number: int) -> int:
        """Fail."""
        raise Wordy

    @step
    def work(number: int) -> int:
        try:
            return look_up(number=number)
        finally:
            gate.passed.set()

    result, events = await canceled_inside(gate, store, Workflow("flow", input=int).then(work))

    assert result.status == "canceled"
    (ended,) = [event for event in events if isinstance(event, ToolResultEvent)]
    error = ended.payload.error
    assert error is not None
    assert (error.type.rpartition(".")[2], error.message) == ("Wordy", "no such number")
    (call,) = traces.find("execute_tool look_up")
    assert call.attributes is not None
    assert call.attributes["error.type"] == error.type
    traces.assert_complete()


async def test_a_call_that_is_dropped_while_another_ends_does_not_hold_that_up(traces: Traces) -> None:
    begun: list[Any] = []

    class Dropping(Exception):
        """Lets go of a call as it is written down, as the garbage collector may at any time."""

        def __str__(self) -> str:
            begun.clear()
            return "that was all"

    @tool
    async def listen() -> None:
        """Wait for good."""
        await asyncio.Event().wait()

    @tool
    def speak() -> None:
        """Fail."""
        raise Dropping

    @step
    async def work(number: int) -> int:
        begun.append(listen())
        begun[0].send(None)
        with pytest.raises(Dropping):
            speak()
        return number

    result = await (await Workflow("flow", input=int).then(work).create_run()).start(1)
    assert result.unwrap() == 1
    traces.assert_complete()


@pytest.mark.usefixtures("threads_switch_often")
async def test_tools_that_threads_of_one_step_call_at_once_are_told_apart(traces: Traces) -> None:
    @tool
    def note(number: int) -> int:
        """Take a note."""
        return number

    @step
    async def work(number: int) -> int:
        begin = threading.Barrier(4)

        def call() -> None:
            begin.wait()
            note(number=number)

        await asyncio.gather(*(asyncio.to_thread(call) for _ in range(4)))
        return number

    run = await Workflow("flow", input=list[int]).foreach(work).create_run()
    await run.start(list(range(500)))
    called = [event for event in await recorded(run) if isinstance(event, ToolCall)]
    assert len({event.payload.tool_call_id for event in called}) == len(called) == 4 * 500
    assert len({span.context.span_id for span in traces.find("execute_tool note") if span.context}) == 4 * 500
    traces.assert_complete()
