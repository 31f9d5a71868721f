"""A tool is called from a step, as a step, as a stream or just so; each call is validated and reported."""

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from spanflow import Event, InvalidInput, InvalidOutput, StepContext, ToolResult, Workflow, step, tool
from tests.contract.support import lines, read_all, turns, until, untyped


class Boom(Exception):
    """What a tool of these tests raises."""


class Query(BaseModel):
    text: str
    limit: int = 3


@tool
async def search(query: str, limit: int = 3) -> list[str]:
    """Find passages that answer a query.

    Args:
        query: what to look for.
        limit: how many passages at most.
    """
    return [f"{query} {number}" for number in range(limit)]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
async def write(topic: str) -> AsyncGenerator[str, None]:
    """Write, word by word."""
    for word in ("all", "about", topic):
        yield word


@tool
async def summarise(topic: str) -> AsyncGenerator[str | ToolResult[int], None]:
    """Write, then tell how much."""
    yield "some"
    yield "words"
    yield ToolResult(2)


@tool
async def broken(query: str) -> int:
    """Fail."""
    raise Boom(f"no index for {query}")


def call(work: Any) -> Workflow[Any, Any]:
    """A workflow of one step that runs a function."""

    @step(id="work")
    async def run(value: Any) -> Any:
        outcome: Any = work()
        return await outcome if inspect.isawaitable(outcome) else outcome

    return Workflow("flow", input=Any).then(untyped(run))


async def events_of(workflow: Workflow[Any, Any], value: Any = None) -> list[Event]:
    run = await workflow.create_run()
    return await read_all(await run.stream(value))


def tool_events(events: list[Event]) -> list[Any]:
    return [event for event in events if event.type.startswith("tool-")]


# --- what a tool says of itself


def test_name_description_and_schema_come_from_signature_and_docstring() -> None:
    assert search.name == search.id == "search"
    assert search.description == "Find passages that answer a query."
    assert search.json_schema == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "what to look for."},
            "limit": {"type": "integer", "description": "how many passages at most.", "default": 3},
        },
        "required": ["query"],
        "additionalProperties": False,
    }


def test_name_and_description_may_be_given() -> None:
    @tool(id="find", description="Find it.")
    async def anything(what: Annotated[str, Field(min_length=2, description="the thing")]) -> str:
        """Not told."""
        return what

    assert (anything.name, anything.description) == ("find", "Find it.")
    assert anything.json_schema["properties"]["what"] == {
        "type": "string",
        "minLength": 2,
        "description": "the thing",
    }


def test_models_choices_and_lists_have_a_schema_too() -> None:
    @tool
    async def rank(queries: list[Query], order: Literal["asc", "desc"] = "asc") -> list[int]:
        return []

    schema = rank.json_schema
    assert schema["properties"]["order"]["enum"] == ["asc", "desc"]
    assert schema["properties"]["queries"]["type"] == "array"
    assert schema["required"] == ["queries"]
    assert "Query" in str(schema["$defs"])


# --- from a step, by await


async def test_a_call_from_a_step_is_reported_around_what_it_does() -> None:
    run = await call(lambda: search(query="trees", limit=2)).create_run()
    events = await read_all(await run.stream(None))

    assert lines(events) == [
        "start",
        "step-start work",
        "tool-call work",
        "tool-result work",
        "step-result work",
        "step-finish work",
        "finish",
    ]
    called, returned = tool_events(events)
    assert (called.payload.tool_name, called.payload.args) == ("search", {"query": "trees", "limit": 2})
    assert called.payload.tool_call_id == returned.payload.tool_call_id
    assert (returned.payload.tool_name, returned.payload.result) == ("search", ["trees 0", "trees 1"])
    assert returned.payload.error is None
    assert (await run.wait()).unwrap() == ["trees 0", "trees 1"]


async def test_positional_arguments_are_reported_by_name() -> None:
    (called, _) = tool_events(await events_of(call(lambda: search("trees"))))
    assert called.payload.args["query"] == "trees"


async def test_a_plain_def_tool_is_called_without_await() -> None:
    called, returned = tool_events(await events_of(call(lambda: add(2, b=3))))
    assert called.payload.args == {"a": 2, "b": 3}
    assert returned.payload.result == 5


