"""The tree that is drawn from a journal is the one that the spans of the run have."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from spanflow import Retry, RunState, Runtime, SQLiteStore, Workflow, step
from spanflow.cli.tree import draw, spans_of
from spanflow.entries import Entry
from spanflow.ports import RunRecord, Store
from spanflow.testing import capture_traces
from spanflow.tracing import names
from spanflow.tracing.lines import Line, ReadableSpanLike, describe
from tests.cli.shop import Decision, Refund, pay, refunds
from tests.contract.support import Boom, SlowStore
from tests.durable.processes import RUN_ID, Order, complete, finish, launch
from tests.durable.program import conclude
from tests.properties.driving import tell
from tests.properties.plans import Scenario
from tests.properties.spans import Trace, id_of
from tests.properties.strategies import NIGHTLY, examples, scenarios

Seen = tuple[tuple[str, ...], int | None, int | None, Line]
"""The names of a span and of all above it, its start, its end and what its line says."""


def seen(spans: Iterable[ReadableSpanLike]) -> Counter[Seen]:
    """What can be seen of spans, but for tools that other tools called: the journal has them beside each other."""
    by_id = {span.context.span_id: span for span in spans if span.context is not None}
    return Counter(
        (_above(span, by_id), span.start_time, span.end_time, _line(span))
        for span in by_id.values()
        if span.name != names.RUN_STARTED
    )


def _line(span: ReadableSpanLike) -> Line:
    """What is said of a span; not whether a wait was canceled or was just over when all ended."""
    line = describe(span, times=True, attributes=())
    return replace(line, facts="") if span.name.startswith("wait ") else line


def _above(span: ReadableSpanLike, by_id: dict[int, ReadableSpanLike]) -> tuple[str, ...]:
    chain: list[str] = []
    current: ReadableSpanLike | None = span
    while current is not None:
        if not chain or not current.name.startswith("execute_tool"):
            chain.append(describe(current, times=False, attributes=()).name)
        current = None if current.parent is None else by_id.get(current.parent.span_id)
    return tuple(chain)


@pytest.mark.timeout(0 if NIGHTLY else 600)
@examples
@given(scenarios)
def test_the_journal_of_any_run_draws_the_spans_of_its_trace(scenario: Scenario) -> None:
    story = tell(scenario)
    trace, told = Trace(story), {event.span_id for event in story.recorded}
    # What a thread begins just as its step is canceled has a span, but no event.
    spans = [span for span in trace.ours if id_of(span) in told or not trace.outlived(span)]
    drawn = spans_of(story.workflow.plan, [Entry.of(event) for event in story.recorded], now=0)
    assert seen(drawn) == seen(spans)


async def journal(store: Store, run_id: str) -> tuple[RunRecord, list[Entry]]:
    entries: list[Entry] = []
    while page := await store.read(run_id, after=len(entries)):
        entries += page
    return await store.load(run_id), entries


async def test_a_run_in_a_file_draws_its_tree_while_it_waits_and_when_it_is_over(tmp_path: Path) -> None:
    with capture_traces() as traces:
        async with Runtime(SQLiteStore(tmp_path / "runs.db"), workflows=[refunds]) as runtime:
            run = await runtime.create_run(refunds, run_id="r")
            await run.start(Refund(amount=5))
            record, entries = await journal(SQLiteStore(tmp_path / "runs.db"), "r")
            now = entries[-1].timestamp + 3_600_000_000_000
            waits = draw(record.plan, entries, now=now)
            assert waits.splitlines()[-1].split() == ["└──", "wait", "approve", "1", "h", "[waiting]"]
            await run.resume(Decision(approved=True))
            record, entries = await journal(SQLiteStore(tmp_path / "runs.db"), "r")
    assert seen(spans_of(record.plan, entries, now=now)) == seen(traces.spans)


async def test_a_run_that_went_back_in_another_one_draws_what_is_in_its_own_trace(tmp_path: Path) -> None:
    async with Runtime(SQLiteStore(tmp_path / "runs.db"), workflows=[refunds]) as runtime:
        run = await runtime.create_run(refunds)
        await run.start(Refund(amount=5))
        await run.resume(Decision(approved=True))
        with capture_traces() as traces:
            new = await run.time_travel(pay)
            await new.wait()
        record, entries = await journal(SQLiteStore(tmp_path / "runs.db"), new.run_id)
    drawn = [(span.name, span.start_time, span.end_time) for span in spans_of(record.plan, entries, now=0)]
    assert drawn == [(span.name, span.start_time, span.end_time) for span in traces.find()]


@pytest.mark.parametrize("by", ["a sibling's failure", "somebody"])
async def test_a_step_that_is_canceled_as_it_is_to_be_tried_again_at_once_has_waited_for_nothing(by: str) -> None:
    begun = asyncio.Event()

    @step(retry=Retry(max_attempts=3, delay=0))
    async def stumble(value: int) -> int:
        begun.set()
        if by == "somebody":
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        raise Boom("again")

    @step
    async def follow(value: int) -> int:
        await begun.wait()
        if by == "somebody":
            await asyncio.Event().wait()
        raise Boom("for good")

    workflow = Workflow("flow", input=int).parallel(stumble, follow)
    store = SlowStore()
    with capture_traces() as traces:
        async with Runtime(store, workflows=[workflow]) as runtime, asyncio.timeout(30):
            run = await runtime.create_run(workflow, run_id="r")
            stream = await run.stream(1)
            await begun.wait()
            if by == "somebody":
                await run.cancel()
            await stream.get_workflow_state()
            record, entries = await journal(store, "r")
    assert RunState.fold([entry.event for entry in entries]).steps["stumble"].status == "canceled"
    assert {entry.span_id for entry in entries} <= {span.context.span_id for span in traces.spans if span.context}
    assert traces.find("wait *") == ()
    assert seen(spans_of(record.plan, entries, now=0)) == seen(traces.spans)


@pytest.mark.parametrize("kill", ["after write 5", "after write 9", "after write 14", "in measure[0]", "tool with 3"])
async def test_a_run_whose_process_was_killed_draws_what_it_lost(tmp_path: Path, kill: str) -> None:
    order = Order(tmp_path, kill=kill)
    finish(launch(conclude, order))
    store = SQLiteStore(order.store)
    record, entries = await journal(store, RUN_ID)
    open_then = draw(record.plan, entries, now=time.time_ns())
    assert open_then.splitlines()[0].endswith(("[running]", "[suspended]"))
    complete(conclude, order)
    record, entries = await journal(store, RUN_ID)
    await store.aclose()
    drawn = spans_of(record.plan, entries, now=0)
    if not kill.startswith("after"):
        assert any(span.attributes.get(names.ERROR_TYPE) == "spanflow.process_lost" for span in drawn)
    exported = [each for each in _lines(order.spans) if each["name"] != names.RUN_STARTED]
    assert {_outline(span.name, span.start_time, span.end_time, span.problem is not None) for span in drawn} == {
        _outline(each["name"], each["start"], each["end"], each["failed"]) for each in exported
    }


def _outline(name: Any, start: Any, end: Any, failed: Any) -> tuple[Any, ...]:
    """What two accounts of a span agree on: the journal says of a wait only when the next attempt began."""
    return name, start, None if name == "wait flaky" else end, failed


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_siblings_of_one_moment_stand_in_the_order_in_which_they_ran(tmp_path: Path) -> None:
    workflow = Workflow("order", input=int).then(pay.with_id("z")).map(len).then(pay.with_id("a"))
    async with Runtime(SQLiteStore(tmp_path / "runs.db"), workflows=[workflow]) as runtime:
        run = await runtime.create_run(workflow, run_id="r")
        await run.start(1)
        record, entries = await journal(SQLiteStore(tmp_path / "runs.db"), "r")
    for entry in entries:
        entry.timestamp = entries[0].timestamp
    steps = [line.split()[2] for line in draw(record.plan, entries, now=0).splitlines()[1:]]
    assert steps == ["z", "len", "a"]
