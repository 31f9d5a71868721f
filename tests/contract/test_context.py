"""What a step knows and shares: earlier results, state, dependencies, context, and where it is."""

from typing import Any

import pytest
from pydantic import BaseModel, Field

from spanflow import (
    InvalidInput,
    Retry,
    Runtime,
    StepContext,
    StepNotCompleted,
    Workflow,
    step,
)
from tests.contract.support import Boom, describe, double, increment, list_of_int, recorded, result_of, turns, untyped

# --- map and result_of


async def test_a_map_may_read_the_results_of_earlier_steps() -> None:
    def both(value: str, ctx: StepContext) -> str:
        assert ctx.result_of("double") == 6
        return f"{value} was {ctx.result_of(double)} of {ctx.init_data}"

    flow = Workflow("flow", input=int).then(double).then(describe).map(both)
    assert (await result_of(flow, 3)).unwrap() == "number 6 was 6 of 3"


async def test_result_of_a_step_that_has_not_run_is_an_error_unless_there_is_a_default() -> None:
    def default(value: int, ctx: StepContext) -> str:
        return ctx.result_of(describe, "nothing yet")

    def no_default(value: str, ctx: StepContext) -> str:
        return ctx.result_of(describe)

    flow = Workflow("flow", input=int).map(default).map(no_default).map(len).then(describe)
    result = await result_of(flow, 3)
    assert result.error is not None
    assert isinstance(result.error.exception, StepNotCompleted)
    assert "'describe'" in result.error.message
    assert result.steps["default"].output == "nothing yet"


async def test_result_of_reaches_out_of_a_nested_workflow_and_prefers_what_is_near() -> None:
    @step
    async def ask(value: int, ctx: StepContext) -> tuple[int, int]:
        return ctx.result_of(double), ctx.result_of(increment)

    nested = Workflow("nested", input=int).then(double).then(ask)
    flow = Workflow("flow", input=int).then(double).then(increment).then(nested)
    assert (await result_of(flow, 1)).unwrap() == (6, 3)


async def test_result_of_a_looped_step_is_its_latest() -> None:
    flow = (
        Workflow("flow", input=int)
        .do_while(double, lambda value: value < 20)
        .map(lambda value, ctx: (value, ctx.result_of(double)))
    )
    assert (await result_of(flow, 3)).unwrap() == (24, 24)


async def test_result_of_parallel_arms_and_foreach_items_by_path() -> None:
    def look(value: list[int], ctx: StepContext) -> list[Any]:
        return [ctx.result_of(describe), ctx.result_of("double[1]")]

    flow = (
        Workflow("flow", input=int)
        .parallel(describe, increment)
        .map(lambda pair: [1, 2, 3], id="listed")
        .map(list_of_int)
        .foreach(double)
        .map(look)
    )
    assert (await result_of(flow, 1)).unwrap() == ["number 1", 4]


# --- state, deps, runtime_context, idempotency_key


class Progress(BaseModel):
    done: int = 0
    notes: list[str] = []


async def test_state_is_typed_shared_by_all_steps_and_part_of_the_result() -> None:
    @step
    async def first(value: int, ctx: StepContext) -> int:
        assert ctx.state == Progress(done=5)
        await ctx.set_state(done=ctx.state.done + value)
        assert ctx.state.done == 6
        return value

    @step
    async def second(value: int, ctx: StepContext) -> int:
        ctx.set_state({"notes": [*ctx.state.notes, "seen"]})
        return ctx.state.done

    flow = Workflow("flow", input=int, state=Progress).then(first).then(second)
    result = await result_of(flow, 1, initial_state=Progress(done=5))
    assert result.unwrap() == 6
    assert result.state == Progress(done=6, notes=["seen"])
    assert isinstance(result.state, Progress)


async def test_state_begins_with_the_models_defaults_and_may_be_given_as_a_mapping() -> None:
    @step
    async def look(value: int, ctx: StepContext) -> int:
        return ctx.state.done

    flow = Workflow("flow", input=int, state=Progress).then(look)
    assert (await result_of(flow, 1)).unwrap() == 0
    assert (await result_of(flow, 1, initial_state={"done": "4"})).unwrap() == 4


async def test_without_a_model_state_is_a_mapping() -> None:
    @step
    async def count(value: int, ctx: StepContext) -> int:
        await ctx.set_state(count=ctx.state.get("count", 0) + 1)
        return value

    flow = Workflow("flow", input=int).then(count).then(count.with_id("again"))
    assert (await result_of(flow, 1, initial_state={"count": 5})).state == {"count": 7}
    assert (await result_of(flow, 1)).state == {"count": 2}


async def test_a_change_of_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    @step
    async def spoil(value: int, ctx: StepContext) -> int:
        with pytest.raises(InvalidInput, match="done"):
            ctx.set_state(done="many")
        with pytest.raises(InvalidInput, match="dome"):
            ctx.set_state(dome=1)
        return value

    result = await result_of(Workflow("flow", input=int, state=Progress).then(spoil), 1)
    assert result.status == "success"
    assert result.state == Progress()


async def test_changing_the_state_object_in_place_changes_nothing() -> None:
    @step
    async def mutate(value: int, ctx: StepContext) -> int:
        ctx.state.done = 99
        ctx.state.notes.append("sneaky")
        return ctx.state.done

    result = await result_of(Workflow("flow", input=int, state=Progress).then(mutate), 1)
    assert result.unwrap() == 0
    assert result.state == Progress()


