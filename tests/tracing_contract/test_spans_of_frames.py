"""Nested runs, foreach, parallel, branch and loop: their spans, their counts, and errors recorded once."""

import asyncio
from typing import Any

import pytest

from spanflow import (
    InvalidInput,
    LoopLimit,
    NoBranchMatched,
    Workflow,
    step,
)
from spanflow.testing import Traces
from tests.tracing_contract.reading import (
    attributes,
    errors,
    is_error,
    parent_id,
    recorded,
    run_to_end,
    span_id,
)
from tests.tracing_contract.scenario import OutOfStock
from tests.tracing_contract.steps import (
    OUT_OF_STOCK,
    fail,
    fail_odd,
    last_forever,
    same,
    twice,
    weigh_nothing,
    workflow,
)

# ---------------------------------------------------------------- nested runs


async def test_a_nested_run_is_a_span_of_the_same_trace_that_counts_its_steps(traces: Traces) -> None:
    nested = workflow("inner").then(same).then(twice)
    await run_to_end(await workflow().then(nested).then(same).create_run(), 1, traces)
    span = traces.one("invoke_workflow inner")
    assert parent_id(span) == span_id(traces.one("invoke_workflow shop"))
    found = attributes(span)
    assert found["gen_ai.operation.name"] == "invoke_workflow"
    assert found["gen_ai.workflow.name"] == "inner"
    assert (found["spanflow.succeeded"], found["spanflow.failed"]) == (2, 0)
    paths = [attributes(each)["spanflow.step.path"] for each in traces.children(span)]
    assert paths == ["inner/same", "inner/twice"]


async def test_a_failed_nested_run_counts_the_failure_and_does_not_repeat_it(traces: Traces) -> None:
    innermost = workflow("innermost").then(same).then(fail)
    nested = workflow("inner").then(same).then(innermost)
    await run_to_end(await workflow().then(nested).create_run(), 3, traces)
    for name in ("invoke_workflow inner", "invoke_workflow innermost"):
        span = traces.one(name)
        assert is_error(span)
        assert (attributes(span)["spanflow.succeeded"], attributes(span)["spanflow.failed"]) == (1, 1)
    assert recorded(traces) == [("step fail", OUT_OF_STOCK, "no 3")]
    assert attributes(traces.one("step fail"))["spanflow.step.path"] == "inner/innermost/fail"


async def test_input_that_a_nested_run_refuses_is_recorded_on_its_span(traces: Traces) -> None:
    @step
    async def anything(value: int) -> Any:
        return "many"

    await run_to_end(await workflow().then(anything).then(workflow("inner").then(same)).create_run(), 3, traces)
    kind = f"{InvalidInput.__module__}.{InvalidInput.__qualname__}"
    assert [(name, type) for name, type, _ in recorded(traces)] == [("invoke_workflow inner", kind)]


# ---------------------------------------------------------------- foreach, parallel, branch, loop


async def test_a_foreach_is_a_span_that_counts_and_holds_its_items(traces: Traces) -> None:
    shop = Workflow("shop", input=list[int]).foreach(same, concurrency=2)
    await run_to_end(await shop.create_run(), [1, 2, 3], traces)
    span = traces.one("foreach same")
    assert parent_id(span) == span_id(traces.one("invoke_workflow shop"))
    assert (attributes(span)["spanflow.succeeded"], attributes(span)["spanflow.failed"]) == (3, 0)
    assert not any(key.startswith("gen_ai.") for key in attributes(span))
    items = traces.children(span)
    assert [each.name for each in items] == ["step same"] * 3
    assert [attributes(each)["spanflow.foreach.index"] for each in items] == [0, 1, 2]
    assert [attributes(each)["spanflow.step.path"] for each in items] == ["same[0]", "same[1]", "same[2]"]


async def test_a_foreach_over_nothing_is_a_span_that_counts_nothing(traces: Traces) -> None:
    await run_to_end(await Workflow("shop", input=list[int]).foreach(same).create_run(), [], traces)
    found = attributes(traces.one("foreach same"))
    assert (found["spanflow.succeeded"], found["spanflow.failed"]) == (0, 0)


