"""A run waits for an answer, costs nothing meanwhile, and goes on where it was."""

import asyncio
import gc
import threading
import time
from collections.abc import Awaitable
from typing import Any

import pytest
from pydantic import BaseModel

from spanflow import (
    InvalidInput,
    NotSuspended,
    Retry,
    Run,
    RunConflict,
    RunNotFound,
    Runtime,
    StepContext,
    Workflow,
    step,
)
from tests.contract.support import SlowStore, lines, read_all, recorded, result_of, turns, until, untyped


class Ask(BaseModel):
    question: str


class Decision(BaseModel):
    approved: bool
    by: str = "nobody"


@step
async def approve(value: int, ctx: StepContext) -> str:
    decision = await ctx.suspend(Ask(question=f"{value}?"), resume=Decision)
    return f"{value} {'approved' if decision.approved else 'refused'} by {decision.by}"


@step
async def double(value: int) -> int:
    return 2 * value


@step
async def shout(value: str) -> str:
    return value.upper()


FLOW = Workflow("flow", input=int).then(double).then(approve).then(shout)


async def suspended(workflow: Workflow[Any, Any] = FLOW, value: Any = 1, **options: Any) -> Run[Any, Any]:
    run = await workflow.create_run(**options)
    result = await run.start(value)
    assert result.status == "suspended"
    return run


# --- suspend and resume


async def test_a_suspended_run_says_what_it_waits_for_and_goes_on_with_the_answer() -> None:
    run = await FLOW.create_run()
    result = await run.start(1)

    assert result.status == "suspended"
    assert result.suspended == {"approve": Ask(question="2?")}
    assert result.result is None
    assert result.error is None
    assert result.steps["approve"].status == "suspended"
    assert (await run.wait()).status == "suspended"

    result = await run.resume(Decision(approved=True, by="ada"))
    assert result.unwrap() == "2 APPROVED BY ADA"
    assert result.suspended == {}
    assert (await run.wait()).unwrap() == "2 APPROVED BY ADA"


async def test_the_step_runs_again_from_its_top_and_those_before_it_do_not() -> None:
    calls: list[str] = []

    @step
    async def before(value: int) -> int:
        calls.append("before")
        return value

    @step
    async def ask(value: int, ctx: StepContext) -> int:
        calls.append("top")
        answer = await ctx.suspend(resume=int)
        calls.append("answered")
        return answer

    run = await suspended(Workflow("flow", input=int).then(before).then(ask))
    assert (await run.resume(5)).unwrap() == 5
    assert calls == ["before", "top", "top", "answered"]


async def test_a_plain_def_cannot_await_but_its_run_still_suspends_elsewhere() -> None:
    threads: list[int] = []

    @step
    def work(value: str) -> str:
        threads.append(threading.get_ident())
        return value

    run = await suspended(FLOW.then(work))
    assert threads == []
    await run.resume({"approved": True})
    assert len(threads) == 1


async def test_several_questions_in_one_step_are_answered_one_by_one_and_remembered() -> None:
    asked: list[str] = []

    @step
    async def interview(value: int, ctx: StepContext) -> str:
        asked.append("begin")
        name = await ctx.suspend("name?", resume=str)
        asked.append(f"{name} is known")
        age = await ctx.suspend("age?", resume=int)
        return f"{name} is {age}"

    run = await suspended(Workflow("flow", input=int).then(interview))
    second = await run.resume("Ada")
    assert second.status == "suspended"
    assert second.suspended == {"interview": "age?"}
    assert (await run.resume(36)).unwrap() == "Ada is 36"
    assert asked == ["begin", "begin", "Ada is known", "begin", "Ada is known"]


async def test_an_answer_is_kept_when_the_step_then_fails_and_is_tried_again() -> None:
    answers: list[int] = []

    @step(retry=Retry(max_attempts=2, delay=0))
    async def ask(value: int, ctx: StepContext) -> int:
        answer = await ctx.suspend(resume=int)
        answers.append(answer)
        if len(answers) == 1:
            raise ValueError("once")
        return answer

    run = await suspended(Workflow("flow", input=int).then(ask))
    assert (await run.resume(7)).unwrap() == 7
    assert answers == [7, 7]


