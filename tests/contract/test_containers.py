"""What parallel, branch, foreach and loops do: who runs, how many at a time, and what comes out."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from spanflow import (
    Err,
    LoopLimit,
    NoBranchMatched,
    Ok,
    SpanflowError,
    StepContext,
    Workflow,
    step,
)
from tests.contract.support import (
    Boom,
    describe,
    double,
    increment,
    lines,
    recorded,
    result_of,
    turns,
    untyped,
)

# --- parallel


async def test_parallel_gives_the_same_input_to_all_and_a_tuple_in_order() -> None:
    both_run = asyncio.Barrier(2)

    @step
    async def left(value: int) -> str:
        await both_run.wait()
        await turns()
        return f"left {value}"

    @step
    async def right(value: int) -> int:
        await both_run.wait()
        return value + 1

    flow = Workflow("flow", input=int).parallel(left, right)
    assert (await result_of(flow, 4)).unwrap() == ("left 4", 5)


async def test_the_first_failure_in_parallel_cancels_the_siblings() -> None:
    runs, cleaned, after = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @step
    async def endless(value: int) -> int:
        runs.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
        return value

    @step
    async def fails(value: int) -> int:
        await runs.wait()
        raise Boom("first")

    @step
    async def later(value: tuple[int, int]) -> int:
        after.set()
        return 1

    run = await Workflow("flow", input=int).parallel(endless, fails).then(later).create_run()
    result = await run.start(1)

    assert result.status == "failed"
    assert cleaned.is_set()
    assert not after.is_set()
    assert result.error is not None
    assert result.error.path == "fails"
    assert isinstance(result.error.exception, Boom)
    assert result.steps["endless"].status == "canceled"
    assert lines(await recorded(run), only="endless") == [
        "step-start endless",
        "step-result endless",
        "step-finish endless",
    ]


async def test_parallel_collect_runs_all_and_fails_with_a_group_of_every_failure() -> None:
    failed = asyncio.Event()
    finished: list[int] = []

    @step
    async def fails(value: int) -> int:
        failed.set()
        raise Boom("one")

    @step
    async def goes_on(value: int) -> int:
        await failed.wait()
        await turns()
        finished.append(value)
        return value

    @step
    async def fails_too(value: int) -> int:
        raise ValueError("two")

    flow = Workflow("flow", input=int).parallel(fails, goes_on, fails_too, on_error="collect")
    result = await result_of(flow, 1)

    assert finished == [1]
    assert result.status == "failed"
    assert result.error is not None
    group: Any = result.error.exception
    assert type(group) is ExceptionGroup
    assert [type(each) for each in group.exceptions] == [Boom, ValueError]
    assert result.steps["goes_on"].status == "success"


async def test_parallel_collect_without_failure_gives_the_tuple() -> None:
    flow = Workflow("flow", input=int).parallel(double, describe, on_error="collect")
    assert (await result_of(flow, 1)).unwrap() == (2, "number 1")


async def test_parallel_arms_do_not_share_what_they_change_in_their_lists() -> None:
    @step
    async def grow(items: list[int]) -> list[int]:
        items.append(99)
        return items

    @step
    async def look(items: list[int]) -> list[int]:
        await turns()
        return items

    result = await result_of(Workflow("flow", input=list[int]).parallel(grow, look), [1])
    assert result.unwrap() == ([1, 99], [1])


# --- branch


def sizes() -> Workflow[int, str]:
    @step
    async def big(value: int) -> str:
        return "big"

    @step
    async def positive(value: int) -> str:
        return "positive"

    @step
    async def other(value: int) -> str:
        return "other"

    return Workflow("sizes", input=int).branch(
        (lambda value: value > 100, big), (lambda value: value > 0, positive), default=other
    )


@pytest.mark.parametrize(("value", "arm"), [(500, "big"), (5, "positive"), (-5, "other")])
async def test_the_first_condition_that_holds_wins_and_no_other_arm_runs(value: int, arm: str) -> None:
    result = await result_of(sizes(), value)
    assert result.unwrap() == arm
    assert list(result.steps) == [arm]


async def test_conditions_are_asked_in_order_and_not_beyond_the_first_that_holds() -> None:
    asked: list[str] = []

    def ask(name: str, verdict: bool) -> Callable[[int], bool]:
        def condition(value: int) -> bool:
            asked.append(name)
            return verdict

        return condition

    flow = Workflow("flow", input=int).branch(
        (ask("a", False), double), (ask("b", True), describe), (ask("c", True), increment)
    )
    assert (await result_of(flow, 1)).unwrap() == "number 1"
    assert asked == ["a", "b"]


async def test_conditions_may_be_async_take_ctx_and_read_earlier_results() -> None:
    async def is_small(value: int, ctx: StepContext) -> bool:
        return ctx.result_of(double) < 10 and ctx.init_data == 2

    flow = Workflow("flow", input=int).then(double).branch((is_small, describe), default=increment)
    assert (await result_of(flow, 2)).unwrap() == "number 4"
    assert (await result_of(flow, 20)).unwrap() == 41


async def test_no_match_and_no_default_fails_the_run_with_no_branch_matched() -> None:
    flow = Workflow("flow", input=int).branch((lambda value: value > 10, double), (lambda value: value > 20, describe))
    result = await result_of(flow, 1)

    assert result.status == "failed"
    assert result.error is not None
    assert isinstance(result.error.exception, NoBranchMatched)
    assert [name for name in ("double", "describe", "default") if name not in result.error.message] == []


@pytest.mark.parametrize("mode", ["first", "all"])
async def test_a_condition_that_raises_fails_the_run(mode: Any) -> None:
    started: list[int] = []

    @step
    async def arm(value: int) -> int:
        started.append(value)
        return value

    def condition(value: int) -> bool:
        raise Boom("cannot decide")

    flow: Any = untyped(Workflow("flow", input=int)).branch((condition, arm), default=double, mode=mode)
    result = await result_of(flow, 1)

    assert result.status == "failed"
    assert result.error is not None
    assert isinstance(result.error.exception, Boom)
    assert started == []
    assert "double" not in result.steps


async def test_branch_all_runs_every_match_at_once_and_maps_ids_to_outputs() -> None:
    both_run = asyncio.Barrier(2)

    @step
    async def even(value: int) -> str:
        await both_run.wait()
        return "even"

    @step
    async def odd(value: int) -> str:
        raise AssertionError("does not match")

    @step
    async def large(value: int) -> int:
        await both_run.wait()
        return value

    flow = Workflow("flow", input=int).branch(
        (lambda value: value % 2 == 0, even),
        (lambda value: value % 2 == 1, odd),
        (lambda value: value > 3, large),
        mode="all",
    )
    assert (await result_of(flow, 4)).unwrap() == {"even": "even", "large": 4}


async def test_branch_all_without_a_match_takes_the_default_or_fails() -> None:
    base = Workflow("flow", input=int)
    with_default = base.branch((lambda value: False, double), default=increment, mode="all")
    assert (await result_of(with_default, 1)).unwrap() == {"increment": 2}

    without = await result_of(base.branch((lambda value: False, double), mode="all"), 1)
    assert without.error is not None
    assert isinstance(without.error.exception, NoBranchMatched)


# --- foreach


async def test_foreach_gives_results_in_the_order_of_the_input() -> None:
    second_done = asyncio.Event()

    @step
    async def work(value: int) -> str:
        if value == 1:
            await second_done.wait()
        else:
            second_done.set()
        return f"#{value}"

    flow = Workflow("flow", input=list[int]).foreach(work, concurrency=2)
    result = await result_of(flow, [1, 2])
    assert result.unwrap() == ["#1", "#2"]
    items = {path: each.output for path, each in result.steps.items() if "[" in path}
    assert items == {"work[0]": "#1", "work[1]": "#2"}


async def test_foreach_over_nothing_gives_an_empty_list() -> None:
    flow = Workflow("flow", input=list[int])
    assert (await result_of(flow.foreach(double), [])).unwrap() == []
    assert (await result_of(flow.foreach(double, concurrency=3, on_error="collect"), [])).unwrap() == []


class Window:
    """A step's items, each of which ends when the test says so."""

    def __init__(self) -> None:
        self.running: list[int] = []
        self.started: list[int] = []
        self.most = 0
        self._ends: dict[int, asyncio.Future[None]] = {}
        self._changed = asyncio.Condition()

    async def work(self, value: int) -> int:
        self.started.append(value)
        self.running.append(value)
        self.most = max(self.most, len(self.running))
        self._ends[value] = asyncio.get_running_loop().create_future()
        async with self._changed:
            self._changed.notify_all()
        try:
            await self._ends[value]
        finally:
            self.running.remove(value)
        return value * 10

    async def until_started(self, *values: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: set(values) <= set(self.started))

    def end(self, value: int) -> None:
        self._ends[value].set_result(None)

    def fail(self, value: int) -> None:
        self._ends[value].set_exception(Boom(f"item {value}"))