async def test_calls_side_by_side_are_told_apart_by_their_ids() -> None:
    async def both() -> Any:
        return await asyncio.gather(search(query="a"), search(query="b"), search(query="a"))

    events = tool_events(await events_of(call(both)))
    calls = {event.payload.tool_call_id: event for event in events if event.type == "tool-call"}
    results = {event.payload.tool_call_id: event for event in events if event.type == "tool-result"}
    assert len(calls) == 3
    assert calls.keys() == results.keys()
    for id, event in calls.items():
        assert results[id].payload.result[0] == f"{event.payload.args['query']} 0"


async def test_a_tool_may_call_another() -> None:
    @tool
    async def outer(query: str) -> int:
        return len(await search(query=query))

    events = tool_events(await events_of(call(lambda: outer(query="trees"))))
    assert [(event.type, event.payload.tool_name) for event in events] == [
        ("tool-call", "outer"),
        ("tool-call", "search"),
        ("tool-result", "search"),
        ("tool-result", "outer"),
    ]


async def test_a_failed_call_is_reported_and_raises_in_the_step() -> None:
    run = await call(lambda: broken(query="trees")).create_run()
    called, returned = tool_events(await read_all(await run.stream(None)))
    assert called.type == "tool-call"
    assert returned.type == "tool-result"
    assert returned.payload.result is None
    assert returned.payload.error.message == "no index for trees"
    assert returned.payload.error.type.endswith("Boom")
    result = await run.wait()
    assert result.status == "failed"
    assert result.error is not None
    assert isinstance(result.error.exception, Boom)


async def test_a_step_may_catch_what_a_tool_raises() -> None:
    async def careful() -> str:
        try:
            await broken(query="trees")
        except Boom as error:
            return f"caught {error}"
        return "nothing"

    run = await call(careful).create_run()
    assert (await run.start(None)).unwrap() == "caught no index for trees"


async def test_a_canceled_call_is_reported_as_such_before_its_step() -> None:
    begun = asyncio.Event()

    @tool
    async def endless() -> int:
        begun.set()
        await asyncio.Event().wait()
        return 1

    run = await call(endless).create_run()
    stream = await run.stream(None)
    await begun.wait()
    await run.cancel()
    events = await read_all(stream)
    assert lines(events)[2:] == [
        "tool-call work",
        "tool-result work",
        "step-result work",
        "step-finish work",
        "finish",
    ]
    assert tool_events(events)[-1].payload.error is not None


async def test_a_tool_keeps_its_name_in_events_after_with_id() -> None:
    called, _ = tool_events(await events_of(call(lambda: search.with_id("find")(query="x"))))
    assert called.payload.tool_name == "find"


# --- validation


async def test_arguments_are_converted_as_the_annotations_say() -> None:
    seen: list[Any] = []

    @tool
    async def take(query: Query, numbers: list[int]) -> str:
        seen.extend([query, numbers])
        return query.text

    run = await call(lambda: untyped(take)(query={"text": "x", "limit": "7"}, numbers=["1", 2])).create_run()
    assert (await run.start(None)).unwrap() == "x"
    assert seen == [Query(text="x", limit=7), [1, 2]]


@pytest.mark.parametrize("inside", [True, False])
async def test_arguments_that_do_not_fit_are_refused_with_the_field(inside: bool) -> None:
    async def wrong() -> Any:
        return await search(query="x", limit=untyped("many"))

    if not inside:
        with pytest.raises(InvalidInput, match=r"'search'.*limit.*integer.*'many'"):
            await wrong()
        return
    run = await call(wrong).create_run()
    events = await read_all(await run.stream(None))
    result = await run.wait()
    assert result.error is not None
    assert isinstance(result.error.exception, InvalidInput)
    assert "limit" in result.error.message
    assert tool_events(events)[-1].payload.error.message == result.error.message


@pytest.mark.parametrize("inside", [True, False])
async def test_a_result_that_does_not_fit_is_an_invalid_output(inside: bool) -> None:
    @tool
    async def count(query: str) -> int:
        return untyped("many")

    if not inside:
        with pytest.raises(InvalidOutput, match=r"'count'.*int.*'many'"):
            await count(query="x")
        return
    run = await call(lambda: count(query="x")).create_run()
    events = await read_all(await run.stream(None))
    result = await run.wait()
    assert result.error is not None
    assert isinstance(result.error.exception, InvalidOutput)
    assert tool_events(events)[-1].payload.error is not None


def test_missing_and_unknown_arguments_are_refused_as_python_would() -> None:
    with pytest.raises(TypeError, match="b"):
        untyped(add)(1)
    with pytest.raises(TypeError, match="c"):
        untyped(add)(1, 2, c=3)


# --- streaming