async def test_to_be_suspended_uses_up_no_retry() -> None:
    @step(retry=Retry(max_attempts=2, delay=0))
    async def ask(value: int, ctx: StepContext) -> int:
        first = await ctx.suspend(resume=int)
        second = await ctx.suspend(resume=int)
        if len(failed) < 1:
            failed.append(1)
            raise ValueError("once")
        return first + second

    failed: list[int] = []
    run = await suspended(Workflow("flow", input=int).then(ask))
    await run.resume(1)
    assert (await run.resume(2)).unwrap() == 3


async def test_a_step_may_catch_exceptions_around_its_question() -> None:
    @step
    async def careful(value: int, ctx: StepContext) -> int:
        try:
            return await ctx.suspend("well?", resume=int)
        except Exception:
            return -1

    run = await suspended(Workflow("flow", input=int).then(careful))
    assert (await run.resume(4)).unwrap() == 4


async def test_state_and_context_are_the_same_after_the_resume() -> None:
    class Seen(BaseModel):
        tops: int = 0

    @step
    async def ask(value: int, ctx: StepContext) -> list[Any]:
        await ctx.set_state(tops=ctx.state.tops + 1)
        answer = await ctx.suspend(resume=str)
        return [answer, ctx.runtime_context["tier"], ctx.deps, ctx.init_data, ctx.result_of(double)]

    live = object()
    flow = Workflow("flow", input=int, state=Seen).then(double).then(ask)
    run = await flow.create_run(deps=live)
    first = await run.start(1, runtime_context={"tier": "gold"})
    assert first.state == Seen(tops=1)
    result = await run.resume("yes")
    assert result.unwrap() == ["yes", "gold", live, 1, 2]
    assert result.state == Seen(tops=2)


async def test_the_idempotency_key_outlives_the_suspension() -> None:
    keys: list[str] = []

    @step
    async def ask(value: int, ctx: StepContext) -> int:
        keys.append(ctx.idempotency_key)
        return await ctx.suspend(resume=int)

    run = await suspended(Workflow("flow", input=int).then(ask))
    await run.resume(1)
    assert len(keys) == 2
    assert len(set(keys)) == 1


async def test_a_run_found_again_in_its_runtime_can_be_resumed() -> None:
    async with Runtime(workflows=[FLOW]) as runtime:
        first = await runtime.create_run(FLOW, run_id="r-1")
        await first.start(1)
        found = await runtime.get_run("r-1")
        assert (await found.resume({"approved": False, "by": "bob"})).unwrap() == "2 REFUSED BY BOB"
        assert (await first.wait()).unwrap() == "2 REFUSED BY BOB"


# --- places


async def test_a_question_inside_a_nested_workflow_has_the_whole_path() -> None:
    nested = Workflow("nested", input=int).then(double).then(approve)
    run = await suspended(Workflow("flow", input=int).then(Workflow("middle", input=int).then(nested)).then(shout))
    state = await run.wait()
    assert state.suspended == {"middle/nested/approve": Ask(question="2?")}

    result = await run.resume({"approved": True, "by": "ada"})
    assert result.unwrap() == "2 APPROVED BY ADA"
    assert lines(await recorded(run)).count("step-start middle/nested/double") == 1
    assert lines(await recorded(run)).count("step-finish middle/nested") == 1


async def test_parallel_questions_are_answered_in_any_order() -> None:
    flow = Workflow("flow", input=int).parallel(approve, approve.with_id("confirm"), double)
    run = await suspended(flow)
    assert set((await run.wait()).suspended) == {"approve", "confirm"}

    middle = await run.resume({"approved": True}, step="confirm")
    assert middle.status == "suspended"
    assert set(middle.suspended) == {"approve"}
    result = await run.resume({"approved": False})
    assert result.unwrap() == ("1 refused by nobody", "1 approved by nobody", 2)
    assert lines(await recorded(run)).count("step-start double") == 1


async def test_the_other_arms_run_to_their_end_before_the_run_suspends() -> None:
    suspends, ended = asyncio.Event(), asyncio.Event()

    @step
    async def ask(value: int, ctx: StepContext) -> int:
        suspends.set()
        return await ctx.suspend(resume=int)

    @step
    async def work(value: int) -> int:
        await suspends.wait()
        await turns()
        ended.set()
        return value

    run = await suspended(Workflow("flow", input=int).parallel(ask, work))
    assert ended.is_set()
    assert (await run.resume(5)).unwrap() == (5, 1)


