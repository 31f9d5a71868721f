"""Many processes find the same dead runs at the same time: each run has one heir, and ends once."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL
from uuid import uuid4

import pytest

from spanflow import StepContext, Workflow, step
from spanflow.events import Finish, Start
from tests.durable.checking import outcome_of
from tests.durable.conftest import Where
from tests.durable.processes import PATIENCE, Order, die, finish, launch, read_lines
from tests.durable.program import Deps, mark, runtime_of

RUNS = 20
LEASE = 0.3  # s: of the process that dies
LONG = 60.0  # s: no heir may be so slow that it counts as dead


@step
async def first(value: int, ctx: StepContext[Deps]) -> int:
    mark(ctx)
    return value + 1


@step
async def meet(value: int, ctx: StepContext[Deps]) -> int:
    """Die with all the others, the first time."""
    mark(ctx)
    if ctx.attempt == 1 and len(read_lines(ctx.deps.order.marks)) == 2 * RUNS:
        die()
    await asyncio.sleep(3600.0 if ctx.attempt == 1 else 0.01)
    return value + 1


@step
async def last(value: int, ctx: StepContext[Deps]) -> int:
    mark(ctx)
    return value + 1


racing = Workflow("racing", input=int).then(first).then(meet).then(last)


def run_ids(order: Order) -> list[str]:
    return [f"{order.run_id}-{number}" for number in range(RUNS)]


async def start_all(order: Order) -> None:
    async with runtime_of(order, racing) as runtime:
        runs = [await runtime.create_run(racing, run_id=run_id) for run_id in run_ids(order)]
        await asyncio.gather(*(run.start(number) for number, run in enumerate(runs)))


async def take_over_all(order: Order) -> None:
    """Be one of those who look for dead runs, until all are over."""
    wanted = set(run_ids(order))
    async with runtime_of(order, racing) as runtime:
        while wanted - {each.run_id for each in await runtime.find_runs(status="success")}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # wherever they run


async def until_all_are_dead(order: Order) -> None:
    store = order.open_store()
    async with asyncio.timeout(PATIENCE):
        while len(await store.orphans(time.time_ns())) < RUNS:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await store.aclose()


@pytest.mark.parametrize("heirs", [2, 5])
def test_of_processes_that_race_for_dead_runs_exactly_one_takes_each(heirs: int, where: Where, tmp_path: Path) -> None:
    order = Order(tmp_path, run_id=uuid4().hex, lease=LEASE, **where)
    assert finish(launch(start_all, order)) == -SIGKILL
    asyncio.run(until_all_are_dead(order))
    processes = [launch(take_over_all, replace(order, lease=LONG)) for _ in range(heirs)]
    assert [finish(process) for process in processes] == [0] * heirs
    for number, run_id in enumerate(run_ids(order)):
        outcome = outcome_of(replace(order, run_id=run_id))
        assert list(outcome.problems()) == []
        assert (outcome.state.status, outcome.state.result) == ("success", number + 3)
        assert (outcome.lost, outcome.doubled) == (["meet"], {})
        assert outcome.keys == ["first", "meet", "meet", "last"]
        kinds = [entry.kind for entry in outcome.entries]
        assert (kinds.count(Start), kinds.count(Finish)) == (2, 1)
        after = [span for span in outcome.spans if span.name in ("step last", "invoke_workflow racing")]
        assert len(after) == 2
        assert len({span.process for span in after}) == 1
