"""Whatever is composed: the run gives what plain Python gives, and its events tell the whole of it."""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from spanflow import Err, Event, Ok, Retry, RunState, StepContext, Workflow, WorkflowResult, step
from spanflow.events import parse_event
from spanflow.testing import FakeClock
from tests.contract.support import Boom, recorded, untyped

ANSWER = 7
LIMIT = 40  # loops double their value until it is past this, or their cap

Ids = Iterator[int]


@dataclass(frozen=True)
class Add:
    """A step: async or a plain ``def``; one that fails for some values, fails once, or asks before it answers."""

    number: int
    kind: str

    def onto(self, flow: Any, ids: Ids) -> Any:
        return flow.then(self.body(ids))

    def body(self, ids: Ids) -> Any:
        number, kind, failed = self.number, self.kind, set[str]()

        def work(value: int, ctx: StepContext) -> int:
            if kind == "fails" and value % 3 == 0:
                raise Boom(f"{value} is divided by 3")
            if kind == "flaky" and ctx.path not in failed:
                failed.add(ctx.path)
                raise Boom("the first time")
            return value + number

        async def work_async(value: int, ctx: StepContext) -> int:
            return work(value, ctx)

        async def ask(value: int, ctx: StepContext) -> int:
            return value + await ctx.suspend({"value": value}, resume=int)

        function = {"plain": work, "asks": ask}.get(kind, work_async)
        retry = Retry(max_attempts=2, delay=5) if kind == "flaky" else None
        return untyped(step(id=f"{kind}{next(ids)}", retry=retry)(untyped(function)))

    def expect(self, value: int) -> int:
        if self.kind == "fails" and value % 3 == 0:
            raise Boom
        return value + (ANSWER if self.kind == "asks" else self.number)


@dataclass(frozen=True)
class Nested:
    """A workflow as a step."""

    parts: "tuple[Part, ...]"

    def onto(self, flow: Any, ids: Ids) -> Any:
        return flow.then(self.body(ids))

    def body(self, ids: Ids) -> Any:
        flow: Any = Workflow(f"nested{next(ids)}", input=int)
        for part in self.parts:
            flow = part.onto(flow, ids)
        return flow

    def expect(self, value: int) -> int:
        for part in self.parts:
            value = part.expect(value)
        return value


Body = Add | Nested


@dataclass(frozen=True)
class Parallel:
    left: Body
    right: Body
    on_error: str

    def onto(self, flow: Any, ids: Ids) -> Any:
        both = flow.parallel(self.left.body(ids), self.right.body(ids), on_error=self.on_error)
        return both.map(total, id=f"total{next(ids)}")

    def expect(self, value: int) -> int:
        return self.left.expect(value) + self.right.expect(value)


@dataclass(frozen=True)
class Branch:
    even: Body
    odd: Body

    def onto(self, flow: Any, ids: Ids) -> Any:
        return flow.branch((is_even, self.even.body(ids)), default=self.odd.body(ids))

    def expect(self, value: int) -> int:
        return self.even.expect(value) if is_even(value) else self.odd.expect(value)


@dataclass(frozen=True)
class Foreach:
    item: Body
    concurrency: int
    on_error: str

    def onto(self, flow: Any, ids: Ids) -> Any:
        listed = flow.map(three, id=f"three{next(ids)}")
        each = listed.foreach(self.item.body(ids), concurrency=self.concurrency, on_error=self.on_error)
        return each.map(total if self.on_error == "fail" else total_of_outcomes, id=f"total{next(ids)}")

    def expect(self, value: int) -> int:
        found = 0
        for item in three(value):
            try:
                found += self.item.expect(item)
            except Boom:
                if self.on_error == "fail":
                    raise
                found += 1000
        return found


@dataclass(frozen=True)
class Loop:
    body: Body
    cap: int

    def onto(self, flow: Any, ids: Ids) -> Any:
        return flow.do_while(self.body.body(ids), is_small, max_iterations=self.cap)

    def expect(self, value: int) -> int:
        for _ in range(self.cap):
            value = self.body.expect(value)
            if not is_small(value):
                return value
        raise Boom


@dataclass(frozen=True)
class Pause:
    seconds: int

    def onto(self, flow: Any, ids: Ids) -> Any:
        return flow.sleep(self.seconds)

    def expect(self, value: int) -> int:
        return value


Part = Add | Nested | Parallel | Branch | Foreach | Loop | Pause


def three(value: int) -> list[int]:
    return [value, value + 1, value + 2]


