"""Each kind of bad input: the right error, a text that says what was expected and what to do, and nothing recorded."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from spanflow import (
    DefinitionError,
    InvalidInput,
    InvalidOutput,
    LoopLimit,
    MemoryStore,
    NoBranchMatched,
    NotSuspended,
    Retry,
    Run,
    RunConflict,
    RunFailed,
    RunNotFound,
    Runtime,
    SpanflowError,
    SQLiteStore,
    StepContext,
    TracingOptions,
    UnknownEvent,
    Workflow,
    WorkflowResult,
    step,
    tool,
)
from spanflow.events import parse_event
from spanflow.ports import RunRecord
from spanflow.testing import Metrics, Traces
from tests.contract.support import lines, recorded, turns, untyped


class Order(BaseModel):
    items: list[str]
    price: float = 0


class Progress(BaseModel):
    done: int = 0


@step
async def double(value: int) -> int:
    return 2 * value


@step
async def describe(value: int) -> str:
    return f"number {value}"


@step
async def measure(text: str) -> int:
    return len(text)


@step
async def pack(order: Order) -> int:
    return len(order.items)


@step
async def approve(value: int, ctx: StepContext) -> int:
    return await ctx.suspend("well?", resume=int)


ORDERS = Workflow("orders", input=Order, state=Progress).then(pack)


def says(error: BaseException, *words: str) -> None:
    """The error is ours, and its text holds these words and is not too long to be read."""
    text = str(error)
    assert isinstance(error, SpanflowError)
    assert [word for word in words if word not in text] == [], text
    assert len(text) < 1000


async def failed(workflow: Workflow[Any, Any], value: Any) -> WorkflowResult[Any]:
    """The result of a run that must fail; its error is ours."""
    run = await workflow.create_run()
    result = await run.start(value)
    assert result.status == "failed"
    assert result.error is not None
    assert isinstance(result.error.exception, SpanflowError)
    return result


# --- refused before anything is recorded


INPUTS: dict[str, tuple[Any, list[str]]] = {
    "a missing field": ({}, ["orders", "Order", "items"]),
    "a field of another type": ({"items": "apples"}, ["orders", "items", "list", "'apples'"]),
    "deep inside": ({"items": ["a", 2, None]}, ["orders", "items[1]", "string"]),
    "something else": (7, ["orders", "Order", "7"]),
    "nothing": (None, ["orders", "Order"]),
}


@pytest.mark.parametrize("call", ["start", "stream"])
@pytest.mark.parametrize("case", INPUTS)
async def test_wrong_input_is_refused_with_the_field_and_the_run_is_as_new(case: str, call: str) -> None:
    value, words = INPUTS[case]
    async with Runtime(workflows=[ORDERS]) as runtime:
        run = await runtime.create_run(ORDERS, run_id="r-1")
        with pytest.raises(InvalidInput) as caught:
            await getattr(run, call)(value)
        says(caught.value, *words)
        await nothing_recorded(runtime, "r-1")
        assert (await run.start(untyped({"items": ["a"]}))).unwrap() == 1


async def nothing_recorded(runtime: Runtime, run_id: str) -> None:
    assert not await runtime.find_runs()
    with pytest.raises(RunNotFound):
        await runtime.get_run(run_id)


OPTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a state that does not fit": ({"initial_state": {"done": "much"}}, ["orders", "initial_state", "Progress", "done"]),
    "a state of another kind": ({"initial_state": 7}, ["orders", "initial_state", "Progress"]),
    "a context that is no mapping": ({"runtime_context": ["tier"]}, ["runtime_context", "mapping", "list"]),
    "a context that is not JSON": (
        {"runtime_context": {"pool": object()}},
        ["runtime_context", "pool", "object", "deps"],
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
async def test_wrong_options_of_a_start_are_refused(case: str) -> None:
    options, words = OPTIONS[case]
    async with Runtime(workflows=[ORDERS]) as runtime:
        run = await runtime.create_run(ORDERS, run_id="r-1")
        with pytest.raises(InvalidInput) as caught:
            await run.start(Order(items=[]), **options)
        says(caught.value, *words)
        await nothing_recorded(runtime, "r-1")
        assert (await run.start(Order(items=[]))).status == "success"


@pytest.mark.parametrize("run_id", ["", "  ", 7])
async def test_an_id_that_is_no_text_is_refused(run_id: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        await ORDERS.create_run(run_id=run_id)
    says(caught.value, "run_id", repr(run_id))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trace_id": "xyz"}, ["trace_id", "'xyz'", "hex"]),
        ({"trace_id": "0" * 32}, ["trace_id", "zero"]),
        ({"trace_id": "a" * 33}, ["trace_id", "32"]),
        ({"trace_id": "a" * 32, "parent_span_id": "b" * 17}, ["parent_span_id", "16"]),
        ({"parent_span_id": "b" * 16}, ["parent_span_id", "trace_id"]),
        ({"resume": "new"}, ["resume", "'new'", "'same'", "'link'"]),
    ],
)
def test_tracing_options_that_cannot_be_are_refused_where_they_are_made(
    options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        TracingOptions(**options)
    says(caught.value, *words)


ODD_METADATA: dict[str, Any] = {
    "none": {"a": None},
    "no text as key": {1: "one", None: "nothing", ("a", "b"): "pair"},
    "nested": {"user": {"id": "u-42", "groups": [["a"], {"b": None}]}},
    "huge": {"blob": "x" * 1_000_000, **{f"key{number}": number for number in range(500)}},
    "colliding": {"a.b": 1, "a": {"b": 2}, "spanflow.run.id": "mine", "gen_ai.operation.name": "mine"},
    "live objects": {"client": object(), "error": ValueError("x"), "bytes": b"\xff", "set": {1, 2}},
    "not finite": {"nan": float("nan"), "inf": float("inf"), "big": 2**80},
}


@pytest.mark.parametrize("case", ODD_METADATA)
async def test_odd_metadata_never_refuses_or_breaks_a_run(case: str) -> None:
    async with Runtime(workflows=[ORDERS]) as runtime:
        run = await runtime.create_run(ORDERS, run_id="r-1")
        options = TracingOptions(metadata=ODD_METADATA[case])
        assert (await run.start(Order(items=["a"]), tracing_options=options)).unwrap() == 1
        start = (await recorded(run))[0]
        assert parse_event(start.model_dump_json()).type == "start"
        assert isinstance(json.loads(start.model_dump_json())["payload"]["metadata"], dict)
        assert [run.run_id for run in await runtime.find_runs()] == ["r-1"]


async def test_metadata_that_contains_itself_does_not_hang_a_run() -> None:
    metadata: dict[str, Any] = {"user.id": "u-42"}
    metadata["self"] = metadata
    run = await ORDERS.create_run()
    async with asyncio.timeout(30):
        assert (await run.start(Order(items=[]), tracing_options=TracingOptions(metadata=metadata))).unwrap() == 0


# --- a second start


@pytest.mark.parametrize("second", ["start", "stream"])
@pytest.mark.parametrize("first", ["running", "success", "suspended", "canceled"])
async def test_a_second_start_is_refused_whatever_the_run_does(first: str, second: str) -> None:
    go = asyncio.Event()

    @step
    async def work(value: int) -> int:
        await go.wait()
        return value

    flow = Workflow("flow", input=int)
    run = await (flow.then(work) if first in ("running", "canceled") else flow.then(approve)).create_run()
    await run.stream(1)
    await turns()
    if first == "success":
        await run.wait()
        await run.resume(1)
    elif first == "suspended":
        await run.wait()
    elif first == "canceled":
        await run.cancel()

    before = (await run.cancel() if first == "canceled" else None, run.trace_id)
    with pytest.raises(RunConflict) as caught:
        await getattr(run, second)(2)
    says(caught.value, repr(run.run_id), "create_run", "resume")
    assert caught.value.run_id == run.run_id
    assert run.trace_id == before[1]

    go.set()
    result = await run.wait()
    assert result.status == {"running": "success"}.get(first, first)
    events = await recorded(run)
    assert [event.type for event in events].count("start") == (2 if first == "success" else 1)
    assert events[0].type == "start"
    assert events[0].payload.input == 1


async def test_of_two_starts_at_once_one_is_refused() -> None:
    run = await Workflow("flow", input=int).then(double).create_run()
    outcomes = await asyncio.gather(run.start(1), run.start(2), return_exceptions=True)
    assert [isinstance(each, RunConflict) for each in outcomes] == [False, True]
    assert (await run.wait()).unwrap() == 2


async def test_a_run_id_that_is_taken_is_refused_and_the_first_run_is_untouched() -> None:
    flow = Workflow("flow", input=int).then(double)
    async with Runtime(store=MemoryStore(), workflows=[flow]) as runtime:
        first = await runtime.create_run(flow, run_id="r-1")
        await first.start(1)
        before = lines(await recorded(first))
        second = await runtime.create_run(flow, run_id="r-1")
        with pytest.raises(RunConflict) as caught:
            await second.start(2)
        says(caught.value, "'r-1'", "run_id", "get_run")
        assert lines(await recorded(first)) == before
        assert (await first.wait()).unwrap() == 2


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_run_id_that_is_taken_leaves_no_span_behind_and_no_run_that_counts_as_active(
    kind: str, tmp_path: Path, traces: Traces, metrics: Metrics
) -> None:
    flow = Workflow("flow", input=int).then(double)
    store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "runs.db")
    async with Runtime(store=store, workflows=[flow]) as runtime:
        await (await runtime.create_run(flow, run_id="r-1")).start(1)
        second = await runtime.create_run(flow, run_id="r-1")
        with pytest.raises(RunConflict):
            await second.start(2)
    assert traces.open == ()
    traces.assert_complete()
    assert metrics.one("spanflow.runs.active").sum == 0
    assert second.trace_id is None


class Slow(MemoryStore):
    """Lets others go first."""

    async def load(self, run_id: str) -> RunRecord:
        try:
            return await super().load(run_id)
        finally:
            await turns(3)


async def test_a_run_id_that_is_taken_at_the_same_moment_leaves_one_run() -> None:
    flow = Workflow("flow", input=int).then(double)
    async with Runtime(store=Slow(), workflows=[flow]) as runtime:
        one, other = await runtime.create_run(flow, run_id="r-1"), await runtime.create_run(flow, run_id="r-1")
        outcomes = await asyncio.gather(one.start(1), one.start(2), other.start(3), return_exceptions=True)
        assert [isinstance(each, RunConflict) for each in outcomes] == [False, True, True]
        assert (await one.cancel()).unwrap() == 2, "it has forgotten that it was started"
        assert [event.type for event in await recorded(one)].count("start") == 1


async def test_a_run_that_was_found_again_cannot_be_started() -> None:
    flow = Workflow("flow", input=int).then(double)
    async with Runtime(workflows=[flow]) as runtime:
        await (await runtime.create_run(flow, run_id="r-1")).start(1)
        found = await runtime.get_run("r-1")
        with pytest.raises(RunConflict):
            await found.start(2)
        assert (await found.wait()).unwrap() == 2


# --- resume


async def test_resume_of_what_does_not_wait_is_refused_and_records_nothing() -> None:
    flow = Workflow("flow", input=int).then(double).then(approve)
    fresh = await flow.create_run()
    with pytest.raises(RunConflict) as caught:
        await fresh.resume(1)
    says(caught.value, repr(fresh.run_id), "start")

    run = await flow.create_run()
    await run.start(1)
    before = lines(await recorded(run))
    for name in ("double", "nowhere"):
        with pytest.raises(NotSuspended) as caught:
            await run.resume(1, step=name)
        says(caught.value, repr(name), "'approve'")
        assert caught.value.suspended == ("approve",)
    with pytest.raises(InvalidInput) as wrong:
        await run.resume("yes")
    says(wrong.value, "'approve'", "int", "'yes'")
    assert lines(await recorded(run)) == before

    await run.resume(1)
    after = lines(await recorded(run))
    with pytest.raises(NotSuspended) as caught:
        await run.resume(1)
    says(caught.value, repr(run.run_id), "success")
    assert lines(await recorded(run)) == after


async def test_an_unknown_run_is_an_error_with_its_id_and_what_to_check() -> None:
    async with Runtime(workflows=[ORDERS]) as runtime:
        with pytest.raises(RunNotFound) as caught:
            await runtime.get_run("r-404")
        says(caught.value, "'r-404'", "store", "id")
        assert caught.value.run_id == "r-404"


async def test_a_run_of_a_workflow_that_the_runtime_does_not_know_names_both() -> None:
    store, flow = MemoryStore(), Workflow("flow", input=int).then(double)
    async with Runtime(store=store, workflows=[flow]) as runtime:
        await (await runtime.create_run(flow, run_id="r-1")).start(1)
    async with Runtime(store=store, workflows=[ORDERS]) as other:
        with pytest.raises(SpanflowError) as caught:
            await other.get_run("r-1")
        says(caught.value, "'r-1'", "'flow'", "'orders'", "workflows=")


async def test_of_two_resumes_at_once_the_second_is_refused() -> None:
    run = await Workflow("flow", input=int).then(approve).create_run()
    await run.start(1)
    outcomes = await asyncio.gather(run.resume(1), run.resume(2), return_exceptions=True)
    (refused,) = [each for each in outcomes if isinstance(each, BaseException)]
    assert isinstance(refused, RunConflict)
    says(refused, repr(run.run_id))
    assert (await run.wait()).unwrap() == 1
    assert [event.type for event in await recorded(run)].count("start") == 2


async def test_an_unknown_event_is_refused_before_the_start_and_after() -> None:
    flow = Workflow("flow", input=int).wait_for_event("go", int)
    run = await flow.create_run()
    for is_started in (False, True):
        if is_started:
            await run.stream(1)
            await turns()
        with pytest.raises(UnknownEvent) as caught:
            await run.send_event("stop", 1)
        says(caught.value, "'stop'", "'flow'", "'go'")
    await run.send_event("go", 5)
    assert (await run.wait()).unwrap() == 5
    assert "stop" not in "".join(event.model_dump_json() for event in await recorded(run))


# --- definitions


@tool
async def lookup(key: str, limit: int) -> str:
    return key * limit


def base() -> Any:
    return Workflow("base", input=int)


def numbers() -> Any:
    return Workflow("base", input=list[int])


DEFINITIONS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "duplicate ids": (lambda: base().then(double).then(double), ["'base'", "'double'", "with_id"]),
    "a pipe that does not fit": (
        lambda: base().then(double).then(measure),
        ["'base'", "'double'", "int", "'measure'", "str", ".map("],
    ),
    "a tool without its arguments": (lambda: base().then(lookup), ["'base'", "'lookup'", "key", "limit", "int"]),
    "foreach over no list": (lambda: base().foreach(double), ["'base'", "double", "list", "int", ".map("]),
    "no step": (lambda: base().then(abs), ["'base'", "@step"]),
    "no arms": (lambda: base().parallel(), ["'base'", "parallel", "at least one"]),
    "a bad id": (lambda: double.with_id("a/b"), ["'a/b'", "/"]),
    "a type nobody knows": (lambda: untyped(step)(_of_unknown_type), ["Nowhere"]),
    "two values": (lambda: untyped(step)(_of_two_values), ["_of_two_values", "(value)", "StepContext"]),
}


def _of_unknown_type(value: "Nowhere") -> int:  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType]  # noqa: F821
    return 1


def _of_two_values(a: int, b: int, c: int) -> int:
    return a + b + c


@pytest.mark.parametrize("case", DEFINITIONS)
def test_a_definition_that_cannot_work_is_refused_while_it_is_built(case: str) -> None:
    build, words = DEFINITIONS[case]
    with pytest.raises(DefinitionError) as caught:
        build()
    says(caught.value, *words)


OUT_OF_RANGE: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "no attempts": (lambda: Retry(max_attempts=0), ["max_attempts=0", "1"]),
    "half an attempt": (lambda: Retry(max_attempts=untyped(2.5)), ["max_attempts=2.5"]),
    "attempts in words": (lambda: Retry(max_attempts=untyped("3")), ["max_attempts='3'"]),
    "a negative delay": (lambda: Retry(delay=-1), ["delay=-1", "0"]),
    "no number as delay": (lambda: Retry(delay=float("nan")), ["delay=nan"]),
    "a delay without end": (lambda: Retry(delay=float("inf"), max_delay=float("inf")), ["delay=inf"]),
    "a delay in words": (lambda: Retry(delay=untyped("1s")), ["delay='1s'"]),
    "a backoff that shrinks": (lambda: Retry(backoff=0.5), ["backoff=0.5", "1"]),
    "a negative limit": (lambda: Retry(max_delay=-1), ["max_delay=-1"]),
    "too much jitter": (lambda: Retry(jitter=1.5), ["jitter=1.5", "0", "1"]),
    "no exception class": (lambda: Retry(retry_on=untyped("ValueError")), ["retry_on", "'ValueError'"]),
    "an instance": (lambda: Retry(give_up_on=untyped(ValueError("x"))), ["give_up_on"]),
    "a list of classes": (lambda: Retry(retry_on=untyped([ValueError])), ["retry_on", "tuple"]),
    "no timeout": (lambda: step(timeout=0)(_inc), ["timeout=0", "0"]),
    "a negative timeout": (lambda: step(timeout=-5)(_inc), ["timeout=-5"]),
    "no number as timeout": (lambda: step(timeout=float("nan"))(_inc), ["timeout=nan"]),
    "a timeout in words": (lambda: step(timeout=untyped("5s"))(_inc), ["timeout='5s'"]),
    "a retry that is none": (lambda: step(retry=untyped(3))(_inc), ["retry=3", "Retry"]),
    "a workflow's retry that is none": (lambda: Workflow("w", input=int, retry=untyped(3)), ["retry=3", "Retry"]),
    "no concurrency": (lambda: numbers().foreach(double, concurrency=0), ["concurrency=0", "1"]),
    "half a worker": (lambda: numbers().foreach(double, concurrency=1.5), ["concurrency=1.5"]),
    "concurrency in words": (lambda: numbers().foreach(double, concurrency="2"), ["concurrency='2'"]),
    "an unknown on_error": (
        lambda: numbers().foreach(double, on_error="ignore"),
        ["on_error='ignore'", "'fail'", "'collect'"],
    ),
    "an unknown on_error of parallel": (
        lambda: base().parallel(double, describe, on_error="ignore"),
        ["on_error='ignore'", "'fail'", "'collect'"],
    ),
    "an unknown mode": (lambda: base().branch((bool, double), mode="any"), ["mode='any'", "'first'", "'all'"]),
    "no iterations": (lambda: base().do_while(double, bool, max_iterations=0), ["max_iterations=0", "1"]),
    "iterations in words": (lambda: base().do_until(double, bool, max_iterations="9"), ["max_iterations='9'"]),
    "half an iteration": (lambda: base().do_until(double, bool, max_iterations=1.5), ["max_iterations=1.5"]),
    "a negative sleep": (lambda: base().sleep(-1), ["-1", "0"]),
    "a sleep without end": (lambda: base().sleep(float("inf")), ["inf"]),
    "a sleep of no number": (lambda: base().sleep(float("nan")), ["nan"]),
    "a sleep in words": (lambda: base().sleep("soon"), ["'soon'", "sleep"]),
    "a moment without a zone": (lambda: base().sleep_until(datetime(2030, 1, 1)), ["time zone", "2030"]),  # noqa: DTZ001
    "a moment in words": (lambda: base().sleep_until("tomorrow"), ["'tomorrow'", "sleep_until"]),
    "no wait": (lambda: base().wait_for_event("go", timeout=0), ["timeout=0"]),
    "a wait without end": (lambda: base().wait_for_event("go", timeout=float("inf")), ["timeout=inf"]),
    "a wait in words": (lambda: base().wait_for_event("go", timeout="1h"), ["timeout='1h'"]),
    "an event without a name": (lambda: base().wait_for_event(None), ["None"]),
    "an event without a name, with an id": (lambda: base().wait_for_event("", id="news"), ["''", "name"]),
    "an id that is no text": (lambda: Workflow(untyped(7), input=int), ["7"]),
    "a step's id that is no text": (lambda: double.with_id(untyped(7)), ["7"]),
    "a state that is no model": (lambda: Workflow("w", input=int, state=untyped(int)), ["state", "int", "BaseModel"]),
}


def _inc(value: int) -> int:
    return value + 1


@pytest.mark.parametrize("case", OUT_OF_RANGE)
def test_an_option_out_of_range_is_refused_with_its_value_and_its_range(case: str) -> None:
    build, words = OUT_OF_RANGE[case]
    with pytest.raises(DefinitionError) as caught:
        build()
    says(caught.value, *words)


# --- at run time


async def test_an_output_that_fails_its_model_fails_the_step_with_the_field_named() -> None:
    @step
    async def give(value: int) -> Order:
        return untyped({"items": ["a"], "price": "much"})

    result = await failed(Workflow("flow", input=int).then(give).then(pack), 1)
    assert result.error is not None
    error = result.error.exception
    assert isinstance(error, InvalidOutput)
    says(error, "'give'", "Order", "price", "'much'")
    assert result.error.path == "give"
    assert "pack" not in result.steps


async def test_a_plain_def_that_returns_a_coroutine_is_told_to_be_async() -> None:
    async def later() -> int:
        return 1

    @step
    def give(value: int) -> int:
        return untyped(later())

    result = await failed(Workflow("flow", input=int).then(give), 1)
    assert result.error is not None
    assert result.error.exception is not None
    says(result.error.exception, "'give'", "async def")


async def test_an_input_that_only_the_run_can_check_fails_the_step_with_the_field_named() -> None:
    async def give(value: int) -> Any:
        return {"items": [1]}

    result = await failed(Workflow("flow", input=int).map(give).then(pack), 1)
    assert result.error is not None
    assert result.error.exception is not None
    says(result.error.exception, "'pack'", "Order", "items[0]")
    assert result.error.path == "pack"


async def test_a_loop_over_its_cap_a_branch_without_a_match_and_no_list_say_what_to_do() -> None:
    loop = await failed(Workflow("flow", input=int).do_while(double, lambda value: True, max_iterations=3), 1)
    branch = await failed(Workflow("flow", input=int).branch((lambda value: False, double)), 1)
    items = await failed(Workflow("flow", input=Any).foreach(untyped(double)), "abc")

    for result, kind, words in (
        (loop, LoopLimit, ["'double'", "3", "max_iterations", "condition"]),
        (branch, NoBranchMatched, ["branch", "double", "default"]),
        (items, InvalidInput, ["'double'", "list", "str"]),
    ):
        assert result.error is not None
        assert isinstance(result.error.exception, kind)
        says(result.error.exception, *words)


async def test_a_condition_that_raises_fails_the_run_with_its_own_exception() -> None:
    def condition(value: int) -> bool:
        raise KeyError("tier")

    run = await Workflow("flow", input=int).branch((condition, double), id="by_tier").create_run()
    result = await run.start(1)
    assert result.error is not None
    assert isinstance(result.error.exception, KeyError)
    assert result.error.path == "by_tier"
    with pytest.raises(RunFailed) as caught:
        result.unwrap()
    says(caught.value, repr("by_tier"), "KeyError", "tier")
    assert isinstance(caught.value.__cause__, KeyError)


async def test_bad_input_never_lets_an_error_of_pydantic_out() -> None:
    run: Run[Any, Any] = await ORDERS.create_run()
    for call in (run.start, run.stream):
        with pytest.raises(SpanflowError):
            await call({"items": 1})
    with pytest.raises(SpanflowError):
        untyped(Workflow)("w", input="not a type at all")
