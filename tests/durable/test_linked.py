"""A run with a trace for each stretch is killed anywhere: its traces are those of a run that was not, and no more."""

import signal
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from spanflow import RunConflict, TracingOptions
from spanflow.events import Start
from tests.durable.checking import journal_of, outcome_of
from tests.durable.conftest import Where
from tests.durable.processes import Order, complete, finish, launch, read_lines
from tests.durable.program import INPUT, RESULT, conclude, job, runtime_of, status_of

LINK = TracingOptions(resume="link")


async def begin(order: Order) -> None:
    """Start a run with a trace for each stretch, where it is not there yet, and see it to its end."""
    async with runtime_of(order) as runtime:
        if await status_of(runtime, order.run_id) is None:
            with suppress(RunConflict):
                await (await runtime.create_run(job, run_id=order.run_id)).start(INPUT, tracing_options=LINK)
    await conclude(order)


@pytest.mark.parametrize(
    "kill",
    [
        None,
        "in measure[1]",
        "before write 4",
        "after span foreach measure",
        "after span invoke_workflow job",
        "in total",
        "in review/grow#2",
        "before write 14",
    ],
)
def test_each_trace_of_a_run_that_was_killed_is_whole(kill: str | None, where: Where, tmp_path: Path) -> None:
    order = Order(tmp_path, run_id=str(uuid4()), **where)
    code = finish(launch(begin, replace(order, kill=kill)))
    assert code == (0 if kill is None else -signal.SIGKILL)
    at_death = journal_of(order)
    complete(begin, order)

    outcome = outcome_of(order)
    assert (outcome.state.status, outcome.state.result) == ("success", RESULT)
    told = {entry.run.trace_id for entry in outcome.entries}
    begun = [entry.run.trace_id for entry in outcome.entries if entry.kind is Start and not _recovers(entry.payload)]
    assert len(begun) == len(told) == 3
    spans = read_lines(order.spans)
    assert {span["trace_id"] for span in spans} == told
    for trace_id in begun:
        ours = [span for span in spans if span["trace_id"] == trace_id]
        ids = Counter(span["span_id"] for span in ours)
        assert {span["span_id"] for span in ours if span["parent_id"] is None} == {
            f"{entry.span_id:016x}"
            for entry in outcome.entries
            if entry.kind is Start and entry.run.trace_id == trace_id and entry.span_id is not None
        }
        assert {span["parent_id"] for span in ours} <= {None, *ids}
        most = 1 if kill is None or not at_death else 2  # exported, but not stored as over when the process died
        assert max(ids.values()) <= most


def _recovers(payload: dict[str, object]) -> bool:
    return bool(payload.get("recovered"))
