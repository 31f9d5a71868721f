"""What is sent to a run reaches it where it executes: by another runtime, over the store that both have open."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from spanflow import (
    MemoryStore,
    Retry,
    Run,
    RunConflict,
    Runtime,
    RunUnsuccessful,
    SQLiteStore,
    StepContext,
    StoreError,
    Workflow,
    step,
)
from spanflow.entries import Entry
from spanflow.events import Finish
from spanflow.ports import CANCEL, Message, Store
from spanflow.testing import Traces
from tests.stores.conftest import Open

QUICK = 3.0  # s: of a lease that a test outlives; a busy machine may be silent for two thirds of it
SOON = 50.0  # s, real, for what takes a quarter of one on a machine that has nothing else to do
CANCEL_IT = Message(id="stop", name=CANCEL)


class Held:
    """What a step that holds on has to say."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.was_canceled = False


@step
async def hold(value: int, ctx: StepContext[Held]) -> int:
    held = ctx.deps
    held.begun.set()
    try:
        await held.go.wait()
    except asyncio.CancelledError:
        held.was_canceled = True
        raise
    return value + 1


@step
async def double(value: int) -> int:
    return 2 * value


@step
async def ask(value: int, ctx: StepContext) -> int:
    return int(await ctx.suspend("go on?", resume=int))


@step(retry=Retry(max_attempts=2, delay=3600))
async def busy(value: int) -> int:
    raise ConnectionError("busy")


holding = Workflow("holding", input=int).then(double).then(hold)
waiting = Workflow("waiting", input=int).wait_for_event("news", payload=int).then(double)