async def test_items_of_a_foreach_wait_for_answers_of_their_own() -> None:
    run = await suspended(Workflow("flow", input=list[int]).foreach(approve, concurrency=2), [1, 2, 3])
    assert (await run.wait()).suspended == {f"approve[{index}]": Ask(question=f"{index + 1}?") for index in range(3)}

    await run.resume({"approved": True}, step="approve[1]")
    await run.resume({"approved": False}, step="approve[2]")
    result = await run.resume({"approved": True, "by": "ada"})
    assert result.unwrap() == ["1 approved by ada", "2 approved by nobody", "3 refused by nobody"]


async def test_items_that_are_through_are_not_run_again_when_another_is_answered() -> None:
    calls: list[int] = []

    @step
    async def work(value: int, ctx: StepContext) -> int:
        calls.append(value)
        return await ctx.suspend(resume=int) if value == 2 else value

    run = await suspended(Workflow("flow", input=list[int]).foreach(work), [1, 2, 3])
    assert (await run.resume(20)).unwrap() == [1, 20, 3]
    assert calls == [1, 2, 3, 2]


async def test_foreach_collect_waits_for_answers_and_keeps_the_failures() -> None:
    @step
    async def work(value: int, ctx: StepContext) -> int:
        if value == 1:
            raise ValueError("one")
        return await ctx.suspend(resume=int)

    run = await suspended(Workflow("flow", input=list[int]).foreach(work, on_error="collect"), [1, 2])
    outcomes = (await run.resume(20)).unwrap()
    assert [each.kind for each in outcomes] == ["err", "ok"]
    assert outcomes[0].error.message == "one"
    assert outcomes[1].value == 20


async def test_parallel_collect_runs_all_so_it_waits_for_the_answer_before_it_fails() -> None:
    @step
    async def fails(value: int) -> int:
        raise ValueError("one")

    run = await suspended(Workflow("flow", input=int).parallel(fails, approve, on_error="collect"))
    result = await run.resume({"approved": True})
    assert result.status == "failed"
    assert result.error is not None
    group: Any = result.error.exception
    assert type(group) is ExceptionGroup
    assert [str(each) for each in group.exceptions] == ["one"]
    assert result.steps["approve"].status == "success"


async def test_questions_inside_a_failed_item_are_withdrawn() -> None:
    @step
    async def check(value: int) -> int:
        await turns()
        if value == 1:
            raise ValueError("one")
        return value

    item = Workflow("item", input=int).parallel(approve, check)
    flow = Workflow("flow", input=list[int]).foreach(item, concurrency=2, on_error="collect")
    run = await suspended(flow, [1, 2])
    assert list((await run.wait()).suspended) == ["item[1]/approve"]
    outcomes = (await run.resume({"approved": True})).unwrap()
    assert [each.kind for each in outcomes] == ["err", "ok"]
    assert lines(await recorded(run), only="item[0]/approve")[-2:] == [
        "step-result item[0]/approve",
        "step-finish item[0]/approve",
    ]


async def test_a_failure_beside_a_question_fails_the_run() -> None:
    @step
    async def fails(value: int) -> int:
        await turns()
        raise ValueError("one")

    run = await Workflow("flow", input=int).parallel(approve, fails).create_run()
    result = await run.start(1)
    assert result.status == "failed"
    assert result.suspended == {}
    with pytest.raises(NotSuspended):
        await run.resume({"approved": True})


async def test_a_loop_asks_in_every_iteration() -> None:
    @step
    async def guess(value: int, ctx: StepContext) -> int:
        return await ctx.suspend(f"after {value}?", resume=int)

    run = await suspended(Workflow("flow", input=int).do_until(guess, lambda value: value == 42), 0)
    assert (await run.wait()).suspended == {"guess#1": "after 0?"}
    assert (await run.resume(7)).suspended == {"guess#2": "after 7?"}
    assert (await run.resume(42)).unwrap() == 42


async def test_a_branch_keeps_its_decision_over_the_suspension() -> None:
    verdicts = iter([True, False])
    flow = Workflow("flow", input=int).branch((lambda value: next(verdicts), approve), default=double)
    run = await suspended(flow)
    assert (await run.resume({"approved": True})).unwrap() == "1 approved by nobody"


