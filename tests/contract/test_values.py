"""A value is validated once at each boundary it crosses, and then is what it is, however often the run resumes."""

from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, BeforeValidator, model_validator

from spanflow import Runtime, StepContext, Workflow, WorkflowResult, step
from tests.contract.support import untyped


def split(text: str) -> list[str]:
    return text.split(",")


def louder(text: str) -> str:
    return f"{text}!"


Words = Annotated[list[str], BeforeValidator(split)]
"""Read from a text, and only from a text: a list does not fit a second time."""
Loud = Annotated[str, AfterValidator(louder)]
"""One mark louder with each validation."""


class Wrapped(BaseModel):
    """Made of any value, also of itself."""

    value: Any

    @model_validator(mode="before")
    @classmethod
    def wrap(cls, value: Any) -> Any:
        return {"value": value}


@step
async def ask(value: Any, ctx: StepContext) -> list[Any]:
    return [value, await ctx.suspend("well?", resume=untyped(Words)), ctx.init_data]


@step
async def loud(value: Any) -> Loud:
    return str(value)


@step
async def words(value: Any) -> Words:
    return untyped(value)


def texts(value: str) -> list[str]:
    return [value, value]


BEFORE_A_QUESTION: dict[str, tuple[Workflow[Any, Any], Any]] = {
    "input": (Workflow("flow", input=Words), ["a", "b"]),
    "input of text": (Workflow("flow", input=Loud), "a,b!"),
    "step": (Workflow("flow", input=str).then(words), ["a", "b"]),
    "step of text": (Workflow("flow", input=str).then(loud), "a,b!"),
    "nested": (Workflow("flow", input=str).then(Workflow("nested", input=str, output=Loud).map(str)), "a,b!"),
    "foreach": (Workflow("flow", input=str).map(texts).foreach(words), [["a", "b"], ["a", "b"]]),
    "parallel": (Workflow("flow", input=str).parallel(words, loud), (["a", "b"], "a,b!")),
    "loop": (Workflow("flow", input=str).do_until(loud, bool), "a,b!"),
}


@pytest.mark.parametrize("case", BEFORE_A_QUESTION)
async def test_a_value_is_validated_once_and_is_the_same_after_a_resume(case: str) -> None:
    flow, seen = BEFORE_A_QUESTION[case]
    run = await flow.then(ask).create_run()
    assert (await run.start("a,b")).status == "suspended"
    value, answer, init = (await run.resume("x,y")).unwrap()
    assert value == seen
    assert answer == ["x", "y"]
    assert init == (seen if case.startswith("input") else "a,b")


async def test_several_answers_are_validated_once_each() -> None:
    @step
    async def interview(value: int, ctx: StepContext) -> list[str]:
        first: str = await ctx.suspend("one?", resume=untyped(Loud))
        second: str = await ctx.suspend("two?", resume=untyped(Loud))
        return [first, second]

    run = await Workflow("flow", input=int).then(interview).create_run()
    await run.start(1)
    await run.resume("a")
    assert (await run.resume("b")).unwrap() == ["a!", "b!"]


@pytest.mark.parametrize("early", [True, False])
async def test_an_event_is_validated_once(early: bool) -> None:
    run = await Workflow("flow", input=int).wait_for_event("go", Words).create_run()
    if early:
        await run.send_event("go", "a,b")
        result: WorkflowResult[Any] = await run.start(1)
    else:
        stream = await run.stream(1)
        await run.send_event("go", "a,b")
        result = await stream.get_workflow_state()
    assert result.unwrap() == ["a", "b"]


async def test_a_declared_output_is_validated_once_also_when_it_is_asked_for_again() -> None:
    flow = Workflow("flow", input=int, output=Loud).map(lambda value: "a")
    async with Runtime(workflows=[flow]) as runtime:
        run = await runtime.create_run(flow, run_id="r-1")
        assert (await run.start(1)).unwrap() == "a!"
        assert (await run.wait()).unwrap() == "a!"
        assert (await (await runtime.get_run("r-1")).wait()).unwrap() == "a!"


@step
async def look_at(value: Any, ctx: StepContext) -> Any:
    return ctx.init_data.value


async def test_a_model_that_wraps_whatever_it_is_given_wraps_it_once() -> None:
    run = await Workflow("flow", input=Wrapped).then(look_at).create_run()
    assert (await run.start(untyped(7))).unwrap() == 7
