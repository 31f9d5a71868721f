"""Runs in a file: what one runtime began, another one watches, finds, answers and ends."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, BeforeValidator

from spanflow import (
    DefinitionError,
    Event,
    InvalidInput,
    InvalidOutput,
    NotSuspended,
    Retry,
    RunConflict,
    RunFailed,
    Runtime,
    SQLiteStore,
    StepContext,
    TracingOptions,
    Workflow,
    step,
    tool,
)
from spanflow.events import StepStart
from spanflow.testing import FakeClock, Traces


@dataclass
class Line:
    what: str
    price: Decimal


class Order(BaseModel):
    number: int
    at: datetime
    lines: list[Line] = []
    blob: bytes = b""

    model_config = {"ser_json_bytes": "base64", "val_json_bytes": "base64"}


class Approval(BaseModel):
    approved: bool
    by: str


class Ask(BaseModel):
    order: Order
    question: str


ORDER = Order(number=7, at=datetime(2026, 1, 2, tzinfo=UTC), lines=[Line("tea", Decimal("1.10"))], blob=b"\x00\xff")


@step
async def count(order: Order) -> int:
    assert isinstance(order, Order)
    return len(order.lines)


@step
async def later(order: Order) -> Order:
    return order.model_copy(update={"at": order.at + timedelta(days=1), "number": order.number + 1})


@step
async def approve(order: Order, ctx: StepContext) -> Order:
    assert isinstance(order, Order)
    decision = await ctx.suspend(Ask(order=order, question="ok?"), resume=Approval)
    assert isinstance(decision, Approval)
    return order.model_copy(update={"number": 100 if decision.approved else 0})


@step
async def double(value: int) -> int:
    return 2 * value


@tool
async def search(query: str) -> list[str]:
    """Find passages."""
    return [query]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def runtime_of(path: Path, *workflows: Workflow[Any, Any], **options: Any) -> Runtime:
    """A runtime with a connection of its own: as good as another process."""
    return Runtime(store=SQLiteStore(path), workflows=workflows, **options)


async def read_all(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


def as_json(events: Sequence[Event]) -> list[str]:
    return [event.model_dump_json() for event in events]


@step
async def research(order: Order, ctx: StepContext) -> Order:
    (found,) = await search(query="tea")
    await ctx.emit({"found": found})
    ctx.set_state(found=found)
    return order


PURCHASE = Workflow("purchase", input=Order).then(research).then(later).then(later.with_id("again"))
APPROVAL = Workflow("approval", input=Order).then(later).then(approve).then(later.with_id("after"))


class TestRunning:
    async def test_a_result_has_its_types(self, path: Path) -> None:
        async with runtime_of(path, PURCHASE) as runtime:
            result = await (await runtime.create_run(PURCHASE)).start(ORDER)

        assert result.unwrap() == ORDER.model_copy(update={"number": 9, "at": datetime(2026, 1, 4, tzinfo=UTC)})
        assert result.state == {"found": "tea"}

    async def test_another_runtime_has_the_same_result(self, path: Path) -> None:
        async with runtime_of(path, PURCHASE) as runtime:
            run = await runtime.create_run(PURCHASE, resource_id="res")
            first = await run.start(ORDER)

        async with runtime_of(path, PURCHASE) as runtime:
            second = await (await runtime.get_run(run.run_id)).wait()

        assert second.unwrap() == first.unwrap()
        assert isinstance(second.unwrap(), Order)
        assert (second.status, second.state, second.trace_id) == (first.status, first.state, first.trace_id)
        assert second.steps.keys() == first.steps.keys()

    async def test_events_are_streamed_and_the_same_ones_replayed_by_another_runtime(self, path: Path) -> None:
        async with runtime_of(path, PURCHASE) as runtime:
            run = await runtime.create_run(PURCHASE)
            streamed = await read_all(await run.stream(ORDER))

        async with runtime_of(path, PURCHASE) as runtime:
            again = await runtime.get_run(run.run_id)
            replayed = await read_all(again.observe_stream())
            rest = await read_all(again.observe_stream(after=replayed[3].seq))

        assert [event.type for event in streamed].count("step-output") == 1
        assert as_json(replayed) == as_json([event for event in streamed if event.type != "step-output"])
        assert as_json(rest) == as_json(replayed[4:])

    async def test_a_failure_comes_back_with_its_path_type_and_message(self, path: Path) -> None:
        @step(retry=Retry(max_attempts=2, delay=1))
        async def explode(value: int) -> int:
            raise ValueError(f"cannot do {value}")

        flow = Workflow("flow", input=int).then(double).then(explode)
        async with runtime_of(path, flow, clock=FakeClock()) as runtime:
            run = await runtime.create_run(flow)
            first = await run.start(2)

        async with runtime_of(path, flow) as runtime:
            second = await (await runtime.get_run(run.run_id)).wait()

        assert isinstance(first.error and first.error.exception, ValueError)
        assert second.error is not None
        assert (second.error.path, second.error.type, second.error.message) == ("explode", "ValueError", "cannot do 4")
        assert "cannot do 4" in second.error.traceback
        assert second.steps["explode"].attempt == 2
        with pytest.raises(RunFailed, match="failed at 'explode': ValueError: cannot do 4"):
            second.unwrap()

    async def test_containers_and_their_values_come_back(self, path: Path) -> None:
        inner = Workflow("inner", input=int).then(double).map(lambda value: value + 1)
        flow = (
            Workflow("flow", input=list[int])
            .foreach(double, concurrency=3)
            .map(sum)
            .parallel(double.with_id("left"), inner)
            .map(lambda both: both[0] + both[1])
            .branch((lambda value: value > 10, double.with_id("large")), default=double.with_id("small"))
            .do_while(double.with_id("loop"), lambda value: value < 1000, max_iterations=20)
        )
        async with runtime_of(path, flow) as runtime:
            run = await runtime.create_run(flow)
            first = await run.start([1, 2, 3])
        async with runtime_of(path, flow) as runtime:
            second = await (await runtime.get_run(run.run_id)).wait()

        assert first.unwrap() == second.unwrap() == (24 + 25) * 2 * 16
        assert {where: each.status for where, each in second.steps.items()} == {
            where: each.status for where, each in first.steps.items()
        }

    async def test_a_run_that_bails_has_any_value_as_its_result(self, path: Path) -> None:
        @step
        async def leave(value: int, ctx: StepContext) -> int:
            ctx.bail("early")

        flow = Workflow("flow", input=int).then(leave)
        async with runtime_of(path, flow) as runtime:
            run = await runtime.create_run(flow)
            assert (await run.start(1)).result == "early"
        async with runtime_of(path, flow) as runtime:
            assert (await (await runtime.get_run(run.run_id)).wait()).result == "early"

    async def test_an_id_that_another_runtime_used_is_refused(self, path: Path) -> None:
        async with runtime_of(path, PURCHASE) as one, runtime_of(path, PURCHASE) as other:
            await (await one.create_run(PURCHASE, run_id="r-1")).start(ORDER)

            with pytest.raises(RunConflict, match="'r-1' already exists"):
                await (await other.create_run(PURCHASE, run_id="r-1")).start(ORDER)

    async def test_an_output_that_is_no_json_fails_its_step(self, path: Path) -> None:
        @step
        async def client(value: int) -> Any:
            return {"client": object()}

        flow = Workflow("flow", input=int).then(client)
        async with runtime_of(path, flow) as runtime:
            result = await (await runtime.create_run(flow)).start(1)

        assert result.status == "failed"
        assert result.error is not None
        assert result.error.path == "client"
        assert isinstance(result.error.exception, InvalidOutput)
        assert "value['client'] of type object" in result.error.message

    async def test_an_input_that_is_no_json_is_refused_and_nothing_is_recorded(self, path: Path) -> None:
        flow = Workflow("flow", input=Any).map(str)
        async with runtime_of(path, flow) as runtime:
            with pytest.raises(InvalidInput, match="of type object"):
                await (await runtime.create_run(flow)).start(object())

            assert await runtime.find_runs() == []


class TestAnswering:
    async def suspended(self, path: Path, **options: Any) -> str:
        async with runtime_of(path, APPROVAL) as runtime:
            run = await runtime.create_run(APPROVAL)
            result = await run.start(ORDER, **options)
            assert result.status == "suspended"
            return run.run_id

    async def test_a_run_suspended_in_one_runtime_is_resumed_in_another(self, path: Path) -> None:
        run_id = await self.suspended(path)

        async with runtime_of(path, APPROVAL) as runtime:
            run = await runtime.get_run(run_id)
            waiting = await run.wait()
            result = await run.resume(Approval(approved=True, by="ada"))

        assert waiting.suspended["approve"]["question"] == "ok?"
        assert result.unwrap().number == 101
        assert result.unwrap().lines == ORDER.lines
        assert result.unwrap().blob == ORDER.blob
        assert [each.attempt for each in result.steps.values()] == [1, 2, 1]

    async def test_an_answer_is_validated_by_a_runtime_that_never_saw_the_question(self, path: Path) -> None:
        run_id = await self.suspended(path)

        async with runtime_of(path, APPROVAL) as runtime:
            run = await runtime.get_run(run_id)
            with pytest.raises(InvalidInput, match="approved"):
                await run.resume({"by": "ada"})
            assert (await run.wait()).status == "suspended"
            assert (await run.resume({"approved": False, "by": "ada"})).unwrap().number == 1

    async def test_a_validator_that_does_not_take_what_it_gives_is_named_and_the_run_kept(self, path: Path) -> None:
        def words(text: str) -> list[str]:
            return text.split()

        @step
        async def split(text: str) -> Annotated[list[str], BeforeValidator(words)]:
            given: Any = text
            return given

        @step
        async def ask(found: list[str], ctx: StepContext) -> int:
            return await ctx.suspend("?", resume=int)

        flow = Workflow("flow", input=str).then(split).then(ask)
        async with runtime_of(path, flow) as runtime:
            run = await runtime.create_run(flow)
            await run.start("a b")
        async with runtime_of(path, flow) as runtime:
            with pytest.raises(
                DefinitionError, match=r"no list\[str\] any more.*its validator does not take what it gives"
            ):
                await (await runtime.get_run(run.run_id)).resume(1)
            (found,) = await runtime.find_runs()
            assert found.status == "running"

    async def test_a_question_is_answered_once(self, path: Path) -> None:
        run_id = await self.suspended(path)

        async with runtime_of(path, APPROVAL) as one, runtime_of(path, APPROVAL) as other:
            first, second = await one.get_run(run_id), await other.get_run(run_id)
            answers = await asyncio.gather(
                first.resume(Approval(approved=True, by="one")),
                second.resume(Approval(approved=False, by="other")),
                return_exceptions=True,
            )
            with pytest.raises(NotSuspended):
                await second.resume(Approval(approved=True, by="late"))

        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert len(refused) == 1
        assert isinstance(refused[0], RunConflict)
        async with runtime_of(path, APPROVAL) as runtime:
            starts = [
                event
                for event in await read_all((await runtime.get_run(run_id)).observe_stream())
                if event.type == "start"
            ]
        assert len(starts) == 2

    async def test_state_and_runtime_context_come_back_with_their_types(self, path: Path) -> None:
        class Budget(BaseModel):
            left: Decimal
            until: datetime

        class Spent(BaseModel):
            budget: Budget
            steps: int = 0

        @step
        async def spend(value: int, ctx: StepContext) -> int:
            ctx.set_state(steps=ctx.state.steps + 1)
            return value

        @step
        async def ask(value: int, ctx: StepContext) -> list[Any]:
            before = (ctx.state.steps, ctx.state.budget.left, ctx.runtime_context["tenant"])
            await ctx.suspend(before, resume=int)
            assert isinstance(ctx.state.budget, Budget)
            return [*before, ctx.state.budget.until.year, ctx.init_data, ctx.result_of(spend)]

        flow = Workflow("flow", input=int, state=Spent).then(spend).then(ask)
        budget = Budget(left=Decimal("0.30"), until=datetime(2027, 1, 1, tzinfo=UTC))
        async with runtime_of(path, flow) as runtime:
            run = await runtime.create_run(flow)
            first = await run.start(5, initial_state={"budget": budget}, runtime_context={"tenant": {"name": "ä"}})

        async with runtime_of(path, flow) as runtime:
            again = await runtime.get_run(run.run_id)
            assert (await again.wait()).state == Spent(budget=budget, steps=1)
            second = await again.resume(1)

        assert first.state == second.state == Spent(budget=budget, steps=1)
        assert second.unwrap() == [1, "0.30", {"name": "ä"}, 2027, 5, 5]

    async def test_results_of_earlier_steps_have_their_types_after_a_resume(self, path: Path) -> None:
        @step
        async def compare(order: Order, ctx: StepContext) -> int:
            earlier: Order = ctx.result_of(later)
            assert isinstance(earlier, Order)
            assert isinstance(ctx.init_data, Order)
            return earlier.number - ctx.init_data.number

        flow = Workflow("flow", input=Order).then(later).then(approve).then(compare)
        async with runtime_of(path, flow) as runtime:
            run = await runtime.create_run(flow)
            await run.start(ORDER)
        async with runtime_of(path, flow) as runtime:
            result = await (await runtime.get_run(run.run_id)).resume(Approval(approved=True, by="ada"))

        assert result.unwrap() == 1

    async def test_items_that_wait_are_answered_by_several_runtimes(self, path: Path) -> None:
        @step
        async def each(value: int, ctx: StepContext) -> int:
            return value * await ctx.suspend(f"factor of {value}?", resume=int)

        flow = Workflow("flow", input=list[int]).foreach(each, concurrency=2).map(sum)
        async with runtime_of(path, flow) as runtime:
            run = await runtime.create_run(flow)
            assert len((await run.start([1, 2, 3])).suspended) == 3

        results: list[Any] = []
        for index in (2, 0, 1):
            async with runtime_of(path, flow) as runtime:
                results.append(await (await runtime.get_run(run.run_id)).resume(10, step=f"each[{index}]"))

        assert [result.status for result in results] == ["suspended", "suspended", "success"]
        assert results[-1].unwrap() == 60

    async def test_a_suspended_run_is_canceled_by_another_runtime(self, path: Path) -> None:
        run_id = await self.suspended(path)

        async with runtime_of(path, APPROVAL) as runtime:
            result = await (await runtime.get_run(run_id)).cancel()
            assert [each.status for each in await runtime.find_runs()] == ["canceled"]

        assert result.status == "canceled"

    async def test_an_event_sent_by_another_runtime_is_taken(self, path: Path) -> None:
        flow = Workflow("flow", input=Order).then(approve).wait_for_event("news", payload=Order).then(count)
        async with runtime_of(path, flow) as runtime:
            run = await runtime.create_run(flow)
            await run.start(ORDER)
        async with runtime_of(path, flow) as runtime:
            await (await runtime.get_run(run.run_id)).send_event("news", ORDER)
        async with runtime_of(path, flow) as runtime:
            result = await (await runtime.get_run(run.run_id)).resume(Approval(approved=True, by="ada"))

        assert result.unwrap() == 1

    async def test_the_trace_of_a_run_in_two_runtimes_is_one(self, path: Path, traces: Traces) -> None:
        run_id = await self.suspended(path, tracing_options=TracingOptions(metadata={"user.id": "u-1"}))
        async with runtime_of(path, APPROVAL) as runtime:
            await (await runtime.get_run(run_id)).resume(Approval(approved=True, by="ada"))

        traces.assert_complete()
        (root,) = traces.roots
        assert root.attributes is not None
        assert root.attributes["user.id"] == "u-1"
        assert (
            traces.tree()
            == """\