async def test_a_map_may_ask_too() -> None:
    async def ask(value: int, ctx: StepContext) -> int:
        return value + await ctx.suspend(resume=int)

    run = await suspended(Workflow("flow", input=int).map(ask))
    assert (await run.resume(4)).unwrap() == 5


async def test_a_question_in_a_steps_own_task_group_suspends_the_step() -> None:
    @step
    async def grouped(value: int, ctx: StepContext) -> int:
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(ctx.suspend(resume=int))
        return answer.result()

    run = await suspended(Workflow("flow", input=int).then(grouped))
    assert (await run.resume(4)).unwrap() == 4


# --- which step


async def test_a_step_may_be_named_by_the_step_itself_its_id_or_its_path() -> None:
    nested = Workflow("nested", input=int).then(approve)
    for name in (approve, "approve", "nested/approve"):
        run = await suspended(Workflow("flow", input=int).then(nested))
        assert (await run.resume({"approved": True}, step=name)).status == "success"


async def test_several_questions_and_no_step_is_an_error_that_lists_them() -> None:
    run = await suspended(Workflow("flow", input=int).parallel(approve, approve.with_id("confirm")))
    with pytest.raises(NotSuspended) as caught:
        await run.resume({"approved": True})
    assert "'approve'" in str(caught.value)
    assert "'confirm'" in str(caught.value)
    assert "step=" in str(caught.value)
    assert set(caught.value.suspended) == {"approve", "confirm"}


async def test_an_id_that_several_paths_share_is_an_error_that_lists_the_paths() -> None:
    run = await suspended(Workflow("flow", input=list[int]).foreach(approve), [1, 2])
    with pytest.raises(NotSuspended, match=r"approve\[0\].*approve\[1\]"):
        await run.resume({"approved": True}, step="approve")


# --- refusals


async def refused(run: Run[Any, Any], kind: type[Exception], *args: Any, **kwargs: Any) -> str:
    """Try a resume that must be refused and leave no trace. Return what it said."""
    before = lines(await recorded(run))
    with pytest.raises(kind) as caught:
        await run.resume(*args, **kwargs)
    with pytest.raises(kind):
        await run.resume_stream(*args, **kwargs)
    assert lines(await recorded(run)) == before
    return str(caught.value)


async def test_an_answer_that_does_not_fit_is_refused_and_the_step_still_waits() -> None:
    run = await suspended()
    text = await refused(run, InvalidInput, {"by": "ada"})
    assert "approved" in text
    assert "Decision" in text
    await refused(run, InvalidInput, "yes")
    await refused(run, InvalidInput)
    assert (await run.wait()).status == "suspended"
    assert (await run.resume({"approved": True})).status == "success"


async def test_an_answer_is_converted_to_its_model() -> None:
    kinds: list[type] = []

    @step
    async def ask(value: int, ctx: StepContext) -> str:
        decision = await ctx.suspend("well?", resume=Decision)
        kinds.append(type(decision))
        return decision.by

    run = await suspended(Workflow("flow", input=int).then(ask))
    assert (await run.resume({"approved": "yes", "by": "ada"})).unwrap() == "ada"
    assert kinds == [Decision]


async def test_a_question_without_a_model_takes_any_answer() -> None:
    @step
    async def ask(value: int, ctx: StepContext) -> Any:
        return await ctx.suspend("well?")

    run = await suspended(Workflow("flow", input=int).then(ask))
    assert (await run.resume({"any": [1, None]})).unwrap() == {"any": [1, None]}


async def test_resume_of_a_step_that_does_not_wait_names_those_that_do() -> None:
    run = await suspended()
    for name in ("double", "shout", "nowhere", double):
        text = await refused(run, NotSuspended, {"approved": True}, step=name)
        assert "'approve'" in text
        assert (name if isinstance(name, str) else name.id) in text


async def test_resume_of_a_run_that_is_over_is_refused_with_its_status() -> None:
    run = await suspended()
    await run.resume({"approved": True})
    assert "success" in await refused(run, NotSuspended, {"approved": True})
    assert "success" in await refused(run, NotSuspended, {"approved": True}, step="approve")


async def test_resume_of_a_run_that_was_never_started_is_refused() -> None:
    run = await FLOW.create_run()
    for resume in (run.resume, run.resume_stream):
        with pytest.raises(RunConflict, match="start"):
            await resume({"approved": True})
    assert (await run.start(1)).status == "suspended"


