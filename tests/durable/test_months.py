"""A run waits for months, in which no process knows of it: it is found, answered, and its trace is one."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from spanflow import Runtime
from spanflow.ports import FoundRun
from tests.durable.checking import outcome_of
from tests.durable.conftest import Where
from tests.durable.processes import complete
from tests.durable.random_program import FastClock, PlanOrder, conclude_plan
from tests.properties.plans import Ask, Await, Call, Keep, Nested, Parallel, Pause, Task, Then

DAY = 24 * 3600 * 10**9  # ns
PLAN = Nested(
    (
        Parallel((Task((Keep(), Ask())), Nested((Then(Task((Call("async"), Ask()))),)))),
        Pause(10_000_000),  # 115 days
        Await("late"),
        Then(Task()),
    )
)


def found_in(order: PlanOrder) -> Sequence[FoundRun]:
    async def find() -> Sequence[FoundRun]:
        store = order.open_store()
        found = await Runtime(store=store).find_runs(status="suspended", metadata={"user.id": "u-42"})
        await store.aclose()
        return [each for each in found if each.run_id == order.run_id]

    return asyncio.run(find())


def test_a_run_that_waited_for_months_without_a_process_ends_in_the_trace_that_it_began(
    where: Where, tmp_path: Path
) -> None:
    order = PlanOrder(tmp_path, run_id=uuid4().hex, plan=PLAN, value=2, answers=False, **where)
    complete(conclude_plan, order)
    (found,) = found_in(order)
    suspended = outcome_of(order)
    assert (found.status, found.trace_id) == ("suspended", suspended.state.trace_id)
    assert not [span for span in suspended.spans if span.parent_id is None], "the root is exported before the end"

    FastClock(order.epoch, tmp_path / "skipped").skip(90 * DAY)
    complete(conclude_plan, replace(order, answers=True))
    outcome = outcome_of(order)
    assert list(outcome.problems()) == []
    assert (outcome.state.status, outcome.lost, outcome.doubled) == ("success", [], {})
    (root,) = [span for span in outcome.spans if span.parent_id is None]
    assert root.end - root.start > (90 + 115) * DAY
    waits = [span for span in outcome.spans if span.attributes.get("spanflow.wait.reason") == "suspension"]
    assert [(span.end - span.start) // (90 * DAY) for span in waits] == [1, 1]
    assert len({span.process for span in outcome.spans}) == 2