async def test_a_foreach_that_collects_counts_failures_and_is_no_error(traces: Traces) -> None:
    shop = Workflow("shop", input=list[int]).foreach(fail_odd, concurrency=3, on_error="collect")
    await run_to_end(await shop.create_run(), [1, 2, 3], traces)
    found = attributes(traces.one("foreach fail_odd"))
    assert (found["spanflow.succeeded"], found["spanflow.failed"]) == (1, 2)
    assert [is_error(span) for span in traces.find("step fail_odd")] == [True, False, True]
    assert not is_error(traces.one("foreach fail_odd"))
    assert not is_error(traces.one("invoke_workflow shop"))
    assert recorded(traces) == [
        ("step fail_odd", OUT_OF_STOCK, "no 1"),
        ("step fail_odd", OUT_OF_STOCK, "no 3"),
    ]


async def test_a_foreach_that_fails_is_an_error_and_its_running_items_are_canceled(traces: Traces) -> None:
    @step
    async def fail_second(value: int) -> int:
        if value == 2:
            raise OutOfStock("no 2")
        await asyncio.Event().wait()
        return value

    shop = Workflow("shop", input=list[int]).foreach(fail_second, concurrency=2)
    await run_to_end(await shop.create_run(), [1, 2, 3], traces)
    canceled, failed = traces.find("step fail_second")
    assert attributes(canceled)["spanflow.step.status"] == "canceled"
    assert not is_error(canceled)
    assert is_error(failed)
    found = attributes(traces.one("foreach fail_second"))
    assert (found["spanflow.succeeded"], found["spanflow.failed"]) == (0, 1)
    assert found["error.type"] == OUT_OF_STOCK
    assert recorded(traces) == [("step fail_second", OUT_OF_STOCK, "no 2")]


async def test_a_foreach_over_what_is_no_list_is_recorded_on_its_span(traces: Traces) -> None:
    @step
    async def anything(value: int) -> Any:
        return 5

    await run_to_end(await workflow().then(anything).foreach(same).create_run(), 1, traces)
    kind = f"{InvalidInput.__module__}.{InvalidInput.__qualname__}"
    assert [(name, type) for name, type, _ in recorded(traces)] == [("foreach same", kind)]


async def test_a_foreach_over_nested_runs_holds_one_span_for_each_run(traces: Traces) -> None:
    shop = Workflow("shop", input=list[int]).foreach(workflow("inner").then(same).then(twice))
    await run_to_end(await shop.create_run(), [1, 2], traces)
    span = traces.one("foreach inner")
    assert (attributes(span)["spanflow.succeeded"], attributes(span)["spanflow.failed"]) == (2, 0)
    runs = traces.children(span)
    assert [each.name for each in runs] == ["invoke_workflow inner"] * 2
    assert [attributes(each)["spanflow.step.path"] for each in runs] == ["inner[0]", "inner[1]"]
    assert [attributes(each)["spanflow.foreach.index"] for each in runs] == [0, 1]
    assert [attributes(each)["spanflow.step.path"] for each in traces.children(runs[1])] == [
        "inner[1]/same",
        "inner[1]/twice",
    ]


async def test_the_arms_of_a_parallel_stand_side_by_side(traces: Traces) -> None:
    await run_to_end(await workflow().parallel(same, twice).create_run(), 1, traces)
    children = traces.children(traces.one("invoke_workflow shop"))
    assert {each.name for each in children} == {"step same", "step twice"}


async def test_a_parallel_that_collects_records_each_failure_once_and_the_group_nowhere(traces: Traces) -> None:
    @step
    async def use(value: int) -> int:
        return await weigh_nothing(item=value)

    await run_to_end(await workflow().parallel(fail, same, use, on_error="collect").create_run(), 1, traces)
    assert sorted(recorded(traces)) == [
        ("execute_tool weigh_nothing", OUT_OF_STOCK, "tool 1"),
        ("step fail", OUT_OF_STOCK, "no 1"),
    ]
    assert errors(traces)["invoke_workflow shop"] == "ExceptionGroup"


async def test_the_siblings_of_a_failed_arm_are_canceled_and_no_errors(traces: Traces) -> None:
    nested = workflow("inner").then(last_forever.with_id("deep"))
    await run_to_end(await workflow().parallel(last_forever, nested, fail).create_run(), 1, traces)
    assert set(errors(traces)) == {"step fail", "invoke_workflow shop"}
    for name in ("step last_forever", "step deep", "invoke_workflow inner"):
        assert attributes(traces.one(name))["spanflow.step.status"] == "canceled"
    assert recorded(traces) == [("step fail", OUT_OF_STOCK, "no 1")]


async def test_the_arm_that_was_taken_is_said_on_its_span(traces: Traces) -> None:
    shop = workflow().branch((lambda value: value < 3, same), (lambda value: value > 3, twice), default=fail)
    for value in (1, 5):
        await run_to_end(await shop.create_run(), value, traces)
        traces.clear()
    run = await workflow().branch((lambda value: value < 3, same), default=twice).create_run()
    await run_to_end(run, 9, traces)
    assert attributes(traces.one("step twice"))["spanflow.branch.arm"] == "default"