async def test_resume_of_a_run_that_waits_for_nothing_is_refused_while_it_executes() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @step
    async def work(value: int) -> int:
        begun.set()
        await go.wait()
        return value

    run = await Workflow("flow", input=int).then(work).create_run()
    await run.stream(1)
    await begun.wait()
    with pytest.raises(NotSuspended, match="running"):
        await run.resume(1)
    go.set()
    assert (await run.wait()).unwrap() == 1


async def test_a_run_that_nobody_knows_cannot_be_resumed() -> None:
    async with Runtime(workflows=[FLOW]) as runtime:
        with pytest.raises(RunNotFound, match="'r-404'"):
            await runtime.get_run("r-404")


async def test_of_two_resumes_at_once_one_is_refused() -> None:
    calls: list[str] = []

    @step
    async def ask(value: int, ctx: StepContext) -> str:
        answer = await ctx.suspend(resume=str)
        calls.append(answer)
        await turns()
        return answer

    run = await suspended(Workflow("flow", input=int).then(ask))
    outcomes = await asyncio.gather(run.resume("first"), run.resume("second"), return_exceptions=True)

    assert [isinstance(each, RunConflict) for each in outcomes] == [False, True]
    assert calls == ["first"]
    assert (await run.wait()).unwrap() == "first"
    assert [event.type for event in await recorded(run)].count("start") == 2


async def test_of_two_resumes_at_once_through_two_handles_one_is_refused() -> None:
    async with Runtime(workflows=[FLOW]) as runtime:
        await (await runtime.create_run(FLOW, run_id="r-1")).start(1)
        one, two = await runtime.get_run("r-1"), await runtime.get_run("r-1")
        outcomes = await asyncio.gather(
            one.resume({"approved": True, "by": "one"}),
            two.resume({"approved": True, "by": "two"}),
            return_exceptions=True,
        )
        assert [isinstance(each, RunConflict) for each in outcomes].count(True) == 1
        assert (await one.wait()).status == "success"


async def test_resumes_of_two_steps_at_once_both_count() -> None:
    run = await suspended(Workflow("flow", input=int).parallel(approve, approve.with_id("confirm")))
    await asyncio.gather(
        run.resume({"approved": True, "by": "ada"}, step="approve"),
        run.resume({"approved": True, "by": "bob"}, step="confirm"),
    )
    assert (await run.wait()).unwrap() == ("1 approved by ada", "1 approved by bob")


async def test_many_answers_at_once_all_count_also_on_a_store_that_takes_its_time() -> None:
    flow = Workflow("flow", input=list[int]).foreach(approve, concurrency=5)
    async with Runtime(store=SlowStore(), workflows=[flow]) as runtime:
        run = await runtime.create_run(flow)
        await run.start([1, 2, 3, 4, 5])
        answers = [run.resume({"approved": True, "by": f"n{index}"}, step=f"approve[{index}]") for index in range(5)]
        await asyncio.gather(*answers)
        assert (await run.wait()).unwrap() == [f"{index + 1} approved by n{index}" for index in range(5)]


async def test_an_answer_that_comes_while_another_arm_still_runs_counts_and_is_validated() -> None:
    go = asyncio.Event()

    @step
    async def work(value: int) -> int:
        await go.wait()
        return value

    run = await Workflow("flow", input=int).parallel(approve, work).create_run()
    stream = await run.stream(1)
    await until(stream, "step-suspended")

    with pytest.raises(InvalidInput, match="approved"):
        async with asyncio.timeout(30):
            await run.resume({"by": "ada"})
    answering = asyncio.create_task(run.resume({"approved": True, "by": "ada"}))
    await turns()
    go.set()
    assert (await answering).unwrap() == ("1 approved by ada", 1)


# --- the stream of a resumed run


