"""A run that goes back in another one is as durable as any: killed in between, it ends in another process."""

import asyncio
import signal
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from spanflow.events import Start
from spanflow.ports import FoundRun, RunQuery
from spanflow.tracing import names
from tests.durable.checking import journal_of, outcome_of
from tests.durable.conftest import Where
from tests.durable.processes import Order, complete, finish, launch
from tests.durable.program import ANSWERS, conclude, runtime_of
from tests.stores.support import as_json

POINT = "measure[1]"
KEPT = {"prepare", "measure[0]", "measure[2]"}


async def travel(order: Order) -> None:
    """Go back in the run, and see the new one to its end."""
    async with runtime_of(order) as runtime:
        run = await runtime.get_run(order.run_id)
        new = await run.time_travel(POINT)
        while (result := await new.wait()).status == "suspended":
            for path in result.suspended:
                await new.resume(ANSWERS[path], step=path)


@pytest.mark.parametrize(
    "kill", [None, "after write 1", "after write 3", "after write 9", "in measure[1]", "in review/grow#2"]
)
def test_a_travelled_run_killed_anywhere_ends_with_what_it_took_over(
    kill: str | None, where: Where, tmp_path: Path
) -> None:
    order = Order(tmp_path, run_id=str(uuid4()), **where)
    complete(conclude, order)
    first = outcome_of(order)

    code = finish(launch(travel, replace(order, kill=kill)))
    assert code == (0 if kill is None else -signal.SIGKILL)
    (new,) = travelled_from(order)
    again = replace(order, run_id=new.run_id)
    at_death = journal_of(again)
    complete(conclude, again)

    outcome = outcome_of(again)
    assert list(outcome.problems(deaths=[at_death])) == []
    assert outcome.state.result == first.state.result
    assert not {key.partition("/")[2] for key, _ in outcome.marks} & KEPT
    assert {span.trace_id for span in outcome.spans} == {new.trace_id} != {first.state.trace_id}
    assert not {span.attributes.get("spanflow.step.path") for span in outcome.spans} & KEPT
    start = outcome.entries[0]
    assert start.kind is Start
    assert start.payload["travelled"].path == POINT
    assert as_json(outcome_of(order).entries) == as_json(first.entries)


def travelled_from(order: Order) -> list[FoundRun]:
    """Return the runs that went back in this one."""

    async def find() -> list[FoundRun]:
        store = order.open_store()
        found = await store.find(RunQuery(metadata={names.TRAVELLED_RUN_ID: order.run_id}))
        await store.aclose()
        return list(found)

    return asyncio.run(find())