async def test_the_window_of_foreach_slides_and_is_never_exceeded() -> None:
    window = Window()
    run = await Workflow("flow", input=list[int]).foreach(step(id="work")(window.work), concurrency=2).create_run()
    stream = await run.stream([0, 1, 2, 3, 4])

    await window.until_started(0, 1)
    await turns()
    assert window.running == [0, 1]

    window.end(1)  # the slow first item holds nobody up
    await window.until_started(2)
    window.end(2)
    await window.until_started(3)
    await turns()
    assert window.running == [0, 3]
    assert 4 not in window.started

    window.end(0)
    await window.until_started(4)
    window.end(3)
    window.end(4)
    assert (await stream.get_workflow_state()).unwrap() == [0, 10, 20, 30, 40]
    assert window.most == 2


async def test_foreach_runs_one_at_a_time_where_nothing_is_said() -> None:
    window = Window()
    run = await Workflow("flow", input=list[int]).foreach(step(id="work")(window.work)).create_run()
    stream = await run.stream([0, 1])
    await window.until_started(0)
    await turns()
    assert window.running == [0]
    window.end(0)
    await window.until_started(1)
    window.end(1)
    assert (await stream.get_workflow_state()).unwrap() == [0, 10]


async def test_queued_items_never_start_after_a_failure_and_running_ones_are_canceled() -> None:
    window = Window()
    run = await Workflow("flow", input=list[int]).foreach(step(id="work")(window.work), concurrency=2).create_run()
    stream = await run.stream([0, 1, 2, 3])
    await window.until_started(0, 1)

    window.fail(1)
    result = await stream.get_workflow_state()
    await turns()

    assert result.status == "failed"
    assert result.error is not None
    assert result.error.path == "work[1]"
    assert window.started == [0, 1]
    assert window.running == []
    assert result.steps["work[0]"].status == "canceled"
    assert not {"work[2]", "work[3]"} & set(result.steps)


