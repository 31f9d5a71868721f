"""A scenario is run, and everything that can be seen of it from outside is kept."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from opentelemetry.sdk.trace import ReadableSpan

from spanflow import Event, MemoryStore, NotSuspended, Run, Runtime, TracingOptions, Workflow, WorkflowResult
from spanflow.entries import Entry
from spanflow.events import StepResultEvent, parse_event
from spanflow.ports import RunRecord
from spanflow.testing import FakeClock, capture_traces
from tests.properties.building import World, build
from tests.properties.plans import ANSWER, Scenario, count_early, nodes, without_numbers

_AGES = 100_000_000  # s: longer than any plan takes


class JsonStore(MemoryStore):
    """Keeps the JSON of events, as a store on disk does."""

    is_live = False

    async def create(
        self, record: RunRecord, entries: Sequence[Entry], *, owner: str | None = None, lease_until: int = 0
    ) -> None:
        kept = [_through_json(entry) for entry in entries]
        await super().create(record, kept, owner=owner, lease_until=lease_until)

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        kept = [_through_json(entry) for entry in entries]
        await super().append(run_id, kept, expected_seq=expected_seq)


def _through_json(entry: Entry) -> Entry:
    """Return a line as a store gives it back that kept its JSON: with what was said, and without defaults."""
    event = parse_event(entry.event.model_dump_json())
    kept = Entry.of(event)
    kept.payload = {name: kept.payload[name] for name in event.payload.model_fields_set}
    if event.changes is not None:
        kept.changes = {name: value for name, value in event.changes if name in event.changes.model_fields_set}
    return kept


@dataclass(frozen=True)
class Joined:
    """A reader that joined late: with which ``after``, and what it read. ``live``: while the run executed."""

    after: int
    events: list[Event]


@dataclass
class Story:
    """What was seen of a run.

    Attributes:
        live: events of each stretch that was streamed, deltas included.
        recorded: what the store holds at the end.
        results: the result at the end of each stretch that was waited for.
        executed: the paths of the steps that were executed, where the run has travelled in time.
        journeys: of runs that went back in this one, by the path that they went back to.
        complaints: what the event loop or a logger said that nobody should have to read.
    """

    scenario: Scenario
    world: World
    workflow: Workflow[int, Any]
    points: "Callable[[Story], Sequence[str]] | None" = None
    live: list[list[Event]] = field(default_factory=list[list[Event]])
    recorded: list[Event] = field(default_factory=list[Event])
    results: list[WorkflowResult[Any]] = field(default_factory=list[WorkflowResult[Any]])
    joined: list[Joined] = field(default_factory=list[Joined])
    replayed: list[Joined] = field(default_factory=list[Joined])
    complaints: list[str] = field(default_factory=list[str])
    tracing_options: TracingOptions | None = None
    spans: Sequence[ReadableSpan] = ()
    executed: frozenset[str] = frozenset()
    journeys: "dict[str, Story]" = field(default_factory=dict[str, "Story"])

    @property
    def result(self) -> WorkflowResult[Any]:
        return self.results[-1]

    def outlived(self) -> set[str]:
        """Return the span ids of attempts that were canceled while a thread worked for them.

        Nothing stops a thread: what it still does may come late, or not at all.
        """
        known = nodes(self.scenario.plan)
        return {
            event.span_id or ""
            for event in self.recorded
            if isinstance(event, StepResultEvent)
            and event.payload.status == "canceled"
            and known[without_numbers(event.path)].in_thread
        }


def tell(
    scenario: Scenario,
    tracing_options: TracingOptions | None = None,
    *,
    then_travel: Callable[[Story], Sequence[str]] | None = None,
) -> Story:
    """Run a scenario to its end, then go back in it to each of the points that are chosen by its story."""
    world = World()
    story = Story(scenario, world, build(scenario.plan, world), then_travel, tracing_options=tracing_options)
    with _listening(story.complaints), capture_traces() as traces:
        asyncio.run(_tell(story))
        story.complaints += [f"span {name!r} was left open" for name in traces.open]
        story.spans = traces.find()
    return story


async def _tell(story: Story) -> None:
    clock = story.world.clock
    store = JsonStore() if story.scenario.through_json else MemoryStore()
    async with Runtime(store=store, workflows=[story.workflow], clock=clock) as runtime:
        run = await runtime.create_run(story.workflow)
        for _ in range(count_early(story.scenario.plan)):
            await run.send_event("early", ANSWER)
        await _to_the_end(run, _run(run, story), clock)
        story.recorded = await _all(run)
        story.replayed = [Joined(after, await _all(run, after)) for _, after in story.scenario.joins]
        story.results.append(await run.wait())
        for point in () if story.points is None else story.points(story):
            await _travel(run, point, story)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    story.complaints += [f"{task.get_name()} was left behind" for task in left]


async def _to_the_end(run: Run[int, Any], work: Coroutine[Any, Any, None], clock: FakeClock) -> None:
    whole = asyncio.create_task(work)
    while not whole.done():
        await clock.advance(_AGES)
        if not whole.done() and not clock.waits:
            whole.cancel()
            raise AssertionError(f"the run hangs; its events: {[(e.type, e.path) for e in await _all(run)]}")
    whole.result()


async def _travel(run: Run[int, Any], point: str, story: Story) -> None:
    """Go back to a point of a run that has ended, and tell what becomes of that."""
    journey = Story(replace(story.scenario, joins=(), canceled_after=None), story.world, story.workflow)
    story.world.executions.clear()
    new = await run.time_travel(point)
    for _ in range(count_early(story.scenario.plan)):
        await new.send_event("early", ANSWER)

    async def conclude() -> None:
        await _watch(new, _Observed(new), journey)
        await _answer_all(new, journey)

    await _to_the_end(new, conclude(), story.world.clock)
    journey.recorded = await _all(new)
    journey.executed = frozenset(story.world.executions)
    story.journeys[point] = journey


async def _run(run: Run[int, Any], story: Story) -> None:
    """Start the run, and do all to it that the scenario says."""
    scenario = story.scenario
    stream = await run.stream(scenario.value, tracing_options=story.tracing_options)
    cancel = asyncio.create_task(_cancel(run, story)) if scenario.canceled_after is not None else None
    await _watch(run, stream, story)
    if cancel is not None:
        if not run_is_over(story):
            cancel.cancel()
            await run.cancel()
        elif story.results[-1].status == "canceled":
            await cancel
        else:
            cancel.cancel()
        return
    await _answer_all(run, story)


async def _answer_all(run: Run[int, Any], story: Story) -> None:
    scenario = story.scenario
    while not run_is_over(story):
        waiting = sorted(story.results[-1].suspended)
        chosen = {"first": waiting[:1], "last": waiting[-1:], "all": waiting}[scenario.answering]
        await asyncio.gather(*(_answer(run, path, story) for path in chosen))


def run_is_over(story: Story) -> bool:
    return story.results[-1].status != "suspended"


async def _answer(run: Run[int, Any], path: str, story: Story) -> None:
    try:
        stream = await run.resume_stream(ANSWER, step=path)
    except NotSuspended:
        if path in (await run.wait()).suspended:
            raise
        return  # an answer before this one has ended the run, or the nested one that the question was part of
    await _watch(run, stream, story)


async def _cancel(run: Run[int, Any], story: Story) -> None:
    clock, after = story.world.clock, story.scenario.canceled_after
    assert after is not None
    await clock.sleep_until(clock.time_ns() + int(after * 1e9))
    await run.cancel()


class _Stretch(Protocol):
    """What there is to read of a stretch of a run, and its result."""

    def __aiter__(self) -> AsyncIterator[Event]: ...

    async def get_workflow_state(self) -> WorkflowResult[Any]: ...


class _Observed:
    """A run that executes already, as a stretch."""

    def __init__(self, run: Run[int, Any]) -> None:
        self._run = run
        self.get_workflow_state = run.wait

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._run.observe_stream()


async def _watch(run: Run[int, Any], stream: _Stretch, story: Story) -> None:
    """Read a stretch, send the events that are to come late, and let late readers join."""
    seen: list[Event] = []
    story.live.append(seen)
    sending: dict[str, asyncio.Task[None]] = {}
    joining: list[tuple[int, asyncio.Task[list[Event]]]] = []
    async for event in stream:
        seen.append(event)
        if event.type == "step-waiting" and (event.payload.event or "").startswith("late"):
            sending[event.path] = asyncio.create_task(_send(run, event.payload.event or "", event.timestamp, story))
        elif event.type == "step-result" and event.path in sending:
            sending.pop(event.path).cancel()
        if len(story.live) == 1:
            joins = [after for at, after in story.scenario.joins if at == len(seen)]
            joining += [(after, asyncio.create_task(_all(run, after))) for after in joins]
    for task in sending.values():
        task.cancel()
    story.joined += [Joined(after, await task) for after, task in joining]
    story.results.append(await stream.get_workflow_state())


async def _send(run: Run[int, Any], name: str, began_at: int, story: Story) -> None:
    after = float(name.partition("-")[2])
    await story.world.clock.sleep_until(began_at + int(after * 1e9))
    await run.send_event(name, ANSWER)


async def _all(run: Run[int, Any], after: int = 0) -> list[Event]:
    events: AsyncIterator[Event] = run.observe_stream(after)
    return [event async for event in events]


class _Listener(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(f"{record.name}: {record.getMessage()} {record.exc_info or ''}")


@contextmanager
def _listening(heard: list[str]) -> Generator[None]:
    """Hear the warnings of all loggers: those of asyncio and of OpenTelemetry tell what went wrong unseen."""
    listener = _Listener(heard)
    logging.getLogger().addHandler(listener)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(listener)
