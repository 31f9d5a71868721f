"""A run held against what the reference predicts: how it ends, and what happened when on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

from spanflow.events import StepResultEvent, StepStart, StepWaiting, ToolCall, ToolResultEvent
from tests.properties.driving import Story
from tests.properties.plans import REASON, nodes, without_numbers
from tests.properties.reference import Aborted, Bailed, Expected, Fact, Failed, Gave, Kind, Moment, Outcome, Suspended
from tests.properties.spans import STOPPED, Trace, times


@dataclass(frozen=True)
class Seen:
    """Something that took its time at a path. Times are ns since the epoch."""

    start: int
    end: int
    how: str


def it_ends_as_predicted(story: Story, expected: Expected) -> None:
    statuses = [event.payload.status for event in story.recorded if event.type == "finish"]
    assert len(statuses) == len(expected.finishes), (statuses, expected.finishes)
    assert all(status in allowed for status, allowed in zip(statuses, expected.finishes, strict=True))
    suspended = [sorted(event.payload.suspended) for event in story.recorded if event.type == "finish"]
    assert suspended[:-1] == expected.suspended
    assert any(_is(story, outcome) for outcome in expected.outcomes), (story.result, expected.outcomes)


def _is(story: Story, outcome: Outcome) -> bool:
    result = story.result
    match outcome:
        case Gave(value) | Bailed(value):
            return result.status == "success" and result.result == value
        case Failed(type, path):
            error = result.error
            if result.status != "failed" or error is None or error.type.rpartition(".")[2] != type:
                return False
            return path is None or error.path == path
        case Aborted(path):
            said = None if result.error is None else (result.error.path, result.error.message)
            wanted = None if path is None else (path, REASON)
            return result.status == "canceled" and result.result is None and said == wanted
        case Suspended():
            return False


def everything_happens_when_predicted(story: Story, expected: Expected) -> None:
    """Each attempt, frame, wait, delay and tool call has its time, and nothing happens beside them."""
    clock = _Clock(story)
    kinds: list[tuple[Kind, dict[str, list[Seen]]]] = [
        ("attempt", _attempts(story, frames=False)),
        ("frame", _attempts(story, frames=True)),
        ("wait", _waits(story)),
        ("tool", _tools(story)),
        ("delay", _gaps(story, "retry")),
        ("suspension", _gaps(story, "suspension")),
    ]
    for kind, seen in kinds:
        facts: dict[str, list[Fact]] = {}
        for fact in expected.facts:
            if fact.kind == kind:
                facts.setdefault(fact.path, []).append(fact)
        for path in {*facts, *seen}:
            _compare(kind, path, facts.get(path, []), seen.get(path, []), clock)


def the_state_is_as_predicted(story: Story, expected: Expected) -> None:
    facts: dict[str, list[Fact]] = {}
    for fact in expected.facts:
        if fact.kind == "state":
            facts.setdefault(fact.path, []).append(fact)
    state: dict[str, int] = dict(story.result.state)
    assert set(state) <= set(facts)
    for path, changes in facts.items():
        sure = [number for number, fact in enumerate(changes) if fact.certain]
        if sure:
            assert state[path] in {fact.value for fact in changes[sure[-1] :]}, path


class _Clock:
    """Turns moments into ns since the epoch."""

    def __init__(self, story: Story) -> None:
        events = story.recorded
        self._starts = [event.timestamp for event in events if event.type == "start"]
        if sum(event.type == "finish" for event in events) > len(self._starts):  # canceled while it was suspended
            self._starts.append(events[-1].timestamp)

    def ns(self, moment: Moment) -> int:
        return self._starts[moment.stretch - 1] + int(moment.seconds * 1e9)


def _compare(kind: str, path: str, facts: Sequence[Fact], seen: Sequence[Seen], clock: _Clock) -> None:
    facts = sorted(facts, key=lambda fact: fact.start)
    told = f"{kind} at {path!r}: predicted {facts}, seen {seen}"
    assert sum(fact.certain for fact in facts) <= len(seen) <= len(facts), told
    for fact, each in zip(facts, seen, strict=False):
        assert clock.ns(fact.start) == each.start, told
        if fact.hows:
            assert clock.ns(fact.end) == each.end, told
            assert each.how in fact.hows or not fact.certain, told


def _attempts(story: Story, *, frames: bool) -> dict[str, list[Seen]]:
    known = nodes(story.scenario.plan)
    found: dict[str, list[Seen]] = {}
    started: dict[str, int] = {}
    for event in story.recorded:
        if not event.path or known[without_numbers(event.path)].is_frame != frames:
            continue
        how = {"step-retry": "failed", "step-suspended": "suspended"}.get(event.type)
        if isinstance(event, StepStart):
            started[event.path] = event.timestamp
        elif isinstance(event, StepResultEvent):
            how = event.payload.status
        if how is not None and event.path in started:
            found.setdefault(event.path, []).append(Seen(started.pop(event.path), event.timestamp, how))
    return found


def _waits(story: Story) -> dict[str, list[Seen]]:
    ends = {event.path: event for event in story.recorded if isinstance(event, StepResultEvent)}
    return {
        event.path: [Seen(event.timestamp, ends[event.path].timestamp, ends[event.path].payload.status)]
        for event in story.recorded
        if isinstance(event, StepWaiting)
    }


def _tools(story: Story) -> dict[str, list[Seen]]:
    known = nodes(story.scenario.plan)
    found: dict[str, list[Seen]] = {}
    results = {event.payload.tool_call_id: event for event in story.recorded if isinstance(event, ToolResultEvent)}
    for event in story.recorded:
        if isinstance(event, ToolCall) and known[without_numbers(event.path)].kind != "condition":
            result = results.get(event.payload.tool_call_id)
            if result is None:  # of a thread that outlived its step
                found.setdefault(event.path, []).append(Seen(event.timestamp, event.timestamp, "canceled"))
                continue
            error = result.payload.error
            how = "success" if error is None else "canceled" if error.type.rpartition(".")[2] in STOPPED else "failed"
            found.setdefault(event.path, []).append(Seen(event.timestamp, result.timestamp, how))
    return found


def _gaps(story: Story, reason: str) -> dict[str, list[Seen]]:
    found: dict[str, list[Seen]] = {}
    for span in Trace(story).waits(reason):
        attributes = dict(span.attributes or {})
        how = attributes.get("spanflow.step.status", "waited" if reason == "retry" else "answered")
        path = str(attributes["spanflow.step.path"])
        if reason == "retry" and span.start_time == span.end_time:  # canceled in the moment of the failure
            continue
        found.setdefault(path, []).append(Seen(*times(span), str(how)))
    return {path: sorted(seen, key=lambda each: each.start) for path, seen in found.items()}
