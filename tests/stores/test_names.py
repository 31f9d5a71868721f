"""Texts by which runs are found: what one store could not hold or look for is refused by all of them alike."""

from datetime import UTC, datetime
from typing import Any

import pytest

from spanflow import (
    DefinitionError,
    InvalidInput,
    RunNotFound,
    Runtime,
    StepContext,
    TracingOptions,
    UnknownEvent,
    Workflow,
    step,
)
from spanflow.ports import Store


@step
async def double(value: int, ctx: StepContext) -> int:
    ctx.set_state(text="a\0b")
    return 2 * value


TWICE = Workflow("twice", input=int).then(double)
ODD = ["a\0b", "half \ud83d", "x" * 501, "ä" * 10_000, "\n"]
odd = pytest.mark.parametrize("text", ODD, ids=["NUL", "surrogate", "long", "very long", "line end"])


@odd
async def test_a_run_or_resource_id_that_some_store_could_not_hold_is_refused(store: Store, text: str) -> None:
    async with Runtime(store=store, workflows=[TWICE]) as runtime:
        with pytest.raises(InvalidInput, match=r"run_id=.* 1 to 500 characters"):
            await runtime.create_run(TWICE, run_id=text)
        with pytest.raises(InvalidInput, match=r"resource_id=.* 1 to 500 characters"):
            await runtime.create_run(TWICE, resource_id=text)
        assert await runtime.find_runs() == []


async def test_a_resource_id_is_a_text(store: Store) -> None:
    async with Runtime(store=store, workflows=[TWICE]) as runtime:
        wrong: Any = object()
        with pytest.raises(InvalidInput, match=r"resource_id=<object"):
            await runtime.create_run(TWICE, resource_id=wrong)


@pytest.mark.parametrize("text", ["🦓" * 500, "a/b?c=d&e='\"\\ %s {}", "ä ö"])
async def test_any_other_id_is_one(store: Store, text: str) -> None:
    async with Runtime(store=store, workflows=[TWICE]) as runtime:
        run = await runtime.create_run(TWICE, run_id=text, resource_id=text)
        assert (await run.start(1)).unwrap() == 2
        assert (await (await runtime.get_run(text)).wait()).state == {"text": "a\0b"}
        assert [found.run_id for found in await runtime.find_runs()] == [text]
        await runtime.delete_run(text)


@odd
async def test_what_no_run_can_be_called_is_not_found(store: Store, text: str) -> None:
    async with Runtime(store=store, workflows=[TWICE]) as runtime:
        await (await runtime.create_run(TWICE)).start(1)
        with pytest.raises(RunNotFound):
            await runtime.get_run(text)
        with pytest.raises(RunNotFound):
            await runtime.delete_run(text)
        assert await runtime.find_runs(workflow=text) == []
        assert await runtime.find_runs(trace_id=text) == []
        assert await runtime.find_runs(metadata={"key": text}) == []


@odd
async def test_metadata_of_any_text_is_kept_and_found(store: Store, text: str) -> None:
    options = TracingOptions(metadata={"key": text, text: 1}, user_id=text, tags=[text])
    async with Runtime(store=store, workflows=[TWICE]) as runtime:
        run = await runtime.create_run(TWICE)
        assert (await run.start(1, tracing_options=options, runtime_context={"a\0b": "c\0d"})).unwrap() == 2
        for metadata in ({"key": text}, {text: 1}):
            assert [found.run_id for found in await runtime.find_runs(metadata=metadata)] == [run.run_id]


@odd
async def test_an_event_of_such_a_name_is_one_that_nobody_waits_for(store: Store, text: str) -> None:
    waiting = Workflow("waiting", input=int).wait_for_event("news", payload=str)
    async with Runtime(store=store, workflows=[waiting]) as runtime:
        run = await runtime.create_run(waiting)
        stream = await run.stream(1)
        with pytest.raises(UnknownEvent):
            await run.send_event(text, "what?")
        await run.send_event("news", "a\0b")
        assert (await stream.get_workflow_state()).unwrap() == "a\0b"
    with pytest.raises(DefinitionError, match="wait_for_event"):
        Workflow("waiting", input=int).wait_for_event(text, payload=str, id="news")


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
async def test_a_page_of_runs_has_room_for_one_at_least(store: Store, limit: Any) -> None:
    async with Runtime(store=store, workflows=[TWICE]) as runtime:
        with pytest.raises(InvalidInput, match="limit="):
            await runtime.find_runs(limit=limit)


async def test_times_at_the_ends_of_the_calendar_are_times(store: Store) -> None:
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    async with Runtime(store=store, workflows=[TWICE]) as runtime:
        run = await runtime.create_run(TWICE)
        await run.start(1)
        assert [each.run_id for each in await runtime.find_runs(started_after=first, started_before=last)]
        assert await runtime.delete_ended(before=first) == 0
        assert await runtime.delete_ended(before=last) == 1
