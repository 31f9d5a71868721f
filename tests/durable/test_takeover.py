"""Who drives a run: exactly one, as long as it shows signs of life."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spanflow import (
    DefinitionError,
    RunConflict,
    RunStream,
    Runtime,
    SQLiteStore,
    StepContext,
    StoreError,
    Workflow,
    step,
    tool,
)
from spanflow.entries import Entry
from spanflow.events import Finish, Start, StepResultEvent
from spanflow.state import PROCESS_LOST
from spanflow.testing import Traces
from tests.durable.checking import Outcome, outcome_of
from tests.durable.processes import PATIENCE, Order, append_line, finish, launch, read_lines
from tests.durable.program import Approval, Deps, mark, runtime_of, status_of

LEASE = 0.3  # s: of an owner that is to count as dead soon
LONG = 60.0  # s: of one that lives, however busy the machine is


@step
async def first(value: int, ctx: StepContext[Deps]) -> int:
    mark(ctx)
    return value + 1


@step
async def hold(value: int, ctx: StepContext[Deps]) -> int:
    """Say which process this is, and go on once the file ``go`` is there.

    Where the file ``pause`` is there, stop the process first, here, where it holds no lock of the store.
    """
    mark(ctx)
    order = ctx.deps.order
    append_line(order.folder / "held.jsonl", {"process": os.getpid()})
    while not (order.folder / "go").exists():  # another process says it
        if (order.folder / "pause").exists():
            (order.folder / "pause").rename(order.folder / "paused")
            os.kill(os.getpid(), signal.SIGSTOP)
            continue
        await asyncio.sleep(0.005)
    return value + 1


@step
async def last(value: int, ctx: StepContext[Deps]) -> int:
    mark(ctx)
    return value + 1


@step
async def ask(value: int, ctx: StepContext[Deps]) -> str:
    mark(ctx)
    approval = await ctx.suspend({"value": value}, resume=Approval)
    return approval.by


holding = Workflow("holding", input=int).then(first).then(hold).then(last)
asking = Workflow("asking", input=int).then(first).then(ask)


async def start_holding(order: Order) -> None:
    """Start a run and wait for its end; write down what became of that."""
    async with runtime_of(order, holding) as runtime:
        run = await runtime.create_run(holding, run_id=order.run_id)
        await report(order, run.start(1))


async def take_over(order: Order) -> None:
    """Be one of those who look for a dead run, until it is over."""
    async with runtime_of(order, holding) as runtime:
        while await status_of(runtime, order.run_id) != "success":  # noqa: ASYNC110  # wherever it runs
            await asyncio.sleep(0.005)


async def start_asking(order: Order) -> None:
    async with runtime_of(order, asking) as runtime:
        run = await runtime.create_run(asking, run_id=order.run_id)
        await run.start(1)


async def answer(order: Order) -> None:
    """Answer a run, at the same moment as others."""
    async with runtime_of(order, asking) as runtime:
        run = await runtime.get_run(order.run_id)
        append_line(order.folder / "ready.jsonl", {"process": os.getpid()})
        while not (order.folder / "go").exists():  # noqa: ASYNC110  # another process says it
            await asyncio.sleep(0.001)
        await report(order, run.resume(Approval(by=str(os.getpid()))))


async def stop_when_told(order: Order) -> None:
    """Run until SIGTERM, then close the runtime, as a server does."""
    runtime = runtime_of(order, holding)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    async with runtime:
        run = await runtime.create_run(holding, run_id=order.run_id)
        await run.stream(1)
        await told.wait()


async def report(order: Order, work: Any) -> None:
    """Write down what a call came to."""
    try:
        result = await work
        line = {"process": os.getpid(), "result": result.result}
    except Exception as error:
        line = {"process": os.getpid(), "error": type(error).__name__}
    append_line(order.folder / "reports.jsonl", line)


def wait_for_lines(file: Path, count: int) -> list[dict[str, Any]]:
    """Return the lines of a file once there are as many."""
    deadline = time.monotonic() + PATIENCE
    while len(lines := read_lines(file)) < count:
        assert time.monotonic() < deadline, f"{file.name} has {lines}"
        time.sleep(0.005)
    return lines


def pause(order: Order) -> None:
    """Stop the process that holds a run."""
    (order.folder / "pause").touch()
    deadline = time.monotonic() + PATIENCE
    while not (order.folder / "paused").exists():
        assert time.monotonic() < deadline, "nobody was paused"
        time.sleep(0.005)


def wait_until_dead(order: Order) -> None:
    """Return when the lease of a run has run out."""

    async def wait() -> None:
        store = SQLiteStore(order.store)
        await until_dead(store)
        await store.aclose()

    asyncio.run(wait())


def reports(order: Order) -> list[dict[str, Any]]:
    return read_lines(order.folder / "reports.jsonl")


def test_of_two_processes_that_race_for_a_dead_run_exactly_one_takes_it(tmp_path: Path) -> None:
    order = Order(tmp_path, kill="in hold", lease=LEASE)
    assert finish(launch(start_holding, order)) == -signal.SIGKILL
    wait_until_dead(order)
    heirs = [launch(take_over, replace(order, kill=None, lease=LONG)) for _ in range(3)]
    held = wait_for_lines(tmp_path / "held.jsonl", 1)
    (tmp_path / "go").touch()
    assert [finish(heir) for heir in heirs] == [0, 0, 0]
    assert len(read_lines(tmp_path / "held.jsonl")) == len(held) == 1
    outcome = outcome_of(order)
    assert (outcome.state.result, outcome.lost, outcome.doubled) == (4, ["hold"], {})
    _, taken_over = [entry for entry in outcome.entries if entry.kind is Start]
    (lost,) = [span for span in outcome.spans if span.lost]
    assert lost.end == taken_over.timestamp, "the time in which nobody was there has no name"
    assert outcome.marks == (("r-1/first", 1), ("r-1/hold", 1), ("r-1/hold", 2), ("r-1/last", 1))


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Order, Outcome, int]:
    """A run whose owner is paused beyond its lease and goes on when another has ended the run: as it was then.

    The run lasts so long that the other one announces it.
    """
    order = Order(tmp_path_factory.mktemp("paused"), lease=LEASE)
    owner = launch(start_holding, order)
    assert owner.pid is not None
    pause(order)
    wait_until_dead(order)
    heir = launch(take_over, replace(order, lease=LONG))
    wait_for_lines(order.folder / "held.jsonl", 2)
    wait_for_lines(order.spans, 3)  # the first step, the lost one, and the announcement
    (order.folder / "go").touch()
    assert finish(heir) == 0
    as_it_was = outcome_of(order)
    os.kill(owner.pid, signal.SIGCONT)
    assert finish(owner) == 0
    return order, as_it_was, owner.pid


def test_an_owner_that_was_paused_beyond_its_lease_cannot_write_and_stops(
    paused: tuple[Order, Outcome, int],
) -> None:
    order, as_it_was, owner = paused
    outcome = outcome_of(order)
    assert [entry.seq for entry in outcome.entries] == [entry.seq for entry in as_it_was.entries]
    assert (outcome.state.status, outcome.state.result, outcome.lost) == ("success", 4, ["hold"])
    (told,) = reports(order)
    assert told == {"process": owner, "error": "RunConflict"}
    assert outcome.marks.count(("r-1/last", 1)) == 1, "the paused owner went on to another step"
    assert len([span for span in outcome.spans if span.parent_id is None]) == 1


def test_an_owner_that_was_paused_beyond_its_lease_exports_no_span_a_second_time(
    paused: tuple[Order, Outcome, int],
) -> None:
    order, as_it_was, _ = paused
    outcome = outcome_of(order)
    assert [span.name for span in outcome.spans].count("run.started") == 1
    assert outcome.doubled == {}
    assert outcome.spans == as_it_was.spans


class LateAnswer(SQLiteStore):
    """Stores the end of a run, and says so only when the keeper has looked after its runs once more."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._stored = False
        self._looked = asyncio.Event()

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        await super().append(run_id, entries, expected_seq=expected_seq)
        if entries[-1].kind is Finish:
            self._stored = True
            await self._looked.wait()

    async def renew(self, owner: str, *, lease_until: int) -> frozenset[str]:
        kept = await super().renew(owner, lease_until=lease_until)
        if self._stored:
            self._looked.set()
        return kept


