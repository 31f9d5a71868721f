"""A workflow is checked while it is built: what cannot work is refused at once, in words that help."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from spanflow import (
    DefinitionError,
    Err,
    Ok,
    Retry,
    Runtime,
    StepContext,
    Tool,
    Workflow,
    step,
    tool,
)
from spanflow.plan import Plan
from tests.contract.support import untyped


class Order(BaseModel):
    items: list[str]


class RushOrder(Order):
    by: str = "noon"


class Price(BaseModel):
    cents: int


@step
async def double(value: int) -> int:
    return 2 * value


@step
async def describe(value: int) -> str:
    """Put a number in words."""
    return f"number {value}"


@step
async def measure(text: str) -> int:
    return len(text)


@step
async def count(items: list[str]) -> int:
    return len(items)


@step
async def price(order: Order) -> Price:
    return Price(cents=100 * len(order.items))


@step
async def take_rush(order: RushOrder) -> RushOrder:
    return order


@tool
async def lookup(key: str, limit: int = 3) -> list[str]:
    """Look something up.

    Args:
        key: what to look for.
    """
    return [key] * limit


def grown_by_each_operation(base: Workflow[int, int]) -> dict[str, Workflow[int, Any]]:
    """The workflow grown by every operation there is."""
    nested = Workflow("nested", input=int).then(double.with_id("inner"))
    return {
        "then": base.then(double),
        "then tool": base.map(lambda value: {"key": str(value)}, id="keyed").then(lookup),
        "then workflow": base.then(nested),
        "parallel": base.parallel(double, describe),
        "branch": base.branch((lambda value: value > 1, double), default=describe),
        "branch all": base.branch((lambda value: value > 1, double), mode="all"),
        "foreach": base.map(lambda value: [value], id="listed").foreach(double, concurrency=2),
        "foreach collect": base.map(lambda value: [value], id="listed").foreach(nested, on_error="collect"),
        "do_while": base.do_while(double, lambda value: value < 10, max_iterations=5),
        "do_until": base.do_until(double, lambda value, ctx: value > 10),
        "map": base.map(lambda value: value + 1),
        "sleep": base.sleep(1.5),
        "sleep fn": base.sleep(lambda value: value),
        "sleep_until": base.sleep_until(datetime(2030, 1, 1, tzinfo=UTC)),
        "sleep_until fn": base.sleep_until(lambda value: datetime(2030, 1, value, tzinfo=UTC)),
        "wait_for_event": base.wait_for_event("approved", Price, timeout=60),
        "with_id": base.with_id("other"),
    }


OPERATIONS = list(grown_by_each_operation(Workflow("base", input=int)))


# --- operations


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_returns_a_new_workflow_and_leaves_the_old_one_alone(operation: str) -> None:
    base = Workflow("base", input=int).then(double.with_id("first"))
    before = base.plan.model_dump_json()

    grown = grown_by_each_operation(base)[operation]

    assert grown is not base
    assert grown.plan.model_dump_json() != before
    assert base.plan.model_dump_json() == before


def test_a_shared_beginning_can_be_continued_in_two_ways() -> None:
    base = Workflow("base", input=int).then(double)
    words = base.then(describe)
    numbers = base.map(lambda value: -value, id="negate")

    assert [node.id for node in words.plan.nodes] == ["double", "describe"]
    assert [node.id for node in numbers.plan.nodes] == ["double", "negate"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_plan_of_every_operation_comes_back_from_its_json(operation: str) -> None:
    plan = grown_by_each_operation(Workflow("base", input=int))[operation].plan
    text = plan.model_dump_json()

    assert Plan.model_validate_json(text) == plan
    assert Plan.model_validate(json.loads(text)) == plan


def test_a_plan_with_everything_nested_in_everything_comes_back_from_its_json() -> None:
    inner = Workflow("inner", input=int).branch((lambda value: value > 1, double), default=double.with_id("other"))
    middle = Workflow("middle", input=list[int]).foreach(inner, concurrency=3, on_error="collect").map(len, id="count")
    outer = (
        Workflow("outer", input=list[int], description="all of it", retry=Retry(max_attempts=2))
        .parallel(middle, middle.with_id("again"), on_error="collect")
        .map(lambda pair: pair[0], id="first")
        .do_while(Workflow("body", input=int).then(double).sleep(2), lambda value: value < 9, max_iterations=4)
        .wait_for_event("go", int, timeout=5)
    )
    assert Plan.model_validate_json(outer.plan.model_dump_json()) == outer.plan
    assert Plan.model_validate_json(outer.plan.model_dump_json()).description == "all of it"


def test_a_plan_cannot_be_changed() -> None:
    plan = Workflow("base", input=int).then(double).plan
    with pytest.raises(ValidationError, match="frozen"):
        plan.workflow_id = "other"
    assert isinstance(plan.nodes, tuple)
    with pytest.raises(ValidationError, match="frozen"):
        plan.nodes[0].id = "other"


def test_a_plan_holds_no_user_code_but_names_all_of_it() -> None:
    plan = Workflow("base", input=int).then(double).map(lambda value: value, id="same").plan
    assert [(node["kind"], node["id"]) for node in json.loads(plan.model_dump_json())["nodes"]] == [
        ("step", "double"),
        ("map", "same"),
    ]


# --- steps


async def test_a_step_is_still_the_function_it_was_made_of() -> None:
    @step
    def plain(value: int) -> int:
        return value + 1

    assert await double(4) == 8
    assert plain(4) == 5
    assert double.id == "double"
    assert describe.description == "Put a number in words."


def test_the_options_of_a_step_are_kept() -> None:
    policy = Retry(max_attempts=7)

    @step(id="named", retry=policy, timeout=2.5, description="does it")
    async def anything(value: int) -> int:
        return value

    assert (anything.id, anything.retry, anything.timeout, anything.description) == ("named", policy, 2.5, "does it")


def test_with_id_gives_a_second_use_of_a_step_tool_or_workflow_and_leaves_the_first() -> None:
    again = double.with_id("again")
    found: Tool[..., Any, Any] = untyped(lookup.with_id("find"))
    flow = Workflow("flow", input=int).then(double)

    assert (again.id, double.id) == ("again", "double")
    assert (found.id, found.name, lookup.id) == ("find", "find", "lookup")
    assert found.json_schema == lookup.json_schema
    assert (flow.with_id("copy").id, flow.id) == ("copy", "flow")

    twice = Workflow("twice", input=int).then(double).then(again).then(flow).then(flow.with_id("copy"))
    assert [node.id for node in twice.plan.nodes] == ["double", "again", "flow", "copy"]


def test_a_step_may_name_classes_of_the_function_it_is_written_in() -> None:
    class Local(BaseModel):
        number: int

    @step
    async def local(value: "Local") -> "Local":
        return value

    with pytest.raises(DefinitionError, match="Local"):
        Workflow("base", input=Local).then(local).then(untyped(double))


def _none() -> int:
    return 0


def _three(a: int, b: StepContext, c: int) -> int:
    return a + c


def _keyword_only(value: int, *, more: int) -> int:
    return value + more


def _no_context(a: int, b: str) -> int:
    return a + len(b)


def _context_only(ctx: StepContext) -> int:
    return 1


@pytest.mark.parametrize("function", [_none, _three, _no_context, _keyword_only, _context_only])
def test_a_function_that_no_step_can_call_is_refused_with_the_signature_that_would_do(function: Any) -> None:
    with pytest.raises(DefinitionError) as caught:
        untyped(step)(function)
    assert function.__name__ in str(caught.value)
    assert "(value)" in str(caught.value)
    assert "(value, ctx" in str(caught.value)


def _yields(value: int) -> Iterator[int]:
    yield value


async def _yields_async(value: int) -> AsyncIterator[int]:
    yield value


@pytest.mark.parametrize("function", [_yields, _yields_async])
def test_a_function_that_yields_is_no_step_but_may_be_a_tool(function: Any) -> None:
    with pytest.raises(DefinitionError) as caught:
        untyped(step)(function)
    assert [word for word in (function.__name__, "yield", "emit", "@tool") if word not in str(caught.value)] == []


def test_what_has_no_name_must_be_given_one_to_be_a_tool() -> None:
    with pytest.raises(DefinitionError, match=r"@tool\(id="):
        untyped(tool)(lambda: 1)
    with pytest.raises(DefinitionError, match=r"@tool\(id="):
        untyped(tool)(partial(_no_context, 1))
    assert untyped(tool(id="named"))(partial(_no_context, 1)).name == "named"


def test_a_type_that_pydantic_cannot_handle_is_refused_with_its_name() -> None:
    class Client:
        def __get_pydantic_core_schema__(self) -> None: ...

    with pytest.raises(DefinitionError, match="Client"):

        @step
        async def use(value: Client) -> int:
            return 1


NAMED: dict[str, Callable[[str], Any]] = {
    "workflow": lambda id: Workflow(id, input=int),
    "step": lambda id: double.with_id(id),
    "tool": lambda id: lookup.with_id(id),
    "workflow.with_id": lambda id: Workflow("flow", input=int).with_id(id),
    "event": lambda id: Workflow("flow", input=int).wait_for_event(id),
}


@pytest.mark.parametrize("bad", ["", "  ", "a/b", "a[0]", "a#1", "a:b", "a\nb", "x" * 1000])
@pytest.mark.parametrize("thing", NAMED)
def test_an_id_that_cannot_stand_in_a_path_is_refused(thing: str, bad: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        NAMED[thing](bad)
    assert repr(bad) in str(caught.value)


@pytest.mark.parametrize("bad", ["a/b", "a[0]", "a#1", "a:b"])
def test_an_id_given_as_an_option_is_checked_as_well(bad: str) -> None:
    with pytest.raises(DefinitionError, match="id"):
        step(id=bad)(lambda value: value)
    with pytest.raises(DefinitionError, match="id"):
        tool(id=bad)(_none)
    for operation in ("map", "sleep", "sleep_until"):
        with pytest.raises(DefinitionError, match="id"):
            untyped(getattr(Workflow("base", input=int), operation))(lambda value: value, id=bad)  # pyright: ignore[reportUnknownLambdaType]


# --- pipes that do not fit


def of_int() -> Any:
    """A workflow whose last step gives an int, and that takes anything for the type checker."""
    return Workflow("base", input=int).then(double)


NESTED_OF_STR = Workflow("words", input=str).then(measure)

MISFITS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "then": (lambda: of_int().then(measure), ["double", "int", "measure", "str"]),
    "then at the beginning": (lambda: untyped(Workflow("base", input=int)).then(measure), ["base", "int", "measure"]),
    "a nested workflow": (lambda: of_int().then(NESTED_OF_STR), ["double", "int", "words", "str"]),
    "a tool": (
        lambda: untyped(Workflow("base", input=Order).then(price)).then(lookup),
        ["price", "Price", "lookup", "key"],
    ),
    "an arm of parallel": (lambda: of_int().parallel(describe, measure), ["double", "int", "measure", "str"]),
    "an arm of branch": (lambda: of_int().branch((bool, measure)), ["double", "int", "measure", "str"]),
    "the default of branch": (
        lambda: of_int().branch((bool, describe), default=measure),
        ["double", "int", "measure", "str"],
    ),
    "an item of foreach": (
        lambda: untyped(Workflow("base", input=list[int])).foreach(measure),
        ["base", "int", "measure", "str"],
    ),
    "the body of a loop": (lambda: of_int().do_while(measure, bool), ["double", "int", "measure", "str"]),
    "a loop's own output": (lambda: of_int().do_until(describe, bool), ["describe", "str", "int"]),
    "a map function": (lambda: of_int().map(len_of_text), ["double", "int", "len_of_text", "str"]),
    "behind a map": (lambda: of_int().map(words_of).then(double.with_id("d2")), ["words_of", "str", "d2", "int"]),
    "behind parallel": (lambda: of_int().parallel(describe, double.with_id("d2")).then(count), ["tuple", "count"]),
    "behind a branch of two types": (
        lambda: of_int().branch((bool, describe), default=double.with_id("d2")).then(measure),
        ["str", "int", "measure"],
    ),
    "behind branch all": (
        lambda: of_int().branch((bool, describe), mode="all").then(measure),
        ["dict", "str", "measure"],
    ),
    "behind foreach": (
        lambda: untyped(Workflow("base", input=list[int])).foreach(describe).then(double),
        ["list[str]", "double", "int"],
    ),
    "behind foreach collect": (
        lambda: untyped(Workflow("base", input=list[int])).foreach(describe, on_error="collect").then(count),
        ["Ok", "Err", "count", "list[str]"],
    ),
    "behind a wait": (lambda: of_int().wait_for_event("go", str).then(double.with_id("d2")), ["go", "str", "d2"]),
    "behind a sleep": (lambda: of_int().sleep(1).then(measure), ["int", "measure", "str"]),
    "None where a value is wanted": (
        lambda: untyped(Workflow("base", input=int | None)).then(double),
        ["int | None", "double", "int"],
    ),
    "a base class where the subclass is wanted": (
        lambda: untyped(Workflow("base", input=Order)).then(take_rush),
        ["Order", "take_rush", "RushOrder"],
    ),
}


def anything(value: Any) -> Any:
    return value


def len_of_text(text: str) -> int:
    return len(text)


def words_of(value: int) -> str:
    return str(value)


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_pipe_that_does_not_fit_names_both_sides_and_the_fix(misfit: str) -> None:
    build, named = MISFITS[misfit]
    with pytest.raises(DefinitionError) as caught:
        build()
    text = str(caught.value)
    assert [name for name in named if name not in text] == []
    assert ".map(" in text or "annotation" in text


FITS: dict[str, Callable[[], Any]] = {
    "a subclass": lambda: Workflow("base", input=RushOrder).then(price),
    "an int where a float is wanted": lambda: Workflow("base", input=int).then(halve),
    "a member of a union": lambda: Workflow("base", input=int).then(accept_both),
    "a union member by member": lambda: (
        Workflow("base", input=int).branch((bool, describe), default=double).then(accept_both)
    ),
    "what has no annotation": lambda: Workflow("base", input=str).map(anything).then(measure),
    "the tuple of parallel": lambda: Workflow("base", input=int).parallel(describe, double).then(join),
    "the list of foreach": lambda: Workflow("base", input=list[int]).foreach(describe).then(count),
    "a tuple of one type as list": lambda: untyped(Workflow("base", input=tuple[int, ...])).foreach(describe),
    "a list with a limit": lambda: Workflow("base", input=Annotated[list[int], Field(max_length=9)]).foreach(describe),
    "the outcomes of foreach collect": lambda: (
        Workflow("base", input=list[int]).foreach(describe, on_error="collect").then(good_ones)
    ),
    "the value itself for a tool with one argument": lambda: Workflow("base", input=str).then(shout),
    "a mapping for a tool": lambda: Workflow("base", input=dict[str, Any]).then(lookup),
    "one model in for the same model out": lambda: Workflow("base", input=Order).do_until(untyped(take_order), bool),
}


@step
async def halve(value: float) -> float:
    return value / 2


@step
async def accept_both(value: int | str) -> str:
    return str(value)


@step
async def join(pair: tuple[str, int]) -> str:
    return f"{pair[0]} {pair[1]}"


@step
async def good_ones(outcomes: list[Ok[str] | Err]) -> int:
    return sum(isinstance(each, Ok) for each in outcomes)


@step
async def take_order(order: Order) -> Order:
    return order


@tool
async def shout(text: str) -> str:
    return text.upper()


@pytest.mark.parametrize("case", FITS)
def test_a_pipe_that_fits_is_accepted(case: str) -> None:
    assert FITS[case]().plan.nodes


@pytest.mark.parametrize("not_a_list", [int, str, bytes, dict[str, int], Order, int | list[int]])
def test_foreach_over_what_is_not_a_list_is_refused_with_the_type_it_got(not_a_list: Any) -> None:
    with pytest.raises(DefinitionError) as caught:
        untyped(Workflow("base", input=not_a_list)).foreach(describe)
    assert "list" in str(caught.value)
    assert "describe" in str(caught.value)
    assert getattr(not_a_list, "__name__", "int") in str(caught.value)


# --- what is no step


NO_STEPS: list[Any] = [words_of, anything, None, "double", 3, [double]]


@pytest.mark.parametrize("thing", NO_STEPS)
@pytest.mark.parametrize("operation", ["then", "parallel", "foreach"])
def test_what_is_no_step_is_refused_with_the_decorator_that_makes_it_one(operation: str, thing: Any) -> None:
    base = Workflow("base", input=list[int])
    with pytest.raises(DefinitionError, match=r"@step"):
        untyped(getattr(base, operation))(thing)


@pytest.mark.parametrize("arm", [double, (double,), (bool, double, double), None])
def test_an_arm_of_a_branch_must_be_a_pair(arm: Any) -> None:
    with pytest.raises(DefinitionError, match="condition"):
        untyped(Workflow("base", input=int)).branch(arm)


@pytest.mark.parametrize("condition", [None, True, "value > 1", 3])
def test_a_condition_must_be_a_function(condition: Any) -> None:
    base = untyped(Workflow("base", input=int))
    for build in (
        lambda: base.branch((condition, double)),
        lambda: base.do_while(double, condition),
        lambda: base.do_until(double, condition),
    ):
        with pytest.raises(DefinitionError, match="function"):
            build()


@pytest.mark.parametrize("fn", [None, 3, "upper"])
def test_a_map_must_be_a_function(fn: Any) -> None:
    with pytest.raises(DefinitionError, match="function"):
        untyped(Workflow("base", input=int)).map(fn)


def test_a_built_in_type_is_a_function_too() -> None:
    flow = Workflow("base", input=int).branch((bool, double)).map(str, id="text").then(measure)
    assert [node.id for node in flow.plan.nodes] == ["branch", "text", "measure"]
    with pytest.raises(DefinitionError, match=r"'text' gives str"):
        untyped(Workflow("base", input=int).map(str, id="text")).then(double)


def test_containers_without_arms_are_refused() -> None:
    base = untyped(Workflow("base", input=int))
    with pytest.raises(DefinitionError, match="at least one"):
        base.parallel()
    with pytest.raises(DefinitionError, match="at least one"):
        base.branch()
    with pytest.raises(DefinitionError, match="at least one"):
        base.branch(default=double)


# --- ids


DUPLICATES: dict[str, Callable[[], Any]] = {
    "one after the other": lambda: Workflow("base", input=int).then(double).then(double),
    "two arms of one parallel": lambda: Workflow("base", input=int).parallel(double, double),
    "two arms of one branch": lambda: Workflow("base", input=int).branch((bool, double), (bool, double)),
    "arm and default": lambda: Workflow("base", input=int).branch((bool, double), default=double),
    "a step and an arm": lambda: Workflow("base", input=int).then(double).parallel(describe, double),
    "a step and an item": lambda: (
        Workflow("base", input=int).then(double).map(lambda value: [value], id="listed").foreach(double)
    ),
    "a step and a loop": lambda: Workflow("base", input=int).then(double).do_while(double, bool),
    "two workflows": lambda: Workflow("base", input=int).parallel(SAME, SAME),
    "a step and a workflow": lambda: (
        Workflow("base", input=int).then(double).then(Workflow("double", input=int).then(double))
    ),
    "two maps": lambda: Workflow("base", input=int).map(abs, id="double").then(double),
}
SAME = Workflow("double", input=int).then(describe)


@pytest.mark.parametrize("case", DUPLICATES)
def test_a_second_step_of_the_same_id_is_refused_with_the_way_out(case: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        DUPLICATES[case]()
    assert "'double'" in str(caught.value)
    assert "with_id(" in str(caught.value)


def test_the_same_id_in_a_nested_workflow_is_another_path_and_so_no_duplicate() -> None:
    nested = Workflow("nested", input=int).then(double)
    flow = Workflow("base", input=int).then(double).then(nested).then(nested.with_id("again"))
    assert [node.id for node in flow.plan.nodes] == ["double", "nested", "again"]


def test_unnamed_maps_sleeps_and_containers_get_ids_of_their_own() -> None:
    flow = (
        Workflow("base", input=int)
        .map(lambda value: value)
        .map(lambda value: value)
        .sleep(1)
        .sleep(1)
        .parallel(double, describe)
        .map(lambda pair: pair[0], id="first")
        .parallel(double.with_id("d2"), describe.with_id("t2"))
    )
    ids = [node.id for node in flow.plan.nodes]
    assert len(set(ids)) == len(ids) == 7


# --- whole workflows


async def test_a_workflow_without_steps_cannot_run_or_be_nested() -> None:
    empty = Workflow("empty", input=int)
    with pytest.raises(DefinitionError, match=r"'empty'.*\.then\("):
        await empty.create_run()
    with pytest.raises(DefinitionError, match="'empty'"):
        Workflow("base", input=int).then(empty)
    with pytest.raises(DefinitionError, match="'empty'"):
        Runtime(workflows=[empty])


async def test_a_declared_output_that_the_last_step_does_not_give_is_refused_before_a_run() -> None:
    flow = Workflow("flow", input=int, output=str).then(double)
    with pytest.raises(DefinitionError) as caught:
        await flow.create_run()
    assert [name for name in ("flow", "str", "double", "int") if name not in str(caught.value)] == []
    with pytest.raises(DefinitionError, match="str"):
        Workflow("base", input=int).then(flow)


def test_a_runtime_refuses_two_workflows_of_one_id() -> None:
    with pytest.raises(DefinitionError, match="'flow'"):
        Runtime(workflows=[Workflow("flow", input=int).then(double), Workflow("flow", input=int).then(describe)])


def test_two_payload_models_for_one_event_name_are_refused_with_both() -> None:
    with pytest.raises(DefinitionError) as caught:
        Workflow("base", input=int).wait_for_event("go", Order).wait_for_event("go", Price, id="second")
    assert [name for name in ("'go'", "Order", "Price") if name not in str(caught.value)] == []


# --- drawing


def test_the_drawing_shows_every_step_arm_loop_and_nested_workflow() -> None:
    nested = Workflow("nested", input=int).then(double.with_id("inside"))
    flow = (
        Workflow("flow", input=int)
        .then(double)
        .parallel(nested, describe.with_id("left"))
        .map(lambda pair: pair[0], id="first")
        .branch((lambda value: value > 1, double.with_id("big")), default=double.with_id("small"), id="size")
        .do_while(double.with_id("grow"), lambda value: value < 10)
        .map(lambda value: [value], id="listed")
        .foreach(describe.with_id("each"))
        .map(len, id="length")
        .sleep(1, id="nap")
        .wait_for_event("approved", int)
        .map(lambda value: {"key": str(value)}, id="keyed")
        .then(lookup)
    )
    drawn = flow.to_mermaid()

    assert drawn.startswith(("flowchart", "graph"))
    names = "double nested inside left first size big small grow listed each length nap approved keyed lookup default"
    assert [name for name in names.split() if name not in drawn] == []
    assert drawn.count("subgraph") == drawn.count("\n  end") + drawn.count("    end") >= 1
    assert "-->" in drawn
    assert flow.to_mermaid() == drawn


def test_a_drawing_survives_ids_that_mean_something_in_mermaid() -> None:
    drawn = Workflow("flow", input=int).then(double.with_id('say "end" <b> & (go)')).to_mermaid()
    assert '"say "end"' not in drawn
    assert "<b>" not in drawn
