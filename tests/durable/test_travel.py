"""A run that goes back in another one is as durable as any: killed in between, it ends in another process."""

import asyncio
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from spanflow import RunConflict, SQLiteStore
from spanflow.events import Start
from spanflow.ports import FoundRun, RunQuery
from tests.durable.checking import journal_of, outcome_of
from tests.durable.program import ANSWERS, Order, complete, finish, launch, runtime_of
from tests.stores.support import as_json

POINT = "measure[1]"
KEPT = {"prepare", "measure[0]", "measure[2]"}


async def travel(order: Order) -> None:
    """Go back in the run, and see the new one to its end."""
    runtime, _ = runtime_of(order)
    async with runtime:
        run = await runtime.get_run(order.run_id)
        new = await run.time_travel(POINT)
        while (result := await new.wait()).status == "suspended":
            for path in result.suspended:
                await new.resume(ANSWERS[path], step=path)


async def go_on(order: Order) -> None:
    """See a run to its end in which others may have died."""
    runtime, _ = runtime_of(order)
    async with runtime:
        run = await runtime.get_run(order.run_id)
        while True:
            with suppress(RunConflict):
                result = await run.wait()
                if result.status != "suspended":
                    return
                for path in result.suspended:
                    await run.resume(ANSWERS[path], step=path)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("kill", [None, 1, 3, 9, "in measure[1]", "in review/grow#2"])
def test_a_travelled_run_killed_anywhere_ends_with_what_it_took_over(kill: int | str | None, tmp_path: Path) -> None:
    order = Order(tmp_path)
    assert complete(order) == 0, order.errors.read_text()
    first = outcome_of(order)

    code = finish(launch(travel, replace(order, kill=kill)))
    assert code == (0 if kill is None else -signal.SIGKILL)
    (new,) = created(order)
    again = replace(order, run_id=new.run_id, kill=None)
    at_death = journal_of(again)
    assert finish(launch(go_on, again)) == 0

    outcome = outcome_of(again)
    assert list(outcome.problems(deaths=[at_death])) == []
    assert not {key.partition("/")[2] for key, _ in outcome.marks} & KEPT
    assert {span.trace_id for span in outcome.spans} == {new.trace_id} != {first.state.trace_id}
    assert not {span.attributes.get("spanflow.step.path") for span in outcome.spans} & KEPT
    start = outcome.entries[0]
    assert start.kind is Start
    assert start.payload["travelled"].path == POINT
    assert as_json(outcome_of(order).entries) == as_json(first.entries)


def created(order: Order) -> list[FoundRun]:
    """Return the runs that the store has besides the first."""

    async def find() -> list[FoundRun]:
        store = SQLiteStore(order.store)
        found = [run for run in await store.find(RunQuery()) if run.run_id != order.run_id]
        await store.aclose()
        return found

    return asyncio.run(find())