@step
async def double(value: int) -> int:
    return 2 * value


async def test_a_keeper_that_looks_while_a_run_ends_does_not_interrupt_it(tmp_path: Path) -> None:
    doubling = Workflow("doubling", input=int).then(double)
    async with Runtime(store=LateAnswer(tmp_path / "runs.db"), workflows=[doubling], lease=0.1) as runtime:
        run = await runtime.create_run(doubling)
        assert (await run.start(21)).unwrap() == 42


class Deaf(SQLiteStore):
    """Swallows one cancellation, as ``asyncio.wait_for`` does on Python 3.11 when it comes at the wrong moment."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked = asyncio.Event()

    async def orphans(self, now: int, limit: int = 100) -> Sequence[str]:
        if not self.asked.is_set():
            self.asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
        return []


async def test_a_runtime_closes_also_where_its_store_swallows_a_cancellation(tmp_path: Path) -> None:
    store = Deaf(tmp_path / "runs.db")
    async with asyncio.timeout(PATIENCE):
        async with Runtime(store=store):
            await store.asked.wait()


class SlowToAcknowledge(SQLiteStore):
    """Stores the end of step ``quick``, and says so only when somebody has long begun to make sure of the lease.

    That has run out by then, since nothing is heard of its renewal.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.stored = asyncio.Event()
        self._claimed = asyncio.Event()

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        await super().append(run_id, entries, expected_seq=expected_seq)
        if any(entry.kind is StepResultEvent and entry.path == "quick" for entry in entries):
            self.stored.set()
            await self._claimed.wait()
            for _ in range(100):
                await asyncio.sleep(0)

    async def claim(self, run_id: str, owner: str, *, now: int, lease_until: int) -> bool:
        self._claimed.set()
        return await super().claim(run_id, owner, now=now, lease_until=lease_until)

    async def renew(self, owner: str, *, lease_until: int) -> frozenset[str]:
        return await asyncio.Event().wait() and frozenset()


