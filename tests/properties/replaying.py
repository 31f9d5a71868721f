"""Walk a plan over the finished journal of its run: the interpreter must take the same turns and want nothing new."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from spanflow import Err, Event, Ok, RunState, StepResult
from spanflow.events import Ref, StepResultEvent, parse_event
from spanflow.failure import failure
from spanflow.interpret import (
    Bailed,
    Canceled,
    Failed,
    Fork,
    Frame,
    Joined,
    Ops,
    Outcome,
    Position,
    Value,
    interpret,
    run_body,
)
from spanflow.plan import MapNode, Plan, SleepNode, StepNode, ToolNode, WaitNode
from tests.properties.driving import Story
from tests.properties.events import as_json


class Undecided(Exception):
    """The journal says nothing of a condition: it raised, or the run was stopped in it."""


class Unheard(Exception):
    """The journal knows nothing of a path: to go on would be new work."""


async def replay(plan: Plan, events: Sequence[Event]) -> tuple[Outcome | None, set[str]]:
    """Return what the walk comes to, None where it ends in a condition, and the paths it went through."""
    ops = Replay(events)
    try:
        return await interpret(plan, Value(ops.state.input, ""), ops), ops.visited
    except Undecided:
        return None, ops.visited


class Replay:
    """``Ops`` that only look up."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.state = RunState.fold(events)
        self.visited: set[str] = set()
        self._ended = {event.path: event.seq for event in events if isinstance(event, StepResultEvent)}

    def step(
        self, node: StepNode | ToolNode | MapNode, path: str, value: Value, position: Position
    ) -> Awaitable[Outcome]:
        self._holds(value.ref, value.data)
        return _done(self._outcome(path))

    async def test(self, key: str, name: str, value: Value) -> bool | Failed:
        if key not in self.state.decisions:
            raise Undecided(key)
        return bool(self.state.decisions[key])

    async def within(self, frame: Frame, value: Value, body: Callable[[Ops, Value], Awaitable[Outcome]]) -> Outcome:
        known = self._outcome(frame.path)
        try:
            outcome = await body(self, value)
        except Undecided:
            assert isinstance(known, Failed | Canceled)
            return known
        except Unheard:
            if not isinstance(known, Canceled):  # then it was stopped before it came there
                raise
            return known
        assert type(outcome) is type(known), (frame.path, outcome, known)
        if isinstance(outcome, Value) and isinstance(known, Value):
            assert as_json(outcome.data) == as_json(known.data)
        return known

    async def fork(self, forks: Sequence[Fork], limit: int | None, *, keep_going: bool) -> Joined:
        outcomes = [await self._forked(fork) for fork in forks]
        stopping = [
            (self._ended[fork.path], outcome)
            for fork, outcome in zip(forks, outcomes, strict=True)
            if fork.path in self._ended
            and (isinstance(outcome, Bailed | Canceled) or (isinstance(outcome, Failed) and not keep_going))
        ]
        decisive = min(stopping, key=lambda each: each[0])[1] if stopping else None
        if decisive is None and any(isinstance(each, Canceled) for each in outcomes):
            raise Unheard("all were stopped before each of them had begun")
        return Joined(outcomes, decisive)

    async def _forked(self, fork: Fork) -> Outcome:
        if fork.path not in self.state.steps:  # it was queued when the others were stopped
            return Canceled()
        return await run_body(fork.body, fork.path, fork.value, self, fork.position)

    async def items(self, path: str, value: Value) -> Sequence[Value] | Failed:
        return [Value(item, f"{value.ref}:{index}") for index, item in enumerate(value.data)]

    def collected(self, path: str, outcomes: Sequence[Outcome]) -> Value:
        made: list[Any] = []
        for outcome in outcomes:
            assert isinstance(outcome, Value | Failed)
            made.append(Ok[Any](value=outcome.data) if isinstance(outcome, Value) else Err(error=outcome.problem))
        return Value(made, f"{path}[?]")

    def failure(self, path: str, error: BaseException, *, recorded: bool = False) -> Failed:
        return Failed(failure(error, path), recorded)

    async def sleep(self, node: SleepNode, path: str, value: Value) -> Outcome:
        outcome = self._outcome(path)
        return value if isinstance(outcome, Value) else outcome

    async def wait(self, node: WaitNode, path: str) -> Outcome:
        return self._outcome(path)

    def _outcome(self, path: str) -> Outcome:
        known: StepResult | None = self.state.steps.get(path)
        if known is None:
            raise Unheard(path)
        self.visited.add(path)
        match known.status:
            case "success":
                return Value(known.output, path)
            case "bailed":
                return Bailed(Value(known.output, path))
            case "failed":
                assert known.error is not None
                return Failed(known.error)
            case _:
                return Canceled()

    def _holds(self, ref: Ref | None, data: Any) -> None:
        """A value that is stored as a reference is found behind it."""
        if ref is not None:
            assert as_json(self.state.resolve(ref)) == as_json(data), ref


async def _done(outcome: Outcome) -> Outcome:
    return outcome


def walking_the_plan_again_wants_nothing_new(story: Story) -> None:
    plan = story.workflow.plan
    for events in (story.recorded, [parse_event(event.model_dump_json()) for event in story.recorded]):
        state = RunState.fold(events)
        try:
            outcome, visited = asyncio.run(replay(plan, events))
        except Unheard:
            if state.status != "canceled":  # then it was stopped before it came there
                raise
            continue
        if outcome is None:
            assert state.status in ("failed", "canceled")
            continue
        assert visited == set(state.steps)
        match outcome:
            case Value():
                assert (state.status, state.result) == ("success", outcome.data)
            case Bailed():
                assert (state.status, state.result) == ("success", outcome.value.data)
            case Failed():
                assert state.error is not None
                assert (state.status, state.error.type) == ("failed", outcome.problem.type)
            case _:
                assert state.status == "canceled"
