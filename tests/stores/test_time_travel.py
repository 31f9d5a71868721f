"""Going back in a run: a new run takes over what came before a step, and runs anew from there."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry import trace
from pydantic import BaseModel

from spanflow import (
    DefinitionError,
    Event,
    InvalidInput,
    NotRecorded,
    Ok,
    Retry,
    Run,
    RunConflict,
    Runtime,
    StepContext,
    TracingOptions,
    Workflow,
    WorkflowResult,
    step,
    tool,
)
from spanflow.ports import RunQuery, Store
from spanflow.testing import FakeClock, Traces
from tests.stores.conftest import Open


@dataclass
class World:
    """What steps leave outside of their run. ``broken`` are the paths of steps that fail."""

    ran: list[str] = field(default_factory=list[str])
    broken: set[str] = field(default_factory=set[str])

    def enter(self, ctx: StepContext["World"]) -> None:
        self.ran.append(ctx.path if ctx.attempt == 1 else f"{ctx.path} ({ctx.attempt})")
        if ctx.path in self.broken:
            raise ValueError(f"{ctx.path} is broken")

    def again(self) -> list[str]:
        """Return what ran since the last call."""
        ran, self.ran = self.ran, []
        return ran


class Order(BaseModel):
    number: int
    at: datetime
    blob: bytes = b"\x00\xff"

    model_config = {"ser_json_bytes": "base64", "val_json_bytes": "base64"}


@step
async def add(value: int, ctx: StepContext[World]) -> int:
    ctx.deps.enter(ctx)
    return value + 1


@step
async def double(value: int, ctx: StepContext[World]) -> int:
    ctx.deps.enter(ctx)
    return 2 * value


@step
async def upto(value: int, ctx: StepContext[World]) -> list[int]:
    ctx.deps.enter(ctx)
    return list(range(value))


@step
async def total(values: list[int], ctx: StepContext[World]) -> int:
    ctx.deps.enter(ctx)
    return sum(values)


@step
async def ask(value: int, ctx: StepContext[World]) -> int:
    ctx.deps.enter(ctx)
    return value + await ctx.suspend({"value": value}, resume=int)


@step
async def count(value: int, ctx: StepContext[World]) -> int:
    """Count in the state, and leave there who came last."""
    ctx.deps.enter(ctx)
    ctx.set_state(count=ctx.state.get("count", 0) + 1)
    await ctx.set_state(last=ctx.path)
    return value


sequence = Workflow("sequence", input=int).then(add).then(double).then(add.with_id("last"))
asking = Workflow("asking", input=int).then(add).then(ask).then(double)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def runtime(store: Store, world: World) -> AsyncIterator[Runtime]:
    async with Runtime(store, deps=world) as opened:
        yield opened


async def run_of(runtime: Runtime, workflow: Workflow[Any, Any], value: Any, **options: Any) -> Run[Any, Any]:
    """Return a run that has ended or suspended."""
    run = await runtime.create_run(workflow)
    await run.start(value, **options)
    return run


async def travelled(run: Run[Any, Any], step: Any, input_data: Any = None) -> WorkflowResult[Any]:
    new = await run.time_travel(step, input_data)
    return await new.wait()


async def recorded(run: Run[Any, Any]) -> list[Event]:
    return [event async for event in run.observe_stream()]


def as_json(events: Sequence[Event]) -> list[str]:
    return [event.model_dump_json() for event in events]


class TestWhatRunsAnew:
    @pytest.mark.parametrize(("where", "anew"), [("add", 3), ("double", 2), ("last", 1)])
    async def test_in_a_sequence_the_step_and_what_follows(
        self, runtime: Runtime, world: World, where: str, anew: int
    ) -> None:
        run = await run_of(runtime, sequence, 1)
        whole = world.again()
        before = await recorded(run)

        result = await travelled(run, where)

        assert result.unwrap() == 5
        assert world.again() == whole[-anew:]
        assert list(result.steps) == ["add", "double", "last"]
        assert [each.attempt for each in result.steps.values()] == [1, 1, 1]
        assert result.run_id != run.run_id
        assert as_json(await recorded(run)) == as_json(before)

    async def test_a_step_is_named_by_itself_its_id_or_its_path(self, runtime: Runtime, world: World) -> None:
        inner = Workflow("inner", input=int).then(double)
        run = await run_of(runtime, Workflow("flow", input=int).then(add).then(inner), 1)
        for name in (double, "double", "inner/double"):
            world.again()
            assert (await travelled(run, name)).unwrap() == 4
            assert world.again() == ["inner/double"]

    async def test_beside_the_step_in_parallel_what_succeeded_is_kept(self, runtime: Runtime, world: World) -> None:
        flow = Workflow("flow", input=int).parallel(add, double, add.with_id("third")).map(sum).then(add.with_id("end"))
        run = await run_of(runtime, flow, 5)
        world.again()

        assert (await travelled(run, "double")).unwrap() == 23
        assert world.again() == ["double", "end"]

    async def test_beside_the_step_what_failed_or_was_canceled_runs_anew(self, runtime: Runtime, world: World) -> None:
        @step
        async def hang(value: int, ctx: StepContext[World]) -> int:
            ctx.deps.enter(ctx)
            if ctx.deps.broken:
                await asyncio.Event().wait()
            return value

        @step
        async def fail(value: int, ctx: StepContext[World]) -> int:
            while ctx.result_of(double, None) is None or "hang" not in ctx.deps.ran:  # noqa: ASYNC110  # until both are there
                await asyncio.sleep(0)
            ctx.deps.enter(ctx)
            return value

        world.broken = {"fail"}
        run = await run_of(runtime, Workflow("flow", input=int).parallel(double, hang, fail), 5)
        assert (await run.wait()).status == "failed"
        world.broken = set()
        world.again()

        assert (await travelled(run, "hang")).unwrap() == (10, 5, 5)
        assert sorted(world.again()) == ["fail", "hang"]

    async def test_a_part_of_a_nested_run_beside_the_step_that_was_cut_short_is_kept(
        self, runtime: Runtime, world: World
    ) -> None:
        inner = Workflow("inner", input=int).then(add).then(ask).then(double)
        flow = Workflow("flow", input=int).parallel(inner, double.with_id("beside"))
        run = await run_of(runtime, flow, 1)
        world.again()

        new = await run.time_travel("beside")
        assert (await new.wait()).suspended == {"inner/ask": {"value": 2}}
        assert sorted(world.again()) == ["beside", "inner/ask"]
        assert (await new.resume(10)).unwrap() == (24, 2)

    @pytest.mark.parametrize("concurrency", [1, 3])
    async def test_of_a_foreach_one_item_or_all_of_it(self, runtime: Runtime, world: World, concurrency: int) -> None:
        flow = Workflow("flow", input=int).then(upto).foreach(double, concurrency=concurrency).then(total)
        run = await run_of(runtime, flow, 4)
        world.again()

        assert (await travelled(run, "double[2]")).unwrap() == 12
        assert world.again() == ["double[2]", "total"]
        assert (await travelled(run, "double")).unwrap() == 12
        assert sorted(world.again()) == [*(f"double[{index}]" for index in range(4)), "total"]

    async def test_an_item_that_failed_in_a_collecting_foreach_is_a_result_like_others(
        self, runtime: Runtime, world: World
    ) -> None:
        flow = Workflow("flow", input=int).then(upto).foreach(double, on_error="collect")
        world.broken = {"double[1]", "double[2]"}
        run = await run_of(runtime, flow, 4)
        world.broken = set()
        world.again()

        result = await travelled(run, "double[1]")
        assert [isinstance(each, Ok) for each in result.unwrap()] == [True, True, False, True]
        assert result.unwrap()[1].value == 2
        assert result.unwrap()[2].error.message == "double[2] is broken"
        assert world.again() == ["double[1]"]

    async def test_a_nested_run_beside_the_step_is_kept_with_all_that_failed_inside_of_it(
        self, runtime: Runtime, world: World
    ) -> None:
        inner = Workflow("inner", input=int).then(upto).foreach(double, on_error="collect")
        world.broken = {"inner/double[1]"}
        run = await run_of(runtime, Workflow("flow", input=int).parallel(inner, add), 3)
        world.broken = set()
        world.again()

        result = await travelled(run, "add")
        assert world.again() == ["add"]
        assert result.steps["inner/double[1]"].status == "failed"
        assert [isinstance(each, Ok) for each in result.unwrap()[0]] == [True, False, True]

    async def test_items_that_never_started_run(self, runtime: Runtime, world: World) -> None:
        flow = Workflow("flow", input=int).then(upto).foreach(double).then(total)
        world.broken = {"double[1]"}
        run = await run_of(runtime, flow, 4)
        world.broken = set()
        world.again()

        assert (await travelled(run, "double[1]")).unwrap() == 12
        assert world.again() == ["double[1]", "double[2]", "double[3]", "total"]

    async def test_the_decision_that_led_to_a_branch_is_kept(self, runtime: Runtime, world: World) -> None:
        asked: list[int] = []

        def large(value: int) -> bool:
            asked.append(value)
            return len(asked) == 1  # it would decide otherwise the next time

        flow = Workflow("flow", input=int).then(add).branch((large, double), default=add.with_id("small"))
        run = await run_of(runtime, flow.then(add.with_id("end")), 9)
        world.again()

        assert (await travelled(run, "double")).unwrap() == 21
        assert (asked, world.again()) == ([10], ["double", "end"])
        assert (await travelled(run, "add")).unwrap() == 12
        assert (asked, world.again()) == ([10, 10], ["add", "small", "end"])

    async def test_of_a_branch_that_takes_all_the_other_arms_are_kept(self, runtime: Runtime, world: World) -> None:
        def always(value: int) -> bool:
            return True

        flow = Workflow("flow", input=int).branch((always, double), (always, add), mode="all")
        run = await run_of(runtime, flow, 3)
        world.again()

        assert (await travelled(run, "add")).unwrap() == {"double": 6, "add": 4}
        assert world.again() == ["add"]

    async def test_of_a_loop_the_earlier_iterations_and_their_decisions_are_kept(
        self, runtime: Runtime, world: World
    ) -> None:
        asked: list[int] = []

        def small(value: int) -> bool:
            asked.append(value)
            return value < 20

        flow = Workflow("flow", input=int).do_while(double, small).then(add.with_id("end"))
        run = await run_of(runtime, flow, 3)
        assert world.again() == ["double#1", "double#2", "double#3", "end"]

        assert (await travelled(run, "double#2")).unwrap() == 25
        assert world.again() == ["double#2", "double#3", "end"]
        assert asked == [6, 12, 24, 12, 24]

    async def test_inside_nested_runs_loops_and_items_it_is_the_same(self, runtime: Runtime, world: World) -> None:
        pair = Workflow("pair", input=int).then(add).parallel(double, add.with_id("more")).map(sum)
        inner = Workflow("inner", input=int).do_until(pair, lambda value: value > 20)
        flow = Workflow("flow", input=int).then(upto).foreach(inner, concurrency=2).then(total)
        run = await run_of(runtime, flow, 3)
        whole = (await run.wait()).unwrap()
        world.again()

        assert (await travelled(run, "inner[1]/pair#2/double")).unwrap() == whole
        assert world.again() == ["inner[1]/pair#2/double", "total"]
        assert (await travelled(run, "inner[1]/pair#2")).unwrap() == whole
        assert sorted(world.again()) == [f"inner[1]/pair#2/{id}" for id in ("add", "double", "more")] + ["total"]

    async def test_sleeps_before_the_step_are_over_and_the_one_travelled_to_is_not(self, world: World) -> None:
        clock = FakeClock()
        flow = Workflow("flow", input=int).sleep(3600).then(add).sleep(60, id="nap").then(double)
        async with Runtime(deps=world, clock=clock) as runtime:
            run = await run_of(runtime, flow, 1)
            at = clock.time_ns()
            assert (await travelled(run, "nap")).unwrap() == 4
        assert (clock.time_ns() - at) // 10**9 == 60
        assert world.ran == ["add", "double", "double"]

    async def test_an_event_that_a_wait_before_the_step_took_is_kept_and_one_after_it_is_waited_for_again(
        self, runtime: Runtime, world: World
    ) -> None:
        flow = (
            Workflow("flow", input=int).wait_for_event("price", int).then(add).wait_for_event("tax", int).then(double)
        )
        run = await runtime.create_run(flow)
        await run.send_event("price", 1)
        await run.send_event("tax", 5)
        assert (await run.start(0)).unwrap() == 10
        world.again()

        new = await run.time_travel("add")
        await new.send_event("tax", 7)
        assert (await new.wait()).unwrap() == 14
        assert world.again() == ["add", "double"]

    async def test_a_step_that_was_retried_begins_again_with_its_first_attempt(
        self, runtime: Runtime, world: World
    ) -> None:
        @step(retry=Retry(max_attempts=3, delay=0))
        async def flaky(value: int, ctx: StepContext[World]) -> int:
            ctx.deps.enter(ctx)
            if ctx.attempt < 3:
                raise ConnectionError("busy")
            return value

        run = await run_of(runtime, Workflow("flow", input=int).then(flaky).then(add), 1)
        result = await travelled(run, "add")
        assert (result.steps["flaky"].attempt, result.steps["flaky"].failures) == (3, 2)
        world.again()

        assert (await travelled(run, flaky)).steps["flaky"].attempt == 3
        assert world.again() == ["flaky", "flaky (2)", "flaky (3)", "add"]


class TestState:
    async def test_the_state_is_what_it_was_at_that_point(self, runtime: Runtime) -> None:
        flow = Workflow("flow", input=int)
        for id in ("a", "b", "c"):
            flow = flow.then(count.with_id(id))
        run = await run_of(runtime, flow, 1, initial_state={"count": 10})
        assert (await run.wait()).state == {"count": 13, "last": "c"}

        for id in ("c", "b", "a"):
            assert (await travelled(run, id)).state == {"count": 13, "last": "c"}

    async def test_what_the_step_itself_has_set_is_gone_also_where_another_step_has_told_it(
        self, runtime: Runtime
    ) -> None:
        """Changes are stored with whatever event comes next, here with one of the other arm."""
        told = asyncio.Event()
        found: list[dict[str, Any]] = []

        @step
        async def first(value: int, ctx: StepContext[World]) -> int:
            found.append(dict(ctx.state))
            ctx.set_state(first=value)
            told.set()
            while "second" not in ctx.state:  # noqa: ASYNC110  # the other arm sets it
                await asyncio.sleep(0)
            return value

        @step
        async def second(value: int, ctx: StepContext[World]) -> int:
            await told.wait()
            ctx.set_state(second=value)
            return value

        run = await run_of(runtime, Workflow("flow", input=int).parallel(first, second), 1)
        changes = [(event.path, event.changes) for event in await recorded(run) if event.changes is not None]
        assert {path for path, _ in changes} == {"second"}
        assert changes[0][1].by == {"": {"first": "first"}}

        result = await travelled(run, "first")
        assert (found, result.state) == ([{}, {"second": 1}], {"first": 1, "second": 1})

    async def test_what_a_condition_has_set_on_the_way_to_the_step_is_kept(self, runtime: Runtime) -> None:
        seen: list[Any] = []
        asked: list[int] = []

        def decide(value: int, ctx: StepContext[World]) -> bool:
            asked.append(value)
            ctx.set_state(decided=value)
            return True

        @step
        async def look(value: int, ctx: StepContext[World]) -> int:
            seen.append(dict(ctx.state))
            return value

        run = await run_of(runtime, Workflow("flow", input=int).branch((decide, look), default=add), 4)
        assert (await travelled(run, look)).state == {"decided": 4}
        assert (asked, seen) == ([4], [{"decided": 4}, {"decided": 4}])

    async def test_a_state_of_a_nested_run_that_begins_again_begins_as_it_did(self, runtime: Runtime) -> None:
        class Counted(BaseModel):
            n: int = 0

        @step
        async def bump(value: int, ctx: StepContext[World]) -> int:
            ctx.set_state(n=ctx.state.n + 1)
            return ctx.state.n

        inner = Workflow("inner", input=int, state=Counted).then(bump).then(bump.with_id("bump_2"))
        run = await run_of(runtime, Workflow("flow", input=int).then(inner), 0)
        for point in ("inner", "inner/bump", "inner/bump_2"):
            assert (await travelled(run, point)).unwrap() == 2


class TestAnotherInput:
    async def test_the_step_is_given_another_input(self, runtime: Runtime, world: World) -> None:
        run = await run_of(runtime, sequence, 1)
        new = await run.time_travel(double, input_data="20")
        result = await new.wait()

        assert result.unwrap() == 41
        (start,) = [e for e in await recorded(new) if e.type == "step-start" and e.path == "double"]
        assert start.payload.input == 20

    @pytest.mark.parametrize(
        ("point", "given", "expected"),
        [
            ("double[1]", 100, 200 + 1),
            ("double", [5, 6], 22 + 1),
            ("inner", 50, 51),
            ("inner/add", 60, 61),
            ("again#2", 30, 30 * 2 + 1),
        ],
    )
    async def test_items_lists_iterations_and_nested_runs_take_another_input_too(
        self, runtime: Runtime, point: str, given: Any, expected: int
    ) -> None:
        inner = Workflow("inner", input=int).then(add)
        flow = Workflow("flow", input=int).then(upto).foreach(double).then(total)
        if point.startswith("again"):
            flow = flow.do_while(double.with_id("again"), lambda value: value < 5)
        run = await run_of(runtime, flow.then(inner), 2)
        assert (await travelled(run, point, given)).unwrap() == expected

    async def test_types_are_those_of_the_step(self, runtime: Runtime) -> None:
        seen: list[Order] = []

        @step
        async def ship(order: Order) -> Order:
            seen.append(order)
            return order

        order = Order(number=1, at=datetime(2026, 1, 2, tzinfo=UTC))
        other = order.model_copy(update={"number": 2, "blob": b"\xfe"})
        run = await run_of(runtime, Workflow("flow", input=Order).then(ship).then(ship.with_id("again")), order)

        assert (await travelled(run, "again")).unwrap() == order
        assert (await travelled(run, "again", other)).unwrap() == other
        assert (await travelled(run, "ship", other.model_dump())).unwrap() == other
        assert all(isinstance(each, Order) for each in seen)

    async def test_what_does_not_fit_is_refused_and_nothing_is_recorded(self, runtime: Runtime, store: Store) -> None:
        flow = Workflow("flow", input=int).then(add).sleep(0, id="nap").wait_for_event("go", int)
        run = await runtime.create_run(flow)
        await run.send_event("go", 1)
        await run.start(1)

        with pytest.raises(InvalidInput, match="time_travel to 'add': input_data must be int"):
            await run.time_travel("add", input_data="many")
        for waits in ("nap", "go"):
            with pytest.raises(InvalidInput, match=f"'{waits}' waits, and takes no input"):
                await run.time_travel(waits, input_data=1)
        assert len(await store.find(RunQuery())) == 1

    async def test_a_travel_from_there_has_the_same_input(self, runtime: Runtime, world: World) -> None:
        inner = Workflow("inner", input=int).then(add).then(double)
        flow = Workflow("flow", input=int).then(inner).then(add.with_id("end"))
        run = await run_of(runtime, flow, 1)
        new = await run.time_travel("inner", input_data=10)
        assert (await new.wait()).unwrap() == 23
        world.again()

        assert (await travelled(new, "inner/double")).unwrap() == 23
        assert (await travelled(new, "inner")).unwrap() == 23
        assert (await travelled(new, "end")).unwrap() == 23
        assert world.again() == ["inner/double", "end", "inner/add", "inner/double", "end", "end"]
        newer = await new.time_travel("inner/add", 20)
        assert (await newer.wait()).unwrap() == 43
        assert (await travelled(newer, "inner/double")).unwrap() == 43
        assert (await travelled(newer, "inner/add")).unwrap() == 43

    async def test_a_step_beside_the_point_that_begins_again_has_the_input_that_it_was_given(
        self, runtime: Runtime, world: World
    ) -> None:
        world.broken = {"double[1]"}
        run = await run_of(runtime, Workflow("flow", input=int).then(upto).foreach(double), 2)
        still = await run.time_travel("double[1]", input_data=100)
        assert (await still.wait()).status == "failed"
        world.broken = set()
        assert (await travelled(still, "double[0]")).unwrap() == [0, 200]


class TestWhereFrom:
    async def test_a_failed_run_ends_with_mended_code(self, open_store: Open, world: World) -> None:
        @step(id="double")
        async def mended(value: int) -> int:
            return 2 * value

        world.broken = {"double"}
        async with Runtime(open_store(), deps=world) as runtime:
            run = await run_of(runtime, sequence, 1)
            assert (await run.wait()).status == "failed"
        world.again()
        fixed = Workflow("sequence", input=int).then(add).then(mended).then(add.with_id("last"))
        async with Runtime(open_store(), workflows=[fixed], deps=world) as runtime:
            old = await runtime.get_run(run.run_id)
            result = await travelled(old, "double")
            assert (result.unwrap(), world.again()) == (5, ["last"])
            assert (await old.wait()).status == "failed"

    async def test_a_suspended_run_goes_on_being_suspended(self, runtime: Runtime, world: World) -> None:
        run = await run_of(runtime, asking, 1)
        new = await run.time_travel("add", input_data=10)
        assert (await new.wait()).suspended == {"ask": {"value": 11}}

        assert (await new.resume(100)).unwrap() == 222
        assert (await run.resume(200)).unwrap() == 404

    async def test_answers_before_the_step_are_kept_and_those_after_it_are_asked_for_again(
        self, runtime: Runtime, world: World
    ) -> None:
        flow = asking.then(ask.with_id("ask_2"))
        run = await run_of(runtime, flow, 1)
        await run.resume(10)
        assert (await run.resume(20)).unwrap() == 44
        world.again()

        new = await run.time_travel("double")
        waiting = await new.wait()
        assert (waiting.suspended, world.again()) == ({"ask_2": {"value": 24}}, ["double", "ask_2"])
        assert waiting.steps["ask"].answers == (10,)
        assert (await new.resume(30)).unwrap() == 54

    async def test_a_canceled_run_can_be_travelled(self, runtime: Runtime, world: World) -> None:
        run = await run_of(runtime, asking, 1)
        await run.cancel()
        new = await run.time_travel("ask")
        assert (await new.wait()).status == "suspended"
        assert (await new.resume(1)).unwrap() == 6

    async def test_a_run_that_bailed_runs_on_from_before_that(self, runtime: Runtime, world: World) -> None:
        @step
        async def leave(value: int, ctx: StepContext[World]) -> int:
            if "leave" in ctx.deps.broken:
                ctx.bail("early")
            return value

        world.broken = {"leave"}
        flow = Workflow("flow", input=int).parallel(add, double, leave).map(sum)
        run = await run_of(runtime, flow, 2)
        assert (await run.wait()).result == "early"
        world.broken = set()
        assert (await travelled(run, "add")).unwrap() == 9

    async def test_a_travelled_run_can_be_travelled(self, runtime: Runtime, world: World) -> None:
        run = await run_of(runtime, sequence, 1)
        one = await run.time_travel("double", input_data=5)
        await one.wait()
        world.again()
        assert (await travelled(one, "last")).unwrap() == 11
        assert (await travelled(one, "add")).unwrap() == 5
        assert world.again() == ["last", "add", "double", "last"]

    async def test_a_running_run_is_refused(self, runtime: Runtime, store: Store) -> None:
        go = asyncio.Event()

        @step
        async def hold(value: int) -> int:
            await go.wait()
            return value

        run = await runtime.create_run(Workflow("flow", input=int).then(add).then(hold))
        stream = await run.stream(1)
        async for event in stream:
            if event.type == "step-start" and event.path == "hold":
                break
        with pytest.raises(RunConflict, match=r"is running\. Wait until it ends or suspends, or cancel\(\) it"):
            await run.time_travel("add")
        go.set()
        assert (await run.wait()).unwrap() == 2
        assert len(await store.find(RunQuery())) == 1

    async def test_a_run_that_never_started_is_refused(self, runtime: Runtime) -> None:
        run = await runtime.create_run(sequence)
        with pytest.raises(RunConflict, match="was not started: it has no past to travel to"):
            await run.time_travel("add")

    async def test_a_step_that_is_not_recorded_is_refused_with_those_that_are(
        self, runtime: Runtime, world: World, store: Store
    ) -> None:
        world.broken = {"double"}
        run = await run_of(runtime, sequence, 1)
        with pytest.raises(NotRecorded, match=r"never came to 'last', .* Recorded: 'add', 'double'\.") as never:
            await run.time_travel("last")
        assert never.value.recorded == ("add", "double")
        with pytest.raises(NotRecorded, match=r"has no step 'nowhere', .* Recorded: 'add', 'double'\."):
            await run.time_travel("nowhere")
        with pytest.raises(InvalidInput, match=r"time_travel\(step=7\): give the step, its id or its path"):
            await run.time_travel(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert len(await store.find(RunQuery())) == 1

    async def test_an_id_of_several_recorded_steps_is_refused_with_their_paths(self, runtime: Runtime) -> None:
        inner = Workflow("inner", input=int).then(add)
        flow = Workflow("flow", input=int).then(upto).foreach(inner).then(total).do_until(double, lambda value: True)
        run = await run_of(runtime, flow, 2)
        with pytest.raises(NotRecorded, match=r"'add' several times: 'inner\[0\]/add', 'inner\[1\]/add'\. Say which"):
            await run.time_travel(add)
        assert (await travelled(run, "double")).unwrap() == 6

    async def test_a_workflow_that_has_lost_steps_is_refused(self, open_store: Open, world: World) -> None:
        async with Runtime(open_store(), deps=world) as runtime:
            run = await run_of(runtime, sequence, 1)
        less = Workflow("sequence", input=int).then(add).then(double)
        async with Runtime(open_store(), workflows=[less], deps=world) as runtime:
            with pytest.raises(DefinitionError, match="names 'last', which the workflow no longer has"):
                await (await runtime.get_run(run.run_id)).time_travel("double")


class TestTheNewRun:
    async def test_it_has_what_the_first_was_given(self, runtime: Runtime, store: Store) -> None:
        options = TracingOptions(metadata={"flag": "v2"}, user_id="u-1", tags=["nightly"])
        run = await runtime.create_run(sequence, resource_id="res")
        await run.start(1, runtime_context={"tenant": "t"}, initial_state={"a": 1}, tracing_options=options)
        new = await run.time_travel("double")
        await new.wait()

        first, second = await store.load(run.run_id), await store.load(new.run_id)
        for name in ("workflow_id", "plan", "resource_id", "runtime_context", "initial_state"):
            assert getattr(first, name) == getattr(second, name)
        found = await store.find(RunQuery(metadata={"flag": "v2"}))
        assert [each.run_id for each in found] == [new.run_id, run.run_id]
        assert {each.status for each in found} == {"success"}
        start = (await recorded(new))[0]
        assert start.type == "start"
        assert start.payload.input == 1
        assert start.payload.metadata == {"flag": "v2"}
        assert start.payload.travelled is not None
        assert (start.payload.travelled.run_id, start.payload.travelled.path) == (run.run_id, "double")

    async def test_its_events_begin_with_what_it_took_over_as_it_was(self, runtime: Runtime, traces: Traces) -> None:
        run = await run_of(runtime, sequence, 1)
        new = await run.time_travel("last")
        events = await recorded(new)

        before = [event for event in await recorded(run) if event.path in ("add", "double")]
        start, *rest = events
        kept = [event for event in rest if event.path in ("add", "double")]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert rest[: len(kept)] == kept
        assert as_json(kept) == as_json(
            [each.model_copy(update={"run_id": new.run_id, "seq": each.seq}) for each in before]
        )
        assert {event.trace_id for event in kept} == {run.trace_id}
        assert {event.trace_id for event in [start, *rest[len(kept) :]]} == {new.trace_id}
        assert new.trace_id != run.trace_id

    async def test_a_kept_wait_is_no_time_to_wake_at(self, store: Store, world: World) -> None:
        async with Runtime(store, deps=world, clock=FakeClock()) as runtime:
            run = await run_of(runtime, Workflow("flow", input=int).sleep(60).then(ask), 1)
            new = await run.time_travel("ask")
            await new.wait()
        assert [each.wake_at for each in await store.find(RunQuery())] == [None, None]

    async def test_a_long_past_is_taken_over_whole(self, runtime: Runtime, world: World) -> None:
        run = await run_of(
            runtime, Workflow("flow", input=int).then(upto).foreach(double, concurrency=50).then(total), 700
        )
        world.again()
        new = await run.time_travel("double[350]")
        assert (await new.wait()).unwrap() == 700 * 699
        assert world.again() == ["double[350]", "total"]
        assert [event.seq for event in await recorded(new)] == list(range(1, 3 + 3 * 703))


class TestLongLives:
    async def test_another_runtime_watches_answers_and_ends_it(self, open_durable: Open, world: World) -> None:
        async with Runtime(open_durable(), workflows=[asking], deps=world) as runtime:
            run = await run_of(runtime, asking, 1)
            new = await run.time_travel("ask", input_data=30)
            waiting = await new.wait()
        world.again()
        async with Runtime(open_durable(), workflows=[asking], deps=world) as runtime:
            again = await runtime.get_run(new.run_id)
            assert (await again.wait()).suspended == waiting.suspended == {"ask": {"value": 30}}
            assert (await again.resume(5)).unwrap() == 70
            assert world.again() == ["ask (2)", "double"]
            assert [event.path for event in await recorded(again)][:4] == ["", "add", "add", "add"]

    async def test_a_process_that_leaves_it_is_followed_by_one_that_gives_the_same_input(
        self, open_durable: Open, world: World, traces: Traces
    ) -> None:
        @step
        async def hold(order: Order, ctx: StepContext[World]) -> Order:
            ctx.deps.enter(ctx)
            if "hold" in ctx.deps.broken or ctx.attempt > 1 or order.number == 1:
                return order
            await asyncio.Event().wait()
            return order

        order = Order(number=1, at=datetime(2026, 1, 2, tzinfo=UTC))
        flow = Workflow("flow", input=Order).then(hold.with_id("before")).then(hold)
        async with Runtime(open_durable(), workflows=[flow], deps=world) as runtime:
            run = await run_of(runtime, flow, order)
            world.again()
            new = await run.time_travel(hold, order.model_copy(update={"number": 2}))
            async for event in new.observe_stream():
                if event.type == "step-start" and event.path == "hold":
                    break
        async with Runtime(open_durable(), workflows=[flow], deps=world) as runtime:
            again = await runtime.get_run(new.run_id)
            assert (await again.wait()).unwrap().number == 2
        assert world.again() == ["hold", "hold (2)"]
        traces.assert_complete(2)
        root = traces.roots[1]
        assert [format(link.context.trace_id, "032x") for link in root.links] == [run.trace_id]


class TestTraces:
    async def test_a_trace_of_its_own_is_linked_to_the_first_and_has_no_span_twice(
        self, runtime: Runtime, traces: Traces
    ) -> None:
        inner = Workflow("inner", input=int).then(add).then(double)
        flow = Workflow("flow", input=int).then(upto).foreach(inner, concurrency=3).then(total)
        options = TracingOptions(metadata={"flag": "v2"}, user_id="u-1", tags=["nightly"])
        run = await run_of(runtime, flow, 3, tracing_options=options)
        new = await run.time_travel("inner[1]/double")
        await new.wait()

        traces.assert_complete(2)
        first, second = traces.roots
        assert traces.tree(attributes=["spanflow.travelled.step.path"]).endswith(
            """\