invoke_workflow approval
├── run.started
├── step later
├── step approve  [suspended]
├── wait approve
├── step approve  [attempt 2]
└── step after"""
        )


class TestFinding:
    async def test_runs_are_found_by_another_runtime(self, path: Path, traces: Traces) -> None:
        async with runtime_of(path, PURCHASE, APPROVAL) as runtime:
            first = await runtime.create_run(PURCHASE)
            done = await first.start(ORDER, tracing_options=TracingOptions(metadata={"user.id": "u-1", "n": 1}))
            second = await runtime.create_run(APPROVAL)
            await second.start(ORDER, tracing_options=TracingOptions(metadata={"user.id": "u-2"}))

        async with runtime_of(path, PURCHASE) as runtime:

            async def ids(**query: Any) -> list[str]:
                return [found.run_id for found in await runtime.find_runs(**query)]

            assert await ids() == [second.run_id, first.run_id]
            assert await ids(status="suspended") == [second.run_id]
            assert await ids(workflow=PURCHASE) == [first.run_id]
            assert await ids(trace_id=done.trace_id) == [first.run_id]
            assert await ids(metadata={"user.id": "u-2"}) == [second.run_id]
            assert await ids(metadata={"user.id": "u-1", "n": 1}) == [first.run_id]
            assert await ids(metadata={"user.id": "u-3"}) == []
            (found,) = await runtime.find_runs(status="success")
        assert found.trace_id == done.trace_id
        assert found.ended_at is not None
        assert found.started_at < found.ended_at

    async def test_a_run_that_executes_elsewhere_is_running(self, path: Path) -> None:
        began, go = asyncio.Event(), asyncio.Event()

        @step
        async def work(value: int) -> int:
            began.set()
            await go.wait()
            return value

        flow = Workflow("flow", input=int).then(work)
        async with runtime_of(path, flow) as one, runtime_of(path, flow) as other:
            stream = await (await one.create_run(flow)).stream(1)
            await began.wait()
            (found,) = await other.find_runs(status="running")
            watched = await other.get_run(found.run_id)
            with pytest.raises(RunConflict):
                await watched.start(1)
            go.set()
            assert (await stream.get_workflow_state()).unwrap() == 1
            assert (await watched.wait()).unwrap() == 1


class TestSize:
    async def test_what_waits_is_written_once_however_often_the_run_suspends(self, path: Path) -> None:
        @step
        async def each(number: int, ctx: StepContext) -> int:
            return number * await ctx.suspend({"question": f"{number:02}" * 500}, resume=int)

        flow = Workflow("flow", input=list[int]).foreach(each)
        live: list[Event] = []
        async with runtime_of(path, flow) as runtime:
            run = await runtime.create_run(flow)
            live += await read_all(await run.stream(list(range(30))))
            for number in range(30):
                live += await read_all(await run.resume_stream(2, step=f"each[{number}]"))
        async with runtime_of(path, flow) as runtime:
            replayed = await read_all((await runtime.get_run(run.run_id)).observe_stream())

        finishes = [event.payload for event in replayed if event.type == "finish"]
        assert [len(payload.suspended) for payload in finishes] == list(range(30, -1, -1))
        assert finishes[28].suspended["each[29]"] == {"question": "29" * 500}
        assert as_json(replayed) == as_json(live)
        with closing(sqlite3.connect(path)) as connection:
            (written,) = connection.execute("SELECT sum(length(body)) FROM batches").fetchone()
        assert written <= 2 * 30 * 1000

    @pytest.mark.parametrize("concurrency", [1, 10])
    async def test_a_foreach_writes_at_most_three_times_its_payload(
        self, path: Path, concurrency: int, traces: Traces
    ) -> None:
        @step
        async def each(text: str) -> str:
            return text[::-1]

        flow = Workflow("flow", input=list[str]).foreach(each, concurrency=concurrency)
        items = [f"{number:0200}" for number in range(10_000)]
        async with runtime_of(path, flow) as runtime:
            result = await (await runtime.create_run(flow)).start(items)
            assert len(result.unwrap()) == 10_000

        payload = sum(map(len, items))
        with closing(sqlite3.connect(path)) as connection:
            (written,) = connection.execute("SELECT sum(length(body)) FROM batches").fetchone()
        assert written <= 3 * payload
        assert os.stat(path).st_size <= 3.3 * payload  # pages are not filled to the last byte


async def test_that_a_step_has_begun_is_in_the_file_before_its_code_runs(tmp_path: Path) -> None:
    """Else a process that dies in a step leaves no attempt to close, and nobody knows that there was one."""
    path = tmp_path / "runs.db"
    begun: list[str] = []

    @step
    async def look(value: int, ctx: StepContext) -> int:
        async with aclosing(SQLiteStore(path)) as file:
            begun.extend(entry.path for entry in await file.read(ctx.run_id) if entry.kind is StepStart)
        return value

    again = look.with_id("again")
    async with Runtime(SQLiteStore(path)) as runtime:
        run = await runtime.create_run(Workflow("looking", input=int).then(look).then(again))
        assert (await run.start(1)).status == "success"
    assert begun == ["look", "look", "again"]


@pytest.mark.parametrize("place", ["input", "output"])
async def test_a_list_that_a_workflows_type_has_changed_is_read_back_as_it_became(place: str, tmp_path: Path) -> None:
    async def with_nine(value: int) -> list[int]:
        return [value, 9]

    def longer(values: list[int]) -> list[int]:
        return values if 9 in values[2:] else [*values, 9]

    kind: Any = Annotated[list[int], BeforeValidator(longer)]
    flow: Workflow[Any, Any] = Workflow("flow", input=int)
    if place == "input":
        flow = flow.map(with_nine).then(Workflow("nested", input=kind).foreach(double))
    else:
        flow = flow.then(Workflow("nested", input=int, output=kind).map(with_nine)).foreach(double)
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db"), workflows=[flow]) as runtime:
        run = await runtime.create_run(flow)
        assert (await run.start(1)).unwrap() == [2, 18, 18]
        events = [event async for event in run.observe_stream()]
    inputs = [event.payload.input for event in events if isinstance(event, StepStart) and "double" in event.path]
    assert inputs == [[1, 9, 9], 1, 9, 9]