async def test_an_owner_whose_lease_runs_out_while_it_stores_does_not_take_what_it_stored_for_that_of_another(
    tmp_path: Path,
) -> None:
    store = SlowToAcknowledge(tmp_path / "runs.db")

    @step
    async def quick(value: int) -> int:
        return value

    @step
    async def slow(value: int) -> int:
        await store.stored.wait()
        while not await store.orphans(time.time_ns()):  # noqa: ASYNC110  # the lease is over
            await asyncio.sleep(0.001)
        return value

    both = Workflow("both", input=int).parallel(quick, slow)
    runtime = Runtime(store=store, workflows=[both], lease=0.01)
    run = await runtime.create_run(both)
    assert (await run.start(1)).unwrap() == (1, 1)
    await runtime.aclose()


class WithoutEnd(SQLiteStore):
    """Fails at the end of a run, when it has stored all before that."""

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        await super().append(run_id, [each for each in entries if each.kind is not Finish], expected_seq=expected_seq)
        if entries[-1].kind is Finish:
            raise StoreError("The disk is full.", store="runs.db")


@step
async def give_up(value: int) -> int:
    raise LookupError("no such thing")


async def test_a_failure_that_was_stored_by_another_process_is_the_runs_failure_with_its_own_type(
    tmp_path: Path, traces: Traces
) -> None:
    trying = Workflow("trying", input=int).then(Workflow("within", input=int).then(give_up))
    runtime = Runtime(store=WithoutEnd(tmp_path / "runs.db"), workflows=[trying], lease=LEASE)
    with pytest.raises(StoreError):
        await (await runtime.create_run(trying, run_id="r-1")).start(1)
    await runtime.aclose()

    store = SQLiteStore(tmp_path / "runs.db")
    await until_dead(store)
    runtime = Runtime(store=store, workflows=[trying])
    run = await (await runtime.get_run("r-1")).restart()
    result = await run.wait()
    await runtime.aclose()
    assert result.error is not None
    assert (result.error.type, result.error.message) == ("LookupError", "no such thing")
    _, root = traces.find("invoke_workflow trying")  # the first process had ended its own, and died of storing that
    assert (root.attributes or {})["error.type"] == "LookupError"
    assert root.status.description == "no such thing"