async def test_a_state_model_with_aliases_or_extra_fields_keeps_them() -> None:
    class Aliased(BaseModel):
        done: int = Field(default=0, alias="Done")

    class Open(BaseModel, extra="allow"):
        done: int = 0

    @step
    async def count(value: int, ctx: StepContext) -> int:
        ctx.set_state(done=ctx.state.done + 1)
        return ctx.state.done

    @step
    async def note(value: int, ctx: StepContext) -> Any:
        ctx.set_state(note="seen")
        return [ctx.state.given, ctx.state.note]

    result = await result_of(Workflow("flow", input=int, state=Aliased).then(count), 1, initial_state={"Done": 5})
    assert result.unwrap() == 6
    assert result.state == Aliased(Done=6)

    result = await result_of(Workflow("flow", input=int, state=Open).then(note), 1, initial_state={"given": 5})
    assert result.unwrap() == [5, "seen"]
    assert result.state == Open.model_validate({"given": 5, "note": "seen"})


async def test_steps_side_by_side_lose_no_change_of_different_fields() -> None:
    @step
    async def left(value: int, ctx: StepContext) -> int:
        await turns(3)
        await ctx.set_state(done=value)
        return value

    @step
    async def right(value: int, ctx: StepContext) -> int:
        await ctx.set_state(notes=["right"])
        return value

    result = await result_of(Workflow("flow", input=int, state=Progress).parallel(left, right), 3)
    assert result.state == Progress(done=3, notes=["right"])


async def test_a_nested_workflow_with_the_same_model_shares_the_state() -> None:
    @step
    async def note(value: int, ctx: StepContext) -> int:
        await ctx.set_state(done=ctx.state.done + 1)
        return value

    nested = Workflow("nested", input=int, state=Progress).then(note)
    flow = Workflow("flow", input=int, state=Progress).then(note).then(nested)
    assert (await result_of(flow, 1)).state == Progress(done=2)


class Deps(BaseModel):
    url: str


async def test_deps_are_the_live_objects_of_the_run_or_else_of_the_runtime() -> None:
    seen: list[Deps] = []

    @step
    async def look(value: int, ctx: StepContext[Deps]) -> str:
        seen.append(ctx.deps)
        return ctx.deps.url

    flow = Workflow("flow", input=int).then(look)
    of_run, of_runtime = Deps(url="run"), Deps(url="runtime")

    assert (await (await flow.create_run(deps=of_run)).start(1)).unwrap() == "run"
    async with Runtime(workflows=[flow], deps=of_runtime) as runtime:
        assert (await (await runtime.create_run(flow)).start(1)).unwrap() == "runtime"
        assert (await (await runtime.create_run(flow, deps=of_run)).start(1)).unwrap() == "run"
    assert [each is expected for each, expected in zip(seen, [of_run, of_runtime, of_run], strict=True)] == [True] * 3


async def test_deps_reach_nested_workflows_conditions_and_maps_and_are_not_stored() -> None:
    @step
    async def look(value: str, ctx: StepContext[Deps]) -> str:
        return f"{value} {ctx.deps.url}"

    flow = (
        Workflow("flow", input=int)
        .map(lambda value, ctx: f"map {ctx.deps.url}", id="mapped")
        .branch((lambda value, ctx: ctx.deps.url == "secret-url", Workflow("nested", input=str).then(look)))
    )
    run = await flow.create_run(deps=Deps(url="secret-url"))
    result = await run.start(1)
    assert result.unwrap() == "map secret-url secret-url"
    inputs = [event.model_dump_json() for event in await recorded(run) if event.type == "start"]
    assert "secret-url" not in "".join(inputs)


async def test_runtime_context_reaches_every_step_and_cannot_be_changed() -> None:
    @step
    async def look(value: int, ctx: StepContext) -> str:
        with pytest.raises(TypeError):
            untyped(ctx.runtime_context)["tier"] = "silver"
        return ctx.runtime_context["tier"]

    flow = Workflow("flow", input=int).then(Workflow("nested", input=int).then(look))
    assert (await result_of(flow, 1, runtime_context={"tier": "gold"})).unwrap() == "gold"


async def test_the_idempotency_key_is_one_for_all_attempts_and_another_for_everything_else() -> None:
    keys: dict[str, list[str]] = {}

    @step(retry=Retry(max_attempts=2, delay=0))
    async def work(value: int, ctx: StepContext) -> int:
        keys.setdefault(f"{ctx.run_id} {ctx.path}", []).append(ctx.idempotency_key)
        if ctx.attempt == 1:
            raise Boom("once")
        return value

    flow = Workflow("flow", input=list[int]).foreach(work)
    await result_of(flow, [0, 1])
    await result_of(flow, [0])

    assert all(len(each) == 2 and len(set(each)) == 1 for each in keys.values())
    assert len({each[0] for each in keys.values()}) == len(keys) == 3


async def test_a_context_may_be_optional_so_that_a_test_can_leave_it_out() -> None:
    @step
    async def look(value: int, ctx: StepContext | None = None) -> str:
        return "no run" if ctx is None else ctx.path

    assert await look(1) == "no run"
    assert (await result_of(Workflow("flow", input=int).then(look), 1)).unwrap() == "look"


async def test_a_step_knows_where_it_is() -> None:
    @step
    async def look(value: int, ctx: StepContext) -> list[Any]:
        return [ctx.run_id, ctx.workflow_id, ctx.step_id, ctx.path, ctx.attempt, ctx.init_data]

    run = await Workflow("flow", input=int).then(double).then(look).create_run(run_id="r-1")
    assert (await run.start(3)).unwrap() == ["r-1", "flow", "look", "look", 1, 3]