async def test_no_queued_item_starts_when_another_ends_in_the_moment_of_the_failure() -> None:
    go = asyncio.Event()
    started: list[int] = []

    @step
    async def work(value: int) -> int:
        started.append(value)
        await go.wait()
        if value == 0:
            raise Boom("item 0")
        return value

    run = await Workflow("flow", input=list[int]).foreach(work, concurrency=3).create_run()
    stream = await run.stream(list(range(9)))
    await turns()
    go.set()  # 0 fails and 1 and 2 end in one turn of the event loop
    result = await stream.get_workflow_state()

    assert result.status == "failed"
    assert started == [0, 1, 2]
    assert "step-start work[3]" not in lines(await recorded(run))


async def test_foreach_collect_runs_all_and_tells_ok_from_err_in_order() -> None:
    @step
    async def work(value: int) -> str:
        if value % 2:
            raise Boom(f"odd {value}")
        return f"even {value}"

    flow = Workflow("flow", input=list[int]).foreach(work, concurrency=2, on_error="collect")
    result = await result_of(flow, [0, 1, 2, 3])

    assert result.status == "success"
    outcomes: list[Any] = result.unwrap()
    assert [type(each).__name__.partition("[")[0] for each in outcomes] == ["Ok", "Err", "Ok", "Err"]
    assert [each.value for each in outcomes if each.kind == "ok"] == ["even 0", "even 2"]
    errors = [each.error for each in outcomes if isinstance(each, Err)]
    assert [(each.path, each.message) for each in errors] == [("work[1]", "odd 1"), ("work[3]", "odd 3")]
    assert all(isinstance(each.exception, Boom) for each in errors)