async def test_an_answer_that_is_refused_leaves_the_lease_of_the_one_that_was_taken(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    @step
    async def consult(value: int, ctx: StepContext) -> str:
        approval = await ctx.suspend({"value": value}, resume=Approval)
        await go_on.wait()
        return approval.by

    consulting = Workflow("consulting", input=int).then(consult)
    runtime = Runtime(store=SQLiteStore(tmp_path / "runs.db"), workflows=[consulting], lease=60.0)
    run_id = (await (await runtime.create_run(consulting)).start(1)).run_id
    two = [await runtime.get_run(run_id) for _ in range(2)]
    answers = [asyncio.create_task(run.resume_stream(Approval(by="Ada"))) for run in two]
    done = await asyncio.gather(*answers, return_exceptions=True)
    assert len([each for each in done if isinstance(each, RunStream)]) == 1
    assert len([each for each in done if isinstance(each, RunConflict)]) == 1
    (found,) = await runtime.find_runs()
    go_on.set()
    assert (await two[0].wait()).result == "Ada"
    await runtime.aclose()
    assert found.owner is not None


def test_a_runtime_that_is_told_to_stop_gives_its_runs_to_others_at_once(tmp_path: Path) -> None:
    order = Order(tmp_path, lease=10 * PATIENCE)
    owner = launch(stop_when_told, order)
    wait_for_lines(tmp_path / "held.jsonl", 1)
    assert owner.pid is not None
    os.kill(owner.pid, signal.SIGTERM)
    assert finish(owner) == 0
    (tmp_path / "go").touch()
    assert finish(launch(take_over, order)) == 0  # long before the lease would be over
    outcome = outcome_of(order)
    assert (outcome.state.result, outcome.lost, outcome.doubled) == (4, ["hold"], {})
    assert len({span.trace_id for span in outcome.spans}) == 1
    assert len([span for span in outcome.spans if span.parent_id is None]) == 1


def test_of_two_answers_from_two_processes_at_once_one_is_refused(tmp_path: Path) -> None:
    order = Order(tmp_path, lease=LONG)
    assert finish(launch(start_asking, order)) == 0
    both = [launch(answer, order) for _ in range(2)]
    wait_for_lines(tmp_path / "ready.jsonl", 2)
    (tmp_path / "go").touch()
    assert [finish(each) for each in both] == [0, 0]
    (taken,) = [each for each in reports(order) if "result" in each]
    (refused,) = [each for each in reports(order) if "error" in each]
    assert taken["result"] == str(taken["process"]) != str(refused["process"])
    assert refused["error"] in ("RunConflict", "NotSuspended")
    outcome = outcome_of(order)
    assert (outcome.state.result, outcome.doubled) == (taken["result"], {})
    assert outcome.marks == (("r-1/first", 1), ("r-1/ask", 1), ("r-1/ask", 2))


def test_an_answer_to_a_run_that_was_answered_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    order = Order(tmp_path, lease=LEASE)
    assert finish(launch(start_asking, order)) == 0
    (tmp_path / "go").touch()
    assert [finish(launch(answer, order)) for _ in range(2)] == [0, 0]
    taken, refused = reports(order)
    assert (taken["result"], refused["error"]) == (str(taken["process"]), "NotSuspended")
    assert outcome_of(order).state.result == taken["result"]


async def test_a_run_whose_step_is_gone_from_the_workflow_is_refused_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order = Order(tmp_path, kill="in hold", lease=LEASE)
    assert await asyncio.to_thread(finish, launch(start_holding, order)) == -signal.SIGKILL
    kept = await asyncio.to_thread(outcome_of, order)
    changed = Workflow("holding", input=int).then(first).then(last)
    store = SQLiteStore(order.store)
    runtime = Runtime(store=store, workflows=[changed], lease=LEASE)  # no keeper: this test says when
    run = await runtime.get_run(order.run_id)
    with pytest.raises(DefinitionError, match="'hold'"):
        await run.restart()
    await until_dead(store)
    assert await runtime.recover() == []
    assert "Run r-1 was not taken over: " in caplog.text
    assert [entry.seq for entry in await store.read(order.run_id)] == [entry.seq for entry in kept.entries]
    await runtime.aclose()

    (tmp_path / "go").touch()  # with the step back, the run goes on
    assert await asyncio.to_thread(finish, launch(take_over, replace(order, kill=None))) == 0
    assert (await asyncio.to_thread(outcome_of, order)).state.result == 4


async def test_a_suspended_run_whose_step_is_gone_refuses_its_answer_and_keeps_waiting(tmp_path: Path) -> None:
    order = Order(tmp_path, lease=LEASE)
    assert await asyncio.to_thread(finish, launch(start_asking, order)) == 0
    changed = Workflow("asking", input=int).then(first)
    async with Runtime(store=SQLiteStore(order.store), workflows=[changed], lease=LEASE) as runtime:
        run = await runtime.get_run(order.run_id)
        with pytest.raises(DefinitionError, match="'ask'"):
            await run.resume(Approval(by="Ada"))
        assert await status_of(runtime, order.run_id) == "suspended"
    (tmp_path / "go").touch()
    assert await asyncio.to_thread(finish, launch(answer, order)) == 0
    assert (await asyncio.to_thread(outcome_of, order)).state.status == "success"


async def test_a_run_of_a_living_process_cannot_be_taken_over(tmp_path: Path) -> None:
    order = Order(tmp_path, lease=LONG)
    owner = launch(start_holding, order)
    await asyncio.to_thread(wait_for_lines, tmp_path / "held.jsonl", 1)
    runtime = runtime_of(order, holding)
    run = await runtime.get_run(order.run_id)
    with pytest.raises(RunConflict, match="which is alive"):
        await run.restart()
    assert await runtime.recover() == []
    await runtime.aclose()
    (tmp_path / "go").touch()
    assert await asyncio.to_thread(finish, owner) == 0
    assert outcome_marks(await asyncio.to_thread(outcome_of, order)) == ["first", "hold", "last"]


def outcome_marks(outcome: Any) -> list[str]:
    marks: Sequence[tuple[str, int]] = outcome.marks
    return [key.removeprefix("r-1/") for key, _ in marks]


async def until_dead(store: SQLiteStore) -> None:
    """Return when a lease has run out."""
    async with asyncio.timeout(PATIENCE):
        while not await store.orphans(time.time_ns()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_tool_call_that_a_closing_runtime_leaves_is_closed_once(tmp_path: Path, traces: Traces) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    @tool
    async def look_up(number: int) -> int:
        """Take long."""
        began.set()
        await go_on.wait()
        return number

    @step
    async def work(number: int) -> int:
        return await look_up(number=number)

    working = Workflow("working", input=int).then(work)
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db"), workflows=[working]) as runtime:
        run_id = (await (await runtime.create_run(working)).stream(1)).run_id
        await began.wait()
    go_on.set()
    async with Runtime(store=SQLiteStore(tmp_path / "runs.db"), workflows=[working]) as runtime:
        assert (await (await runtime.get_run(run_id)).wait()).unwrap() == 1
    traces.assert_complete()
    assert len(traces.find("execute_tool look_up")) == 2
    assert len(traces.find("execute_tool look_up", {"error.type": PROCESS_LOST})) == 1
