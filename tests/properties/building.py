"""A plan becomes a workflow of real steps and tools."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from opentelemetry import trace
from pydantic import BaseModel

from spanflow import Err, Ok, Retry, StepContext, ToolResult, Workflow, step, tool
from spanflow.testing import FakeClock
from tests.properties.plans import (
    LOST,
    REASON,
    STEP_ADDS,
    SURVIVED_ADDS,
    TOOL_ADDS,
    Action,
    Ask,
    Await,
    Body,
    Branch,
    Call,
    Condition,
    Emit,
    Fail,
    Foreach,
    Keep,
    Leave,
    Loop,
    Mark,
    Nested,
    Parallel,
    Part,
    Pause,
    Reshape,
    Take,
    Task,
    Then,
    ToolKind,
    ToolTask,
    Tries,
    strikes,
)

ROOT = "root"
TRACER = "tests.properties"


class Boom(Exception):
    """What steps, tools, conditions and functions raise. No two have the same text."""


class Question(BaseModel):
    value: int


class World:
    """What the steps of one run share outside of it."""

    def __init__(self) -> None:
        self.clock = FakeClock(auto=False, patience=30)  # time moves by the test's hand, never by how busy a machine is
        self.executions: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._async = tool(id="look")(self._look)
        self._plain = tool(id="count")(self._count)
        self._streaming = tool(id="spell")(self._spell)

    def boom(self) -> Boom:
        return Boom(f"boom {next(self._numbers)}")

    def begin(self, ctx: StepContext) -> int:
        """Count how often a step was executed, this time included."""
        self.executions[ctx.path] += 1
        return self.executions[ctx.path]

    def passes(self, place: str) -> None:
        """Do nothing. Here a world may interfere."""

    async def take(self, seconds: float) -> None:
        if seconds:
            await self.clock.sleep_until(self.clock.time_ns() + int(seconds * 1e9))
        else:
            await asyncio.sleep(0)

    async def call(self, action: Call, value: int) -> int:
        """Call a tool from an async step."""
        fails = strikes(action.divisor, value)
        if action.kind == "plain":
            return self.call_now(action, value)
        if action.kind == "async":
            return await self._async(value=value, seconds=action.seconds, fails=fails)
        stream = self._streaming(value=value, seconds=action.seconds, fails=fails)
        if not action.iterates:
            return await stream
        last = value
        async for each in stream:
            last = each
            if action.leaves:
                break
        return last

    def call_now(self, action: Call, value: int) -> int:
        return self._plain(value=value, fails=strikes(action.divisor, value))

    def tool_of(self, kind: ToolKind, divisor: int) -> Any:
        """Return a tool of one argument, to be a step."""

        async def look_once(value: int) -> int:
            return await self._look(value, 0, strikes(divisor, value))

        def count_once(value: int) -> int:
            return self._count(value, strikes(divisor, value))

        async def spell_once(value: int) -> AsyncGenerator[int | ToolResult[int], None]:
            async for each in self._spell(value, 0, strikes(divisor, value)):
                yield each

        functions: dict[ToolKind, Callable[..., Any]] = {
            "async": look_once,
            "plain": count_once,
            "streaming": spell_once,
        }
        return tool(functions[kind])

    async def _look(self, value: int, seconds: int = 0, fails: bool = False) -> int:
        self.passes("tool")
        await self.take(seconds)
        if fails:
            raise self.boom()
        return value + TOOL_ADDS

    def _count(self, value: int, fails: bool = False) -> int:
        self.passes("tool")
        if fails:
            raise self.boom()
        return value + TOOL_ADDS

    async def _spell(
        self, value: int, seconds: int = 0, fails: bool = False
    ) -> AsyncGenerator[int | ToolResult[int], None]:
        yield value + TOOL_ADDS
        self.passes("tool")
        await self.take(seconds)
        if fails:
            raise self.boom()
        yield value + TOOL_ADDS
        yield ToolResult(value + TOOL_ADDS)


def build(plan: Nested, world: World) -> Workflow[int, Any]:
    """Return the workflow that a plan describes."""
    return _flow(ROOT, plan, world)


def _flow(id: str, plan: Nested, world: World) -> Any:
    flow: Any = Workflow(id, input=int, retry=_retry(plan.tries))
    for index, part in enumerate(plan.parts):
        flow = _with_part(flow, part, str(index), world)
    return flow


def _with_part(flow: Any, part: Part, n: str, world: World) -> Any:
    match part:
        case Then(body):
            return flow.then(_body(body, f"s{n}", world))
        case Parallel(arms, on_error):
            bodies = [_body(arm, f"s{n}{letter}", world) for arm, letter in zip(arms, "abc", strict=False)]
            return flow.parallel(*bodies, on_error=on_error, id=f"parallel{n}").map(_sum, id=f"sum{n}")
        case Branch(arms, default, mode):
            pairs = [
                (_condition(condition, world), _body(arm, f"s{n}{letter}", world))
                for (condition, arm), letter in zip(arms, "abc", strict=False)
            ]
            otherwise = None if default is None else _body(default, f"s{n}d", world)
            branched = flow.branch(*pairs, default=otherwise, mode=mode, id=f"branch{n}")
            return branched.map(_sum_of_mapping, id=f"sum{n}") if mode == "all" else branched
        case Foreach(body, items, concurrency, on_error):
            listed = flow.map(_lister(items), id=f"list{n}")
            each = listed.foreach(_body(body, f"s{n}", world), concurrency=concurrency, on_error=on_error)
            return each.map(_sum if on_error == "fail" else _sum_of_outcomes, id=f"sum{n}")
        case Loop(body, condition, until, cap):
            repeat = flow.do_until if until else flow.do_while
            return repeat(_body(body, f"s{n}", world), _condition(condition, world), max_iterations=cap)
        case Reshape(divisor):
            return flow.map(_function(divisor, world), id=f"map{n}")
        case Pause(seconds, asks):
            return flow.sleep(_length(seconds) if asks else seconds, id=f"sleep{n}")
        case Await():
            return flow.wait_for_event(part.event, int, timeout=part.timeout, id=f"event{n}")


def _body(body: Body, id: str, world: World) -> Any:
    match body:
        case Nested():
            return _flow(id, body, world)
        case ToolTask(kind, divisor):
            return world.tool_of(kind, divisor).with_id(id)
        case Task():
            make: Any = step(id=id, retry=_retry(body.tries), timeout=body.timeout)
            return make(_plain_step(body, world) if body.in_thread else _async_step(body, world))


def _retry(tries: Tries | None) -> Retry | None:
    if tries is None:
        return None
    return Retry(max_attempts=tries.attempts, delay=tries.delay, backoff=tries.backoff, jitter=0)


def _async_step(task: Task, world: World) -> Callable[..., Any]:
    async def work(value: int, ctx: StepContext) -> int:
        number, emitted = world.begin(ctx), 0
        for action in task.done:
            match action:
                case Take(seconds):
                    await world.take(seconds)
                case Emit():
                    emitted += 1
                    await ctx.emit({"order": emitted})
                case Keep():
                    await ctx.set_state({ctx.path: value})
                case Call(survives=survives):
                    try:
                        value = await world.call(action, value)
                    except Boom:
                        if not survives:
                            raise
                        value += SURVIVED_ADDS
                case Ask():
                    value += await ctx.suspend(Question(value=value), resume=int)
                case _ if (wrong := _do(action, value, number, ctx, world)) is not None:
                    return wrong
                case _:
                    pass
        world.passes("end of a step")
        return value + STEP_ADDS

    return work


def _plain_step(task: Task, world: World) -> Callable[..., Any]:
    def work(value: int, ctx: StepContext) -> int:
        number, emitted = world.begin(ctx), 0
        for action in task.done:
            match action:
                case Emit():
                    emitted += 1
                    ctx.emit({"order": emitted})
                case Keep():
                    ctx.set_state({ctx.path: value})
                case Call(survives=survives):
                    try:
                        value = world.call_now(action, value)
                    except Boom:
                        if not survives:
                            raise
                        value += SURVIVED_ADDS
                case _ if (wrong := _do(action, value, number, ctx, world)) is not None:
                    return wrong
                case _:
                    pass
        world.passes("end of a step")
        return value + STEP_ADDS

    return work


def _do(action: Action, value: int, number: int, ctx: StepContext, world: World) -> Any:
    """Do what is the same in any step. Return what the step is to return at once, if anything."""
    match action:
        case Mark():
            with trace.get_tracer(TRACER).start_as_current_span("mark"):
                pass
        case Fail(divisor, executions):
            if strikes(divisor, value) and number <= executions:
                raise world.boom()
        case Leave(how, divisor):
            if strikes(divisor, value):
                if how == "bail":
                    ctx.bail(value)
                if how == "abort":
                    ctx.abort(REASON)
                return "no int"
        case _:
            raise AssertionError(f"{action} is not for every step")
    return None


def _condition(condition: Condition, world: World) -> Callable[..., Any]:
    def decide_now(value: int) -> bool:
        world.passes("condition")
        if strikes(condition.breaks, value):
            raise world.boom()
        return condition.verdict(value)

    async def decide(value: int, ctx: StepContext) -> bool:
        if condition.seconds:
            await world.take(condition.seconds)
        if condition.calls:
            await world.call(Call("async"), value)
        return decide_now(value)

    return decide if condition.calls or condition.seconds else decide_now


def _function(divisor: int, world: World) -> Callable[[int], int]:
    def reshape(value: int) -> int:
        world.passes("function")
        if strikes(divisor, value):
            raise world.boom()
        return value + STEP_ADDS

    return reshape


def _length(seconds: int) -> Callable[[int], float]:
    def length(value: int) -> float:
        return seconds

    return length


def _lister(items: int) -> Callable[[int], list[int]]:
    def listed(value: int) -> list[int]:
        return [value + each for each in range(items)]

    return listed


def _sum(values: Any) -> int:
    return sum(values)


def _sum_of_mapping(values: Mapping[str, int]) -> int:
    return sum(values.values())


def _sum_of_outcomes(outcomes: list[Ok[int] | Err]) -> int:
    return sum(each.value if isinstance(each, Ok) else LOST for each in outcomes)