async def test_the_step_after_foreach_collect_gets_ok_and_err_themselves() -> None:
    @step
    async def work(value: int) -> int:
        if value == 1:
            raise Boom("one")
        return value

    @step
    async def sum_up(outcomes: list[Ok[int] | Err]) -> str:
        match outcomes:
            case [Ok(value=first), Err(error=error), Ok(value=last)]:
                return f"{first} {error.message} {last}"
            case _:
                return "something else"

    flow = Workflow("flow", input=list[int]).foreach(work, on_error="collect").then(sum_up)
    assert (await result_of(flow, [0, 1, 2])).unwrap() == "0 one 2"


async def test_foreach_tells_its_items_their_index_by_path() -> None:
    @step
    async def work(value: str, ctx: StepContext) -> str:
        return f"{ctx.path}={value}"

    flow = Workflow("flow", input=list[str]).foreach(work)
    assert (await result_of(flow, ["a", "b"])).unwrap() == ["work[0]=a", "work[1]=b"]


async def test_foreach_over_what_turns_out_to_be_no_list_fails_the_run() -> None:
    for value in (7, "text", {"a": 1}, None):
        result = await result_of(Workflow("flow", input=Any).foreach(untyped(double)), value)
        assert result.status == "failed"
        assert result.error is not None
        assert isinstance(result.error.exception, SpanflowError)
        assert "list" in result.error.message
        assert type(value).__name__ in result.error.message


# --- loops


async def test_do_while_runs_then_tests_and_feeds_its_output_back() -> None:
    flow = Workflow("flow", input=int).do_while(double, lambda value: value < 20)
    result = await result_of(flow, 3)
    assert result.unwrap() == 24
    assert list(result.steps) == ["double#1", "double#2", "double#3"]
    assert (await result_of(flow, 500)).unwrap() == 1000


async def test_do_until_runs_at_least_once() -> None:
    flow = Workflow("flow", input=int).do_until(double, lambda value: value >= 20)
    assert (await result_of(flow, 3)).unwrap() == 24
    assert (await result_of(flow, 500)).unwrap() == 1000


@pytest.mark.parametrize("kind", ["do_while", "do_until"])
async def test_a_loop_over_its_cap_fails_the_run(kind: str) -> None:
    calls: list[int] = []

    @step
    async def body(value: int) -> int:
        calls.append(value)
        return value + 1

    flow = Workflow("flow", input=int)
    capped = (
        flow.do_while(body, lambda value: True, max_iterations=3)
        if kind == "do_while"
        else flow.do_until(body, lambda value: False, max_iterations=3)
    )
    result = await result_of(capped, 0)

    assert result.status == "failed"
    assert result.error is not None
    assert isinstance(result.error.exception, LoopLimit)
    assert result.error.exception.max_iterations == 3
    assert "max_iterations" in result.error.message
    assert calls == [0, 1, 2]


async def test_a_loop_that_ends_on_its_cap_is_within_it() -> None:
    flow = Workflow("flow", input=int).do_while(increment, lambda value: value < 3, max_iterations=3)
    assert (await result_of(flow, 0)).unwrap() == 3


async def test_a_loop_condition_that_raises_fails_the_run() -> None:
    def condition(value: int) -> bool:
        raise Boom("cannot decide")

    result = await result_of(Workflow("flow", input=int).do_until(double, condition), 1)
    assert result.error is not None
    assert isinstance(result.error.exception, Boom)