def total(values: Any) -> int:
    return sum(values)


def total_of_outcomes(outcomes: list[Ok[int] | Err]) -> int:
    return sum(each.value if isinstance(each, Ok) else 1000 for each in outcomes)


def is_even(value: int) -> bool:
    return value % 2 == 0


def is_small(value: int) -> bool:
    return value < LIMIT


adds = st.builds(Add, st.integers(1, 9), st.sampled_from(["async", "plain", "flaky", "asks", "fails"]))
on_error = st.sampled_from(["fail", "collect"])


def parts(bodies: st.SearchStrategy[Body]) -> st.SearchStrategy[Part]:
    return st.one_of(
        bodies,
        st.builds(Parallel, bodies, bodies, on_error),
        st.builds(Branch, bodies, bodies),
        st.builds(Foreach, bodies, st.integers(1, 3), on_error),
        st.builds(Loop, bodies, st.integers(1, 6)),
        st.builds(Pause, st.integers(0, 90)),
    )


def nested(bodies: st.SearchStrategy[Body]) -> st.SearchStrategy[Body]:
    return st.builds(Nested, st.lists(parts(bodies), min_size=1, max_size=4).map(tuple))


plans = nested(st.recursive(adds, nested, max_leaves=4))


async def run_to_its_end(plan: Nested, value: int) -> tuple[WorkflowResult[Any], list[Event]]:
    """Run a plan and answer whatever it asks."""
    run = await plan.body(itertools.count()).create_run(clock=FakeClock())
    result = await run.start(value)
    for _ in range(200):
        if result.status != "suspended":
            return result, await recorded(run)
        result = await run.resume(ANSWER, step=next(iter(result.suspended)))
    raise AssertionError("the run asks and asks")


def expected(plan: Nested, value: int) -> tuple[str, int | None]:
    try:
        return "success", plan.expect(value)
    except Boom:
        return "failed", None


def numbered_without_gaps(events: list[Event]) -> None:
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def one_start_and_one_finish_a_stretch(events: list[Event]) -> None:
    ends = [event.type for event in events if event.type in ("start", "finish")]
    assert ends == ["start", "finish"] * (len(ends) // 2)
    assert (events[0].type, events[-1].type) == ("start", "finish")
    statuses = [event.payload.status for event in events if event.type == "finish"]
    assert set(statuses[:-1]) <= {"suspended"}
    assert statuses[-1] != "suspended"


def every_step_has_its_events_in_order(events: list[Event]) -> None:
    follows: dict[str | None, set[str]] = {
        None: {"step-start", "step-waiting"},
        "step-start": {"step-retry", "step-suspended", "step-result"},
        "step-waiting": {"step-result"},
        "step-retry": {"step-start", "step-result"},
        "step-suspended": {"step-start", "step-result"},
        "step-result": {"step-finish"},
        "step-finish": set(),
    }
    last: dict[str, str] = {}
    for event in events:
        if event.path:
            assert event.type in follows[last.get(event.path)], (event.path, last.get(event.path), event.type)
            last[event.path] = event.type
    assert set(last.values()) <= {"step-finish"}


def the_fold_of_the_events_is_the_result(events: list[Event], result: WorkflowResult[Any]) -> None:
    through_json = [parse_event(event.model_dump_json()) for event in events]
    for state in (RunState.fold(events), RunState.fold(through_json)):
        assert (state.status, state.result, state.run_id) == (result.status, result.result, result.run_id)
        assert {path: each.status for path, each in state.steps.items()} == {
            path: each.status for path, each in result.steps.items()
        }
        assert as_json(state) == as_json(result)


def as_json(state: RunState | WorkflowResult[Any]) -> dict[str, Any]:
    plain: Callable[[Any], Any] = lambda value: value.model_dump() if isinstance(value, Ok | Err) else value  # noqa: E731
    return json.loads(json.dumps({path: each.output for path, each in state.steps.items()}, default=plain))


@settings(max_examples=120)
@given(plans, st.integers(0, 50))
def test_a_run_of_any_plan_gives_what_plain_python_gives_and_its_events_tell_all(plan: Nested, value: int) -> None:
    result, events = asyncio.run(run_to_its_end(plan, value))

    assert (result.status, result.result) == expected(plan, value)
    numbered_without_gaps(events)
    one_start_and_one_finish_a_stretch(events)
    every_step_has_its_events_in_order(events)
    the_fold_of_the_events_is_the_result(events, result)
