"""A run is canceled, or told of an event, by another process than the one that executes it, or did until it died."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from spanflow import Retry, RunConflict, RunNotFound, Runtime, SQLiteStore, StepContext, Workflow, step
from spanflow.events import Finish, StepRetry, StepSuspended, StepWaiting
from spanflow.ports import CANCEL, Message, RunQuery
from spanflow.state import RunState
from tests.durable.checking import Outcome, journal_of, outcome_of
from tests.durable.processes import PATIENCE, Order, die, finish, launch
from tests.durable.program import OPTIONS, Approval, Deps, conclude, job, mark, runtime_of
from tests.durable.test_takeover import (
    holding,
    pause,
    report,
    reports,
    start_holding,
    take_over,
    wait_for_lines,
    wait_until_dead,
)

LEASE = 0.5

# A run that dies with something of each kind open.


@step
async def ask(value: int, ctx: StepContext[Deps]) -> str:
    mark(ctx)
    return (await ctx.suspend({"value": value}, resume=Approval)).by


@step(retry=Retry(max_attempts=2, delay=3600))
async def busy(value: int, ctx: StepContext[Deps]) -> int:
    mark(ctx)
    raise ConnectionError("busy")


@step
async def doom(value: int, ctx: StepContext[Deps]) -> int:
    """Kill the process once all others wait."""
    mark(ctx)
    kinds: Sequence[type] = ()
    while not ({StepRetry, StepSuspended} <= set(kinds) and list(kinds).count(StepWaiting) == 2):
        await asyncio.sleep(0.005)
        kinds = [entry.kind for entry in await ctx.deps.store.read(ctx.run_id)]
    die()
    return value


asking = Workflow("asking", input=int).then(ask)
listening = Workflow("listening", input=int).wait_for_event("news", payload=int)
doomed = Workflow("doomed", input=list[int]).parallel(
    Workflow("asks", input=list[int]).foreach(asking),
    Workflow("retries", input=list[int]).foreach(busy, concurrency=2),
    Workflow("sleeps", input=list[int]).sleep(3600),
    Workflow("listens", input=list[int]).map(len).then(listening),
    Workflow("dies", input=list[int]).map(len).then(doom),
)


async def start_doomed(order: Order) -> None:
    async with runtime_of(order, doomed) as runtime:
        await (await runtime.create_run(doomed, run_id=order.run_id)).start([7], tracing_options=OPTIONS)


async def start_listening(order: Order) -> None:
    async with runtime_of(order, listening) as runtime:
        await report(order, (await runtime.create_run(listening, run_id=order.run_id)).start(1))


async def cancel_dead(order: Order) -> None:
    """Cancel a run whose process is dead, if it got as far as to start one."""
    runtime = runtime_of(order, job)
    await runtime.create_run(doomed)  # makes the runtime know this workflow too
    with suppress(RunNotFound):
        await (await runtime.get_run(order.run_id)).cancel()
    await runtime.aclose()


async def cancel_holding(order: Order) -> None:
    runtime = runtime_of(order, holding)
    await report(order, (await runtime.get_run(order.run_id)).cancel())
    await runtime.aclose()


def runtime_without_deps(order: Order, workflow: Workflow[int, int] = holding) -> Runtime:
    """Return a runtime that knows the run's workflow, but has nothing that its steps need."""
    return Runtime(SQLiteStore(order.store), workflows=[workflow])


async def held(order: Order, count: int = 1) -> None:
    """Return when ``hold`` has begun for the so manieth time."""
    await asyncio.to_thread(wait_for_lines, order.folder / "held.jsonl", count)


async def test_a_run_in_another_process_is_canceled_at_once(tmp_path: Path) -> None:
    order = Order(tmp_path, lease=10 * PATIENCE)
    owner = launch(start_holding, order)
    await held(order)
    runtime = runtime_without_deps(order)
    async with asyncio.timeout(PATIENCE):  # not when the lease is over
        result = await (await runtime.get_run(order.run_id)).cancel()
    await runtime.aclose()

    assert await asyncio.to_thread(finish, owner) == 0
    assert (result.status, result.steps["hold"].status) == ("canceled", "canceled")
    outcome = await asyncio.to_thread(outcome_of, order)
    assert (outcome.lost, outcome.doubled) == ([], {})
    assert [entry.kind for entry in outcome.entries].count(Finish) == 1
    assert (await asyncio.to_thread(reports, order))[0]["result"] is None


async def test_an_event_reaches_a_run_in_another_process(tmp_path: Path) -> None:
    order = Order(tmp_path, lease=10 * PATIENCE)
    owner = launch(start_listening, order)
    runtime = runtime_without_deps(order, listening)
    store = SQLiteStore(order.store)
    async with asyncio.timeout(PATIENCE):
        while not await store.find(RunQuery()):  # noqa: ASYNC110  # until it is there
            await asyncio.sleep(0.005)
    run = await runtime.get_run(order.run_id)
    await run.send_event("news", 21)

    assert await asyncio.to_thread(finish, owner) == 0
    assert (await asyncio.to_thread(reports, order))[0]["result"] == 21
    with pytest.raises(RunConflict, match="is over"):
        await run.send_event("news", 22)
    await runtime.aclose()