async def test_a_streaming_tool_reports_each_value_and_the_last_is_its_result() -> None:
    run = await call(lambda: write(topic="trees")).create_run()
    events = tool_events(await read_all(await run.stream(None)))
    assert [event.type for event in events] == [
        "tool-call",
        "tool-call-streaming-start",
        "tool-call-delta",
        "tool-call-delta",
        "tool-call-delta",
        "tool-result",
    ]
    assert [event.payload.delta for event in events[2:5]] == ["all", "about", "trees"]
    assert events[-1].payload.result == "trees"
    assert len({event.payload.tool_call_id for event in events}) == 1
    assert (await run.wait()).unwrap() == "trees"


async def test_a_tool_result_is_the_result_in_place_of_the_last_value() -> None:
    run = await call(lambda: summarise(topic="trees")).create_run()
    events = tool_events(await read_all(await run.stream(None)))
    assert [event.payload.delta for event in events if event.type == "tool-call-delta"] == ["some", "words"]
    assert events[-1].payload.result == 2
    assert (await run.wait()).unwrap() == 2


async def test_a_streaming_tool_may_be_iterated_in_the_step() -> None:
    async def collect() -> list[str]:
        return [word async for word in write(topic="trees")]

    run = await call(collect).create_run()
    events = tool_events(await read_all(await run.stream(None)))
    assert (await run.wait()).unwrap() == ["all", "about", "trees"]
    assert [event.type for event in events][-1] == "tool-result"
    assert events[-1].payload.result == "trees"
    assert len(events) == 6


async def test_values_reach_the_reader_while_the_tool_still_runs() -> None:
    go = asyncio.Event()

    @tool
    async def slow(topic: str) -> AsyncGenerator[str, None]:
        yield "first"
        await go.wait()
        yield "second"

    run = await call(lambda: slow(topic="x")).create_run()
    stream = await run.stream(None)
    async with asyncio.timeout(30):
        assert (await until(stream, "tool-call-delta")).payload.delta == "first"
    go.set()
    assert (await stream.get_workflow_state()).unwrap() == "second"


async def test_a_stream_that_breaks_off_reports_its_error_after_what_it_gave() -> None:
    @tool
    async def breaks(topic: str) -> AsyncGenerator[str, None]:
        yield "one"
        raise Boom("line cut")

    run = await call(lambda: breaks(topic="x")).create_run()
    events = tool_events(await read_all(await run.stream(None)))
    assert [event.type for event in events] == [
        "tool-call",
        "tool-call-streaming-start",
        "tool-call-delta",
        "tool-result",
    ]
    assert events[-1].payload.error.message == "line cut"
    assert (await run.wait()).status == "failed"


async def test_a_step_that_leaves_a_tools_stream_early_has_the_call_ended_before_its_own_end() -> None:
    closed: list[str] = []

    @tool
    async def endless(topic: str) -> AsyncGenerator[int, None]:
        try:
            for number in range(1_000_000):
                yield number
        finally:
            closed.append(topic)

    async def first_two() -> list[int]:
        seen: list[int] = []
        async for number in endless(topic="x"):
            seen.append(number)
            if len(seen) == 2:
                break
        return seen

    run = await call(first_two).create_run()
    events = await read_all(await run.stream(None))
    await turns()
    assert (await run.wait()).unwrap() == [0, 1]
    assert closed == ["x"]
    kinds = [event.type for event in events if event.path == "work"]
    assert kinds.count("tool-result") == 1
    assert kinds[-3:] == ["tool-result", "step-result", "step-finish"]


async def test_an_empty_stream_has_the_result_none() -> None:
    @tool
    async def nothing(topic: str) -> AsyncGenerator[str | None, None]:
        for word in ():
            yield word

    run = await call(lambda: nothing(topic="x")).create_run()
    events = tool_events(await read_all(await run.stream(None)))
    assert [event.type for event in events] == ["tool-call", "tool-call-streaming-start", "tool-result"]
    assert (await run.wait()).unwrap() is None


async def test_an_async_iterator_annotation_streams_as_well() -> None:
    @tool
    async def letters(word: str) -> AsyncIterator[str]:
        for letter in word:
            yield letter

    assert [letter async for letter in letters(word="abc")] == ["a", "b", "c"]
    assert await letters(word="abc") == "c"


# --- as a step