async def test_each_arm_of_a_branch_is_told_apart(traces: Traces) -> None:
    shop = workflow().branch((lambda value: True, same), (lambda value: True, twice), mode="all")
    await run_to_end(await shop.create_run(), 1, traces)
    first, second = traces.one("step same"), traces.one("step twice")
    assert attributes(first)["spanflow.branch.arm"] != attributes(second)["spanflow.branch.arm"]


async def test_no_branch_matched_is_recorded_on_the_run_it_belongs_to(traces: Traces) -> None:
    nested = workflow("inner").branch((lambda value: False, same))
    await run_to_end(await workflow().then(nested).create_run(), 1, traces)
    kind = f"{NoBranchMatched.__module__}.{NoBranchMatched.__qualname__}"
    assert [(name, type) for name, type, _ in recorded(traces)] == [("invoke_workflow inner", kind)]
    assert errors(traces) == {"invoke_workflow inner": kind, "invoke_workflow shop": kind}


async def test_no_branch_matched_in_the_run_itself_is_recorded_on_the_root(traces: Traces) -> None:
    await run_to_end(await workflow().branch((lambda value: False, same)).create_run(), 1, traces)
    kind = f"{NoBranchMatched.__module__}.{NoBranchMatched.__qualname__}"
    assert [(name, type) for name, type, _ in recorded(traces)] == [("invoke_workflow shop", kind)]


@pytest.mark.parametrize("where", ["root", "nested", "foreach"])
async def test_a_condition_that_raises_is_recorded_once(traces: Traces, where: str) -> None:
    nested = workflow("inner").branch((lambda value: 1 // (value - value) > 0, same))
    shop: Workflow[Any, Any] = {
        "root": nested,
        "nested": workflow().then(nested),
        "foreach": Workflow("shop", input=list[int]).foreach(nested),
    }[where]
    result = await run_to_end(await shop.create_run(), [1] if where == "foreach" else 1, traces)
    assert result.status == "failed"
    assert [(name, type) for name, type, _ in recorded(traces)] == [("invoke_workflow inner", "ZeroDivisionError")]
    assert set(errors(traces).values()) == {"ZeroDivisionError"}


async def test_a_tool_that_fails_in_a_condition_is_the_only_one_to_record_it(traces: Traces) -> None:
    async def weighed(value: int) -> bool:
        return await weigh_nothing(item=value) > 0

    await run_to_end(await workflow().then(workflow("inner").branch((weighed, same))).create_run(), 1, traces)
    assert recorded(traces) == [("execute_tool weigh_nothing", OUT_OF_STOCK, "tool 1")]
    assert parent_id(traces.one("execute_tool weigh_nothing")) == span_id(traces.one("invoke_workflow inner"))


async def test_each_iteration_of_a_loop_is_a_span_with_its_number(traces: Traces) -> None:
    await run_to_end(await workflow().do_while(twice, lambda value: value < 8).create_run(), 1, traces)
    iterations = traces.find("step twice")
    assert [attributes(each)["spanflow.loop.iteration"] for each in iterations] == [1, 2, 3]
    assert [attributes(each)["spanflow.step.path"] for each in iterations] == ["twice#1", "twice#2", "twice#3"]


async def test_a_loop_over_nested_runs_numbers_the_runs(traces: Traces) -> None:
    nested = workflow("inner").then(twice)
    await run_to_end(await workflow().do_until(nested, lambda value: value > 3).create_run(), 1, traces)
    runs = traces.find("invoke_workflow inner")
    assert [attributes(each)["spanflow.loop.iteration"] for each in runs] == [1, 2]
    assert [attributes(each)["spanflow.step.path"] for each in traces.find("step twice")] == [
        "inner#1/twice",
        "inner#2/twice",
    ]


async def test_a_loop_over_its_cap_is_recorded_once(traces: Traces) -> None:
    nested = workflow("inner").do_while(same, lambda value: True, max_iterations=2)
    await run_to_end(await workflow().then(nested).create_run(), 1, traces)
    kind = f"{LoopLimit.__module__}.{LoopLimit.__qualname__}"
    assert [(name, type) for name, type, _ in recorded(traces)] == [("invoke_workflow inner", kind)]
    assert errors(traces) == {"invoke_workflow inner": kind, "invoke_workflow shop": kind}
