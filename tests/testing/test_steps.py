"""step_context: a step's function called directly, with all that it may ask and do."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_type

import pytest
from pydantic import BaseModel

from spanflow import InvalidInput, StepContext, StepNotCompleted, Workflow, step, tool
from spanflow.testing import Aborted, Bailed, FakeStepContext, Suspended, Traces, step_context


class Totals(BaseModel):
    count: int = 0
    seen: list[str] = []


class Decision(BaseModel):
    approved: bool


@dataclass
class Clients:
    greeting: str


@step
async def greet(name: str, ctx: StepContext[Clients]) -> str:
    return f"{ctx.deps.greeting} {name}"


@step
async def remember(name: str, ctx: StepContext) -> int:
    await ctx.set_state(count=ctx.state.count + 1, seen=[*ctx.state.seen, name])
    return ctx.state.count


@step
async def decide(amount: int, ctx: StepContext) -> str:
    try:
        decision = await ctx.suspend({"amount": amount}, resume=Decision)
        again = await ctx.suspend("sure?", resume=bool)
    except Exception:  # what a careless step would do
        return "swallowed"
    return "paid" if decision.approved and again else "refused"


async def test_a_step_is_called_as_the_function_it_is() -> None:
    assert await greet("Ada", step_context(deps=Clients("Hello"))) == "Hello Ada"


def test_a_plain_step_is_called_without_an_event_loop() -> None:
    @step
    def progress(value: int, ctx: StepContext) -> int:
        ctx.emit({"at": value})
        return value

    ctx = step_context()
    assert progress(3, ctx) == 3
    assert ctx.emitted == [{"at": 3}]


def test_deps_are_typed() -> None:
    assert_type(step_context(deps=Clients("Hello")), FakeStepContext[Clients])
    assert_type(step_context(deps=Clients("Hello")).deps, Clients)


async def test_emitted_values_are_collected_in_order() -> None:
    @step
    async def count(value: int, ctx: StepContext) -> int:
        for number in range(value):
            await ctx.emit(number)
        return value

    ctx = step_context()
    await count(3, ctx)
    assert ctx.emitted == [0, 1, 2]


async def test_state_is_a_model_that_validates_or_a_mapping_that_does_not() -> None:
    ctx = step_context(state=Totals(count=4))
    assert await remember("Ada", ctx) == 5
    assert ctx.state == Totals(count=5, seen=["Ada"])
    with pytest.raises(InvalidInput, match="count"):
        ctx.set_state(count="many")

    untyped = step_context(state={"count": 4})
    untyped.set_state(count="many")
    assert untyped.state == {"count": "many"}


async def test_one_context_does_not_share_its_state_with_another() -> None:
    given = {"count": 1}
    one, other = step_context(state=given), step_context(state=given)
    one.set_state(count=2)
    assert (one.state["count"], other.state["count"], given["count"]) == (2, 1, 1)


def test_results_are_given_by_step_or_by_id() -> None:
    nested = Workflow("nested", input=int)
    ctx = step_context(results={greet: "Hello", "later": 2, nested: [3]})
    assert ctx.result_of(greet) == "Hello"
    assert ctx.result_of("greet") == "Hello"
    assert ctx.result_of("later") == 2
    assert ctx.result_of(nested) == [3]
    assert ctx.result_of("never", "default") == "default"
    with pytest.raises(StepNotCompleted):
        ctx.result_of(remember)


def test_everything_else_that_a_step_may_ask_is_as_given() -> None:
    ctx = step_context(
        init_data=5, runtime_context={"locale": "de"}, step_id="price", workflow_id="shop", run_id="r-1", attempt=3
    )
    assert (ctx.init_data, ctx.runtime_context) == (5, {"locale": "de"})
    assert (ctx.step_id, ctx.path, ctx.workflow_id, ctx.run_id, ctx.attempt) == ("price", "price", "shop", "r-1", 3)
    assert ctx.idempotency_key == "r-1/price"
    ctx.tracing_context.current_span.set_attribute("nobody", "minds")
    writable: Mapping[str, Any] = ctx.runtime_context
    with pytest.raises(TypeError):
        writable["locale"] = "en"  # type: ignore[index]  # pyright: ignore[reportIndexIssue]


async def test_prepared_answers_are_given_in_the_order_of_the_questions_as_their_models() -> None:
    assert await decide(5, step_context(answers=[Decision(approved=True), True])) == "paid"
    assert await decide(5, step_context(answers=[{"approved": True}, False])) == "refused"


@pytest.mark.parametrize(
    ("answers", "payload"), [([], {"amount": 5}), ([{"approved": True}], "sure?")], ids=["first", "second"]
)
async def test_a_question_without_an_answer_ends_the_call_where_no_step_can_swallow_it(
    answers: list[Any], payload: Any
) -> None:
    with pytest.raises(Suspended, match="step_context\\(answers=") as suspended:
        await decide(5, step_context(answers=answers))
    assert suspended.value.payload == payload


async def test_an_answer_that_does_not_fit_is_refused_as_a_run_refuses_it() -> None:
    ctx = step_context(answers=[{"approved": "perhaps"}])
    with pytest.raises(InvalidInput, match="approved"):
        await ctx.suspend(resume=Decision)


async def test_bail_and_abort_end_the_call_and_say_with_what() -> None:
    @step
    async def leave(value: int, ctx: StepContext) -> int:
        if value:
            ctx.bail({"left": value})
        ctx.abort("nothing to do")

    with pytest.raises(Bailed, match="left") as bailed:
        await leave(1, step_context())
    assert bailed.value.value == {"left": 1}
    with pytest.raises(Aborted, match="nothing to do") as aborted:
        await leave(0, step_context())
    assert aborted.value.reason == "nothing to do"


async def test_a_step_behaves_as_it_does_in_a_run() -> None:
    run = await Workflow("pay", input=int).then(decide).create_run()
    result = await run.start(5)
    assert result.suspended == {"decide": {"amount": 5}}
    await run.resume({"approved": True})
    result = await run.resume(True)
    assert result.unwrap() == await decide(5, step_context(answers=[{"approved": True}, True]))


async def test_tools_that_a_step_calls_have_their_spans(traces: Traces) -> None:
    @tool
    async def search(query: str) -> str:
        """Search."""
        return query

    @step
    async def retrieve(query: str, ctx: StepContext) -> list[str]:
        return list(await asyncio.gather(search(query), search(f"{query}?")))

    assert await retrieve("why", step_context()) == ["why", "why?"]
    assert [span.name for span in traces.roots] == ["execute_tool search"] * 2