async def test_a_tool_as_a_step_takes_a_mapping_a_model_or_a_dataclass() -> None:
    @dataclass
    class Wanted:
        query: str
        limit: int

    class Model(BaseModel):
        query: str

    for kind, value, found in (
        (dict[str, Any], {"query": "a", "limit": 1}, ["a 0"]),
        (Model, Model(query="b"), ["b 0", "b 1", "b 2"]),
        (Wanted, Wanted(query="c", limit=2), ["c 0", "c 1"]),
    ):
        run = await untyped(Workflow("flow", input=kind)).then(search).create_run()
        assert (await run.start(value)).unwrap() == found


async def test_a_tool_with_one_argument_takes_the_value_itself() -> None:
    @tool
    async def shout(text: str) -> str:
        return text.upper()

    @tool
    async def first(query: Query) -> str:
        return query.text

    run = await Workflow("flow", input=str).then(shout).map(lambda text: Query(text=text)).then(first).create_run()
    assert (await run.start("trees")).unwrap() == "TREES"


async def test_a_tool_as_a_step_is_a_step_and_a_call() -> None:
    run = await Workflow("flow", input=dict[str, Any]).then(search).create_run()
    events = await read_all(await run.stream({"query": "trees"}))
    assert lines(events) == [
        "start",
        "step-start search",
        "tool-call search",
        "tool-result search",
        "step-result search",
        "step-finish search",
        "finish",
    ]


async def test_a_tool_stands_wherever_a_step_may_stand() -> None:
    @tool
    async def half(value: int) -> int:
        return value // 2

    flow = (
        Workflow("flow", input=int)
        .then(half)
        .parallel(half.with_id("left"), half.with_id("right"))
        .map(lambda pair: sum(pair), id="sum")
        .branch((lambda value: value > 0, half.with_id("b")), default=half.with_id("c"))
        .do_while(half.with_id("down"), lambda value: value > 1)
        .map(lambda value: [value, 8], id="listed")
    )
    run = await untyped(flow).foreach(half.with_id("each"), concurrency=2).create_run()
    assert (await run.start(64)).unwrap() == [0, 4]


async def test_a_streaming_tool_as_a_step_streams() -> None:
    run = await Workflow("flow", input=str).then(write).create_run()
    events = tool_events(await read_all(await run.stream("trees")))
    assert [event.payload.delta for event in events if event.type == "tool-call-delta"] == ["all", "about", "trees"]
    assert (await run.wait()).unwrap() == "trees"


async def test_a_plain_def_tool_as_a_step_runs_in_a_thread() -> None:
    threads: list[int] = []

    @tool
    def work(value: int) -> int:
        threads.append(threading.get_ident())
        return value + 1

    run = await Workflow("flow", input=int).then(work).create_run()
    events = await read_all(await run.stream(1))
    assert (await run.wait()).unwrap() == 2
    assert threads
    assert threading.get_ident() not in threads
    assert [event.type for event in tool_events(events)] == ["tool-call", "tool-result"]


async def test_arguments_of_a_tool_as_a_step_that_do_not_fit_fail_the_step_with_the_field() -> None:
    run = await Workflow("flow", input=dict[str, Any]).then(search).create_run()
    result = await run.start({"query": "x", "limit": "many"})
    assert result.status == "failed"
    assert result.error is not None
    assert isinstance(result.error.exception, InvalidInput)
    assert "limit" in result.error.message
    assert "'search'" in result.error.message


async def test_a_plain_def_tool_that_runs_into_the_end_of_an_iterator_does_not_hang() -> None:
    @tool
    def first(values: list[int]) -> int:
        return next(iter(values))

    run = await Workflow("flow", input=list[int]).then(first).create_run()
    async with asyncio.timeout(30):
        assert (await run.start([])).status == "failed"


# --- outside a run


async def test_outside_a_run_a_tool_is_just_the_function_validated() -> None:
    assert await search(query="trees", limit=untyped("2")) == ["trees 0", "trees 1"]
    assert add(2, 3) == 5
    assert await write(topic="trees") == "trees"
    assert [word async for word in write(topic="trees")] == ["all", "about", "trees"]
    assert await summarise(topic="x") == 2
    with pytest.raises(Boom):
        await broken(query="x")


async def test_a_tool_in_a_condition_or_map_works_too() -> None:
    async def found(value: str) -> bool:
        return len(await search(query=value)) == 3

    @step
    async def echo(value: str, ctx: StepContext) -> str:
        return value

    async def look(value: str) -> list[str]:
        return await search(query=value, limit=1)

    run = await Workflow("flow", input=str).branch((found, echo)).map(look).create_run()
    assert (await run.start("x")).unwrap() == ["x 0"]