invoke_workflow flow  [spanflow.travelled.step.path=inner[1]/double]  → link
├── foreach inner
│   └── invoke_workflow inner[1]
│       └── step double
└── step total"""
        )
        (link,) = second.links
        assert first.context is not None
        assert (link.context.trace_id, link.context.span_id) == (first.context.trace_id, first.context.span_id)
        assert second.parent is None
        before, after = dict(first.attributes or {}), dict(second.attributes or {})
        assert after.pop("spanflow.travelled.run.id") == run.run_id
        assert after.pop("spanflow.travelled.step.path") == "inner[1]/double"
        assert (before.pop("spanflow.run.id"), after.pop("spanflow.run.id")) == (run.run_id, new.run_id)
        assert before == after
        assert (await runtime.find_runs(trace_id=new.trace_id))[0].run_id == new.run_id

    async def test_the_ambient_span_is_the_parent(self, runtime: Runtime, traces: Traces) -> None:
        run = await run_of(runtime, sequence, 1)
        with trace.get_tracer("tests").start_as_current_span("request") as request:
            new = await run.time_travel("last")
            await new.wait()
        root = traces.find("invoke_workflow sequence")[1]
        assert root.parent == request.get_span_context()
        assert len(root.links) == 1

    async def test_a_kept_answer_leaves_no_wait_in_the_new_trace(self, runtime: Runtime, traces: Traces) -> None:
        run = await run_of(runtime, asking, 1)
        await run.resume(1)
        traces.clear()
        new = await run.time_travel("double")
        await new.wait()
        traces.assert_complete()
        assert traces.tree().splitlines()[1:] == ["└── step double"]
        assert (await new.wait()).status == "success"


async def test_tool_calls_of_conditions_are_kept_as_far_as_the_step_was_decided_by_them(
    runtime: Runtime, world: World
) -> None:
    async def small(value: int) -> bool:
        return (await search(query=f"{value} < 10"))[0] == "4 < 10"

    flow = Workflow("flow", input=int).do_while(double, small).branch((small, add), default=add.with_id("other"))
    run = await run_of(runtime, flow, 2)
    for point, kept in (("double#1", 0), ("double#2", 1), ("other", 3)):
        new = await run.time_travel(point)
        await new.wait()
        calls = [event for event in await recorded(new) if event.type == "tool-call"]
        assert [event.path for event in calls] == ["double", "double", "branch"]
        tellers = [event.timestamp < (await recorded(new))[0].timestamp for event in calls]
        assert tellers == [True] * kept + [False] * (3 - kept)


async def test_a_tool_call_is_not_kept_without_its_end(runtime: Runtime) -> None:
    begun = asyncio.Event()

    @tool
    async def hang(query: str) -> str:
        """Never return."""
        begun.set()
        await asyncio.Event().wait()
        return query

    @step
    async def leave(value: int) -> int:
        left = asyncio.create_task(hang(query="x"))
        await begun.wait()
        tasks.append(left)
        return value

    tasks: list[asyncio.Task[str]] = []
    run = await run_of(runtime, Workflow("flow", input=int).then(leave).then(increment), 1)
    new = await run.time_travel(increment)
    assert (await new.wait()).unwrap() == 2
    events = await recorded(new)
    called = [event.payload.tool_call_id for event in events if event.type == "tool-call"]
    assert called == [event.payload.tool_call_id for event in events if event.type == "tool-result"]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@step
async def increment(value: int) -> int:
    return value + 1


@tool
async def search(query: str) -> list[str]:
    """Find passages."""
    return [query]


async def test_tool_calls_of_kept_steps_are_kept_and_a_tool_is_travelled_to_like_a_step(runtime: Runtime) -> None:
    @step
    async def look(value: str) -> str:
        return (await search(query=value))[0]

    flow = Workflow("flow", input=str).then(look).then(search).map(lambda found: found[0])
    run = await run_of(runtime, flow, "tea")
    new = await run.time_travel(search, input_data="milk")
    assert (await new.wait()).unwrap() == "milk"
    assert [(e.type, e.path) for e in await recorded(new) if e.type.startswith("tool")] == [
        (type, path) for path in ("look", "search") for type in ("tool-call", "tool-result")
    ]