async def test_a_run_whose_process_dies_while_it_is_told_to_cancel_is_ended_by_who_told_it(tmp_path: Path) -> None:
    order = Order(tmp_path, lease=LEASE)
    owner = launch(start_holding, order)
    assert owner.pid is not None
    await asyncio.to_thread(pause, order)  # it can hear nothing
    runtime = runtime_without_deps(order)
    canceling = asyncio.create_task((await runtime.get_run(order.run_id)).cancel())
    store = SQLiteStore(order.store)
    while not await store.messages(order.run_id):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    os.kill(owner.pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        result = await canceling
    await runtime.aclose()

    assert await asyncio.to_thread(finish, owner) == -signal.SIGKILL
    assert (result.status, result.steps["hold"].status) == ("canceled", "canceled")
    outcome = await asyncio.to_thread(outcome_of, order)
    assert (outcome.lost, outcome.marks[-1]) == (["hold"], ("r-1/hold", 1))


def test_an_owner_that_was_paused_while_its_run_was_canceled_writes_nothing_and_stops(tmp_path: Path) -> None:
    order = Order(tmp_path, lease=LEASE)
    owner = launch(start_holding, order)
    assert owner.pid is not None
    pause(order)
    canceling = launch(cancel_holding, order)
    assert finish(canceling) == 0
    as_it_was = outcome_of(order)
    os.kill(owner.pid, signal.SIGCONT)
    assert finish(owner) == 0

    outcome = outcome_of(order)
    assert outcome.state.status == "canceled"
    assert len(outcome.entries) == len(as_it_was.entries)
    canceler, paused = reports(order)
    assert (canceler["process"], canceler["result"]) == (canceling.pid, None)
    assert (paused["process"], paused["error"] in ("RunConflict", "RunInterrupted")) == (owner.pid, True)
    assert outcome.doubled == {}


def test_a_run_that_was_told_to_cancel_and_then_died_is_not_run_on_by_who_takes_it_over(tmp_path: Path) -> None:
    order = Order(tmp_path, kill="in hold", lease=LEASE)
    assert finish(launch(start_holding, order)) == -signal.SIGKILL
    asyncio.run(tell_to_cancel(order))
    (tmp_path / "go").touch()
    wait_until_dead(order)
    heir = launch(take_over, replace(order, kill=None))
    state = ended(order)
    heir.terminate()
    heir.join()

    assert (state.status, state.stretch) == ("canceled", 2)
    assert outcome_of(order).marks == (("r-1/first", 1), ("r-1/hold", 1))


async def tell_to_cancel(order: Order) -> None:
    """Do what a canceler did that died just then."""
    store = SQLiteStore(order.store)
    await store.post(order.run_id, Message(id="stop", name=CANCEL))
    await store.aclose()


def ended(order: Order) -> RunState:
    """Return the state of a run once it has ended."""
    deadline = time.monotonic() + PATIENCE
    while not (state := outcome_of(order).state).ended:
        assert time.monotonic() < deadline, state.status
        time.sleep(0.01)
    return state


@pytest.fixture(scope="module")
def canceled(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run that was canceled after its process had died with all kinds of waits open."""
    order = Order(tmp_path_factory.mktemp("doomed"), lease=LEASE)
    assert finish(launch(start_doomed, order)) == -signal.SIGKILL
    assert finish(launch(cancel_dead, order)) == 0, order.errors.read_text()
    return outcome_of(order)


def test_all_that_a_dead_process_left_open_is_canceled(canceled: Outcome) -> None:
    assert canceled.state.status == "canceled"
    left = (
        *("asks", "asks/asking", "asks/asking[0]", "asks/asking[0]/ask"),
        *("retries", "retries/busy", "retries/busy[0]"),
        *("sleeps", "sleeps/sleep"),
        *("listens", "listens/listening", "listens/listening/news"),
        *("dies", "dies/doom"),
    )
    statuses = {path: step.status for path, step in canceled.state.steps.items() if step.status != "success"}
    assert statuses == dict.fromkeys(left, "canceled")
    assert canceled.lost == ["dies/doom"]


def test_all_that_a_dead_process_left_open_is_in_the_trace_once(canceled: Outcome) -> None:
    assert list(canceled.problems()) == []
    assert canceled.doubled == {}
    spans = {(span.name, span.attributes.get("spanflow.step.status")) for span in canceled.spans}
    assert spans >= {
        ("sleep", "canceled"),
        ("wait news", "canceled"),
        ("wait busy", "canceled"),
        ("wait ask", "canceled"),
        ("foreach asking", "canceled"),
        ("foreach busy", "canceled"),
        ("invoke_workflow listening", "canceled"),
    }


def test_the_steps_of_a_canceled_run_are_not_run_again(canceled: Outcome) -> None:
    assert sorted(canceled.marks) == [
        ("r-1/asks/asking[0]/ask", 1),
        ("r-1/dies/doom", 1),
        ("r-1/retries/busy[0]", 1),
    ]


def killed_and_canceled(order: Order) -> tuple[str, list[str]]:
    """Kill a run, cancel it from another process, and return how it ended and what is wrong."""
    order.folder.mkdir()
    finish(launch(conclude, order))
    at_death = journal_of(order)
    assert finish(launch(cancel_dead, replace(order, kill=None))) == 0, order.errors.read_text()
    if not at_death:
        return "never began", []
    outcome = outcome_of(order)
    before = f"killed {order.kill}: "
    return outcome.state.status, [before + problem for problem in outcome.problems(deaths=[at_death])]


def test_a_run_killed_at_this_or_that_write_to_its_journal_can_be_canceled_with_nothing_left_open(
    tmp_path: Path,
) -> None:
    ends: list[str] = []
    problems: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        while "success" not in ends:  # until one had ended before it was to be killed
            kills = [3 * (len(ends) + number) + 1 for number in range(4)]
            orders = [Order(tmp_path / str(kill), kill=f"after write {kill}") for kill in kills]
            for status, found in pool.map(killed_and_canceled, orders):
                ends.append(status)
                problems += found
    assert problems == []
    assert ends.count("canceled") >= 7