async def test_a_resumed_stretch_begins_with_a_start_of_its_own_that_carries_the_answer() -> None:
    run = await FLOW.create_run()
    first = await read_all(await run.stream(1))
    assert first[-1].type == "finish"
    assert first[-1].payload.status == "suspended"
    assert first[-1].payload.suspended == {"approve": Ask(question="2?")}
    assert lines(first)[-2] == "step-suspended approve"

    stream = await run.resume_stream({"approved": True, "by": "ada"})
    second = await read_all(stream)

    start = second[0]
    assert start.type == "start"
    assert start.payload.workflow_id == "flow"
    assert start.payload.resumed is not None
    assert start.payload.resumed.path == "approve"
    assert start.payload.resumed.data == Decision(approved=True, by="ada")
    assert first[0].type == "start"
    assert first[0].payload.resumed is None
    assert lines(second) == [
        "start",
        "step-start approve",
        "step-result approve",
        "step-finish approve",
        "step-start shout",
        "step-result shout",
        "step-finish shout",
        "finish",
    ]
    assert [event.seq for event in [*first, *second]] == list(range(1, len(first) + len(second) + 1))
    assert (await stream.get_workflow_state()).unwrap() == "2 APPROVED BY ADA"
    assert stream.run_id == run.run_id


async def test_the_state_of_a_stream_is_that_of_its_own_stretch() -> None:
    run = await FLOW.create_run()
    first = await run.stream(1)
    assert (await first.get_workflow_state()).status == "suspended"
    second = await run.resume_stream({"approved": True})
    assert (await second.get_workflow_state()).status == "success"


async def test_a_suspended_step_has_no_result_until_it_is_answered() -> None:
    run = await suspended()
    assert lines(await recorded(run), only="approve") == ["step-start approve", "step-suspended approve"]
    await run.resume({"approved": True})
    assert lines(await recorded(run), only="approve") == [
        "step-start approve",
        "step-suspended approve",
        "step-start approve",
        "step-result approve",
        "step-finish approve",
    ]


# --- cost


async def test_a_suspended_run_holds_no_task_and_no_thread() -> None:
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    runs = [await suspended() for _ in range(5)]
    flow = Workflow("flow", input=list[int]).foreach(Workflow("nested", input=int).then(approve), concurrency=3)
    runs.append(await suspended(flow, [1, 2, 3]))
    await turns()

    assert asyncio.all_tasks() == tasks
    for thread in set(threading.enumerate()) - threads:
        thread.join(30)  # one that exports what is announced ends by itself
        assert not thread.is_alive()
    assert len(runs) == 6


async def test_a_suspended_step_leaves_no_frame_of_its_code_behind() -> None:
    class Held:
        """Something a step holds in a local variable."""

    @step
    async def ask(value: int, ctx: StepContext) -> int:
        held = Held()
        return await ctx.suspend(resume=int) if held else 0

    run = await suspended(Workflow("flow", input=int).then(ask))
    await turns()
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Held]
    assert (await run.resume(1)).unwrap() == 1


async def seconds_of(work: Awaitable[Any]) -> float:
    """How long the processor is at it, however busy the machine is."""
    begin = time.process_time()
    await work
    return time.process_time() - begin


async def test_canceling_a_run_with_many_questions_takes_as_long_as_they_are_many() -> None:
    nested = Workflow("nested", input=int).then(double).then(approve)
    flow = Workflow("flow", input=list[int]).foreach(nested, concurrency=10)
    few, many = [await seconds_of((await suspended(flow, list(range(n)))).cancel()) for n in (300, 3000)]
    assert many < 40 * few  # a hundred times as long where each one looks at all


async def test_a_wide_foreach_of_workflows_costs_the_same_after_a_question() -> None:
    async def numbers(value: Any) -> list[int]:
        return list(range(6000))

    nested = Workflow("nested", input=int).then(double)
    flow = Workflow("flow", input=int).map(numbers).foreach(nested, concurrency=10)
    asking = Workflow("flow", input=int).then(approve).map(numbers).foreach(nested, concurrency=10)
    run = await suspended(asking)
    plain, resumed = await seconds_of(result_of(flow, 1)), await seconds_of(run.resume(Decision(approved=True)))
    assert resumed < 6 * plain  # ten times and more where each workflow looks at all that is recorded


async def test_a_question_outside_a_step_is_refused() -> None:
    async def condition(value: int, ctx: StepContext) -> bool:
        return await ctx.suspend("which way?", resume=bool)

    result = await (await Workflow("flow", input=int).branch((condition, double)).create_run()).start(1)
    assert result.status == "failed"
    assert result.error is not None
    assert "step" in result.error.message
    assert untyped(result.error.exception).__class__.__module__.startswith("spanflow")