class Looked(SQLiteStore):
    """Tells when its runtime has looked for messages; may fail to look, and be sent something at a bad moment.

    Attributes:
        failures: how many of the next looks fail.
        renewals: how often leases were extended.
        late: what arrives when a stretch that begins has just read what there was.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._changed = asyncio.Event()
        self._looks = 0
        self.failures = 0
        self.renewals = 0
        self.late: Message | None = None

    async def posted(self, owner: str) -> Mapping[str, int]:
        self._looks += 1
        self._changed.set()
        if self.failures:
            self.failures -= 1
            raise StoreError("The store is away.", store="it")
        return await super().posted(owner)

    async def renew(self, owner: str, *, lease_until: int) -> frozenset[str]:
        self.renewals += 1
        self._changed.set()
        return await super().renew(owner, lease_until=lease_until)

    async def messages(self, run_id: str) -> Sequence[Message]:
        found = await super().messages(run_id)
        if self.late is not None:
            late, self.late = self.late, None
            await super().post(run_id, late)
        return found

    async def looked(self, times: int = 3) -> None:
        """Return when the runtime has looked so many times more, and has brought what it found."""
        await self._until(lambda end=self._looks + times: self._looks >= end)

    async def renewed(self, times: int) -> None:
        await self._until(lambda end=self.renewals + times: self.renewals >= end)

    async def _until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON):
            while not true():
                self._changed.clear()
                await self._changed.wait()


def runtime_of(store: Store, *workflows: Workflow[Any, Any], lease: float = 3600, deps: Any = None) -> Runtime:
    """Return a runtime whose leases outlast a test, unless it says otherwise: nothing is over because one is."""
    return Runtime(store, workflows=workflows, lease=lease, deps=deps)


async def begun(run: Run[Any, Any], type: str, path: str) -> None:
    """Return when this event has happened, wherever."""
    async for event in run.observe_stream():
        if (event.type, event.path) == (type, path):
            return
    raise AssertionError(f"there was no {type} of {path}")


async def lines(run: Run[Any, Any]) -> list[str]:
    return [f"{event.type} {event.path}".rstrip() async for event in run.observe_stream()]


# --- cancel


async def test_a_run_that_executes_elsewhere_is_canceled_at_once(open_durable: Open, traces: Traces) -> None:
    held = Held()
    async with runtime_of(open_durable(), holding, deps=held) as owner, runtime_of(open_durable(), holding) as other:
        run = await owner.create_run(holding, run_id="r")
        stream = await run.stream(1)
        await held.begun.wait()
        async with asyncio.timeout(SOON):
            canceled = await (await other.get_run("r")).cancel()  # without the deps of its steps

        assert (canceled.status, held.was_canceled) == ("canceled", True)
        assert canceled.steps["hold"].status == "canceled"
        assert (await stream.get_workflow_state()).status == "canceled"
        assert [event.type async for event in stream].count("finish") == 1
        assert (await run.cancel()).status == "canceled"
    traces.assert_complete()
    assert traces.one("step hold", {"spanflow.step.status": "canceled"})
    assert traces.one("invoke_workflow holding", {"spanflow.run.status": "canceled"})


nested = Workflow("nested", input=int).then(double).then(hold)
looped = Workflow("looped", input=int).do_while(nested, lambda value: True)
WAITING: Mapping[str, tuple[Workflow[Any, Any], str, str]] = {
    "a step in a nested run in a loop": (looped, "step-start", "nested#1/hold"),
    "an item of a foreach": (Workflow("each", input=list[int]).foreach(nested), "step-start", "nested[0]/hold"),
    "a sleep": (Workflow("nap", input=int).sleep(3600), "step-waiting", "sleep"),
    "a wait for an event": (waiting, "step-waiting", "news"),
    "a delay before another attempt": (Workflow("again", input=int).then(busy), "step-retry", "busy"),
}


@pytest.mark.parametrize("case", WAITING)
async def test_whatever_a_run_does_elsewhere_it_is_canceled(open_durable: Open, case: str, traces: Traces) -> None:
    flow, type, path = WAITING[case]
    async with runtime_of(open_durable(), flow, deps=Held()) as owner, runtime_of(open_durable(), flow) as other:
        given: Any = [1, 2] if case == "an item of a foreach" else 1
        await (await owner.create_run(flow, run_id="r")).stream(given)
        run = await other.get_run("r")
        async with asyncio.timeout(SOON):
            await begun(run, type, path)
            canceled = await run.cancel()

    assert canceled.status == "canceled"
    assert {step.status for step in canceled.steps.values()} <= {"success", "canceled"}
    traces.assert_complete()


async def test_of_many_who_cancel_a_run_at_once_all_have_the_one_result(open_durable: Open) -> None:
    held = Held()
    async with runtime_of(open_durable(), holding, deps=held) as owner, runtime_of(open_durable(), holding) as other:
        mine = await owner.create_run(holding, run_id="r")
        await mine.stream(1)
        await held.begun.wait()
        theirs = [await other.get_run("r") for _ in range(3)]
        async with asyncio.timeout(SOON):
            results = await asyncio.gather(mine.cancel(), *(run.cancel() for run in theirs))

        assert [result.status for result in results] == ["canceled"] * 4
        assert (await lines(mine)).count("finish") == 1


async def test_a_step_is_left_to_clean_up_when_two_cancel_its_run(tmp_path: Path) -> None:
    begun, cleaning, clean, cleaned = (asyncio.Event() for _ in range(4))

    @step
    async def careful(value: int) -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await clean.wait()
            cleaned.set()
        return value

    flow = Workflow("flow", input=int).then(careful)
    store = Looked(tmp_path / "runs.db")
    async with (
        runtime_of(store, flow) as owner,
        runtime_of(SQLiteStore(tmp_path / "runs.db"), flow) as other,
    ):
        await (await owner.create_run(flow, run_id="r")).stream(1)
        await begun.wait()
        run = await other.get_run("r")
        canceling = asyncio.create_task(run.cancel())
        await cleaning.wait()
        await store.post("r", CANCEL_IT)
        await store.looked()
        clean.set()
        async with asyncio.timeout(SOON):
            assert (await canceling).status == "canceled"
        assert cleaned.is_set()


@pytest.mark.parametrize("durable", ["sqlite", "memory"])
async def test_a_suspended_run_is_canceled_once_by_all_who_do(durable: str, tmp_path: Path) -> None:
    flow = Workflow("flow", input=int).then(ask)
    store = MemoryStore() if durable == "memory" else SQLiteStore(tmp_path / "runs.db")
    async with runtime_of(store, flow) as runtime, runtime_of(store, flow) as other:
        run = await runtime.create_run(flow, run_id="r")
        await run.start(1)
        results = await asyncio.gather(*(each.cancel() for each in (run, await other.get_run("r"), run)))

        assert [result.status for result in results] == ["canceled"] * 3
        assert (await lines(run))[-2:] == ["step-finish ask", "finish"]
        assert (await lines(run)).count("finish") == 2


class Overtaken(SQLiteStore):
    """Lets another be faster when a run is claimed."""

    meanwhile: Callable[[], Awaitable[Any]] | None = None

    async def claim(self, run_id: str, owner: str, *, now: int, lease_until: int) -> bool:
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return await super().claim(run_id, owner, now=now, lease_until=lease_until)


async def test_a_suspended_run_that_another_runtime_cancels_first_is_in_the_trace_once(
    tmp_path: Path, traces: Traces
) -> None:
    flow = Workflow("flow", input=int).then(ask)
    slower = Overtaken(tmp_path / "runs.db")
    async with runtime_of(slower, flow) as one, runtime_of(SQLiteStore(tmp_path / "runs.db"), flow) as other:
        run = await one.create_run(flow, run_id="r")
        await run.start(1)
        slower.meanwhile = (await other.get_run("r")).cancel
        assert (await run.cancel()).status == "canceled"

        (found,) = await one.find_runs()
        assert found.owner is None
        assert (await lines(run)).count("finish") == 2
    traces.assert_complete()
    assert len(traces.roots) == 1


class FinishesLate(SQLiteStore):
    """Stores the end of a run only once somebody has told the run to cancel."""

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        if entries[-1].kind is Finish:
            while not await self.messages(run_id):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await super().append(run_id, entries, expected_seq=expected_seq)


async def test_a_run_that_ends_as_it_is_canceled_keeps_its_result(tmp_path: Path) -> None:
    flow = Workflow("flow", input=int).then(double)
    file = tmp_path / "runs.db"
    async with runtime_of(FinishesLate(file), flow) as owner, runtime_of(SQLiteStore(file), flow) as other:
        stream = await (await owner.create_run(flow, run_id="r")).stream(21)
        run = await other.get_run("r")
        await begun(run, "step-start", "double")
        async with asyncio.timeout(SOON):
            result = await run.cancel()

        assert result.unwrap() == 42
        assert (await stream.get_workflow_state()).unwrap() == 42


async def test_a_run_that_was_left_without_an_owner_is_canceled_where_nobody_could_go_on_with_it(
    open_durable: Open,
) -> None:
    held = Held()
    async with runtime_of(open_durable(), holding, deps=held) as owner:
        await (await owner.create_run(holding, run_id="r")).stream(1)
        await held.begun.wait()
    async with runtime_of(open_durable()) as other:
        changed = Workflow("holding", input=int).then(double)
        run = await (await with_workflow(other, changed)).get_run("r")
        result = await run.cancel()

    assert (result.status, result.steps["hold"].status) == ("canceled", "canceled")


async def with_workflow(runtime: Runtime, workflow: Workflow[Any, Any]) -> Runtime:
    """Make a workflow known to a runtime that is open, whose keeper has looked around before."""
    await runtime.create_run(workflow)
    return runtime


async def test_a_run_that_was_told_to_cancel_is_not_run_on_by_who_takes_it_over(
    open_durable: Open, traces: Traces
) -> None:
    held, later = Held(), Held()
    later.go.set()
    async with runtime_of(open_durable(), holding, deps=held) as owner:
        await (await owner.create_run(holding, run_id="r")).stream(1)
        await held.begun.wait()
        await owner.aclose()
    store = open_durable()
    await store.post("r", CANCEL_IT)
    async with asyncio.timeout(SOON), runtime_of(store, holding, deps=later) as heir:
        result = await (await heir.get_run("r")).wait()

    assert (result.status, later.begun.is_set()) == ("canceled", False)
    assert len(traces.roots) == 1


async def test_an_answer_does_not_go_on_with_a_run_that_was_told_to_cancel(open_durable: Open, traces: Traces) -> None:
    flow = Workflow("flow", input=int).then(Workflow("inner", input=int).then(ask)).then(double)
    store = open_durable()
    async with runtime_of(store, flow) as runtime:
        run = await runtime.create_run(flow)
        await run.start(1)
        await store.post(run.run_id, CANCEL_IT)
        result = await run.resume(7)

    assert result.status == "canceled"
    assert {step.status for step in result.steps.values()} == {"canceled"}
    with pytest.raises(RunUnsuccessful):
        result.unwrap()
    traces.assert_complete()
    assert (
        traces.tree()
        == """\
