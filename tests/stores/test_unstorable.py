"""Values that no store can hold: who hands one in is told, and the run goes on or fails; it never gets stuck."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from spanflow import InvalidInput, Runtime, StepContext, Workflow, step, tool
from spanflow.ports import Store


class Client:
    """A live object."""


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


UNSTORABLE: list[Any] = [Client(), "half a pair: \ud83d", nested(190), nested(300)]
NAMES = ["live object", "lone surrogate", "deep", "very deep"]
unstorable = pytest.mark.parametrize("value", UNSTORABLE, ids=NAMES)


@tool
async def pass_on(value: Any) -> Any:
    """Return what it is given."""
    return value


@tool
async def make(number: int) -> Any:
    """Return one of the values."""
    return UNSTORABLE[number]


async def returns(value: Any, ctx: StepContext) -> Any:
    return value


async def suspends(value: Any, ctx: StepContext) -> Any:
    await ctx.suspend(value)


async def bails(value: Any, ctx: StepContext) -> Any:
    ctx.bail(value)


async def changes_the_state(value: Any, ctx: StepContext) -> Any:
    ctx.set_state(value=value)


async def calls_a_tool_with(value: Any, ctx: StepContext) -> Any:
    await pass_on(value=value)


async def calls_a_tool_that_returns(value: Any, ctx: StepContext) -> Any:
    await make(number=UNSTORABLE.index(value))


DOINGS = [returns, suspends, bails, changes_the_state, calls_a_tool_with, calls_a_tool_that_returns]


@unstorable
@pytest.mark.parametrize("doing", DOINGS)
async def test_a_step_that_makes_one_fails_and_the_run_with_it(
    durable: Store, doing: Callable[[Any, StepContext], Any], value: Any
) -> None:
    @step
    async def work(number: int, ctx: StepContext) -> Any:
        return await doing(value, ctx)

    workflow = Workflow("w", input=int).then(work)
    async with Runtime(store=durable, workflows=[workflow]) as runtime:
        run = await runtime.create_run(workflow)
        result = await run.start(1)
        again = await (await runtime.get_run(run.run_id)).wait()

    assert result.status == again.status == "failed"
    assert result.error is not None
    assert result.error.path == "work"
    assert result.error.type in ("spanflow.errors.InvalidOutput", "spanflow.errors.InvalidInput")
    assert "cannot be stored" in result.error.message


async def test_a_step_may_go_on_without_what_was_refused(durable: Store) -> None:
    @step
    async def work(number: int, ctx: StepContext) -> Any:
        with pytest.raises(InvalidInput, match="set_state"):
            ctx.set_state(client=Client())
        with pytest.raises(InvalidInput, match="pass_on"):
            await pass_on(value=Client())
        return dict(ctx.state)

    workflow = Workflow("w", input=int).then(work)
    async with Runtime(store=durable, workflows=[workflow]) as runtime:
        assert (await (await runtime.create_run(workflow)).start(1)).unwrap() == {}


class Held(BaseModel):
    value: Any = None


@step
async def ask(number: int, ctx: StepContext) -> Any:
    return await ctx.suspend("?")


@unstorable
async def test_who_starts_a_run_with_one_is_told_and_nothing_is_recorded(durable: Store, value: Any) -> None:
    workflow = Workflow("w", input=Any, state=Held).map(str)
    async with Runtime(store=durable, workflows=[workflow]) as runtime:
        run = await runtime.create_run(workflow)
        with pytest.raises(InvalidInput, match="input_data cannot be stored"):
            await run.start(value)
        with pytest.raises(InvalidInput, match="initial_state cannot be stored"):
            await run.start(1, initial_state={"value": value})
        with pytest.raises(InvalidInput, match="runtime_context must be JSON"):
            await run.start(1, runtime_context={"value": value})
        assert await runtime.find_runs() == []
        assert (await run.start(1)).unwrap() == "1"


@unstorable
async def test_who_answers_with_one_is_told_and_the_step_still_waits(durable: Store, value: Any) -> None:
    workflow = Workflow("w", input=int).then(ask)
    async with Runtime(store=durable, workflows=[workflow]) as runtime:
        run = await runtime.create_run(workflow)
        await run.start(1)
        with pytest.raises(InvalidInput, match="the answer for 'ask' cannot be stored"):
            await run.resume(value)
        assert (await run.wait()).status == "suspended"
        assert (await run.resume("yes")).unwrap() == "yes"


@unstorable
async def test_who_sends_one_is_told_and_the_run_still_waits(durable: Store, value: Any) -> None:
    workflow = Workflow("w", input=int).wait_for_event("news", payload=Any)
    async with Runtime(store=durable, workflows=[workflow]) as runtime:
        run = await runtime.create_run(workflow)
        stream = await run.stream(1)
        with pytest.raises(InvalidInput, match="event 'news' cannot be stored"):
            await run.send_event("news", value)
        await run.send_event("news", "good")
        assert (await stream.get_workflow_state()).unwrap() == "good"


@pytest.mark.parametrize("end", ["raises", "aborts"])
async def test_an_error_whose_text_cannot_be_stored_is_kept_without_what_is_wrong_in_it(store: Store, end: str) -> None:
    @step
    async def work(number: int, ctx: StepContext) -> int:
        if end == "aborts":
            ctx.abort("half \ud83d")
        raise ValueError("half \ud83d")

    workflow = Workflow("w", input=int).then(work)
    async with Runtime(store=store, workflows=[workflow]) as runtime:
        run = await runtime.create_run(workflow)
        result = await run.start(1)
        again = await (await runtime.get_run(run.run_id)).wait()

    assert result.status == again.status == ("failed" if end == "raises" else "canceled")
    assert result.error is not None
    assert again.error is not None
    assert result.error.message == again.error.message == "half ?"


@pytest.mark.parametrize("value", ["a\0b", nested(170), "]" * 500, [1.5, None, {"ä": True}]])
async def test_what_only_looks_odd_is_stored(durable: Store, value: Any) -> None:
    @step
    async def work(given: Any, ctx: StepContext) -> Any:
        ctx.set_state(value=value)
        answer = await ctx.suspend(value)
        return await pass_on(value=answer)

    workflow = Workflow("w", input=Any).then(work)
    async with Runtime(store=durable, workflows=[workflow]) as runtime:
        run = await runtime.create_run(workflow)
        assert (await run.start(value)).suspended == {"work": value}
        again = await runtime.get_run(run.run_id)
        result = await again.resume(value)
        assert result.unwrap() == (await again.wait()).unwrap() == value
        assert result.state == {"value": value}