invoke_workflow flow  [canceled]
├── run.started
└── invoke_workflow inner  [canceled]
    ├── step ask  [suspended]
    └── wait ask"""
    )


# --- events


async def test_an_event_sent_elsewhere_reaches_a_run_that_waits_for_it(open_durable: Open) -> None:
    async with runtime_of(open_durable(), waiting) as owner, runtime_of(open_durable(), waiting) as other:
        stream = await (await owner.create_run(waiting, run_id="r")).stream(1)
        run = await other.get_run("r")
        await begun(run, "step-waiting", "news")
        await run.send_event("news", 21)

        async with asyncio.timeout(SOON):
            assert (await stream.get_workflow_state()).unwrap() == 42
        with pytest.raises(RunConflict, match="is over"):
            await run.send_event("news", 22)


async def test_an_event_sent_elsewhere_before_the_run_waits_for_it_is_kept(open_durable: Open) -> None:
    held = Held()
    flow = Workflow("flow", input=int).then(hold).wait_for_event("news", payload=int).then(double)
    async with runtime_of(open_durable(), flow, deps=held) as owner, runtime_of(open_durable(), flow) as other:
        stream = await (await owner.create_run(flow, run_id="r")).stream(1)
        await held.begun.wait()
        await (await other.get_run("r")).send_event("news", 21)
        held.go.set()

        async with asyncio.timeout(SOON):
            assert (await stream.get_workflow_state()).unwrap() == 42


async def test_an_event_is_taken_once_though_it_is_sent_here_and_found_in_the_store(tmp_path: Path) -> None:
    flow = (
        Workflow("flow", input=int).wait_for_event("news", payload=int).wait_for_event("news", payload=int, id="more")
    )
    store = Looked(tmp_path / "runs.db")
    async with runtime_of(store, flow) as runtime, runtime_of(SQLiteStore(tmp_path / "runs.db"), flow) as other:
        run = await runtime.create_run(flow, run_id="r")
        stream = await run.stream(1)
        await run.send_event("news", 1)
        await begun(run, "step-waiting", "more")
        await store.looked()
        assert (await lines_so_far(store))[-1] == "step-waiting more"

        await (await other.get_run("r")).send_event("news", 2)
        assert (await stream.get_workflow_state()).unwrap() == 2


async def lines_so_far(store: Store) -> list[str]:
    return [f"{entry.event.type} {entry.path}".rstrip() for entry in await store.read("r")]


async def test_an_event_that_comes_just_as_a_run_is_resumed_is_found(tmp_path: Path) -> None:
    flow = Workflow("flow", input=int).then(ask).wait_for_event("news", payload=int)
    store = Looked(tmp_path / "runs.db")
    async with runtime_of(store, flow) as runtime:
        run = await runtime.create_run(flow, run_id="r")
        await run.start(1)
        store.late = Message(id="m", name="news", payload=7)
        async with asyncio.timeout(SOON):
            assert (await run.resume(1)).unwrap() == 7


async def test_a_store_that_is_away_for_a_while_is_looked_into_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Looked(tmp_path / "runs.db")
    store.failures = 3
    async with runtime_of(store, waiting) as owner, runtime_of(SQLiteStore(tmp_path / "runs.db"), waiting) as other:
        stream = await (await owner.create_run(waiting, run_id="r")).stream(1)
        await (await other.get_run("r")).send_event("news", 21)
        async with asyncio.timeout(SOON):
            assert (await stream.get_workflow_state()).unwrap() == 42

    assert store.failures == 0
    assert caplog.text.count("The store is away.") == 1


# --- without a block


async def test_a_runtime_without_a_block_shows_signs_of_life_for_what_executes_and_hears_of_events(
    tmp_path: Path,
) -> None:
    store = Looked(tmp_path / "runs.db")
    owner = runtime_of(store, waiting, lease=QUICK)
    async with runtime_of(SQLiteStore(tmp_path / "runs.db"), waiting, lease=QUICK) as other:
        stream = await (await owner.create_run(waiting, run_id="r")).stream(1)
        await store.renewed(4)  # longer than a lease
        assert await other.recover() == []
        await (await other.get_run("r")).send_event("news", 21)
        assert (await stream.get_workflow_state()).unwrap() == 42
    await owner.aclose()


async def test_a_runtime_looks_into_its_store_only_while_a_run_executes(tmp_path: Path) -> None:
    store = Looked(tmp_path / "runs.db")
    runtime = runtime_of(store, waiting)
    run = await runtime.create_run(waiting)
    await run.stream(1)
    await store.looked()
    assert timers()
    await run.cancel()
    await asyncio.sleep(0)  # a look that is under way comes to its end

    assert timers() == []
    assert [task.get_name() for task in asyncio.all_tasks() if "spanflow" in task.get_name()] == []
    await runtime.aclose()


def timers() -> list[asyncio.TimerHandle]:
    """Return what the event loop will do later."""
    scheduled: list[asyncio.TimerHandle] = getattr(asyncio.get_running_loop(), "_scheduled")  # noqa: B009  # untyped
    return [timer for timer in scheduled if not timer.cancelled()]
