import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spanflow import InvalidInput, RunNotFound, Runtime, SQLiteStore, StepContext, TracingOptions, Workflow, step
from spanflow.testing import Traces


@step
async def double(value: int) -> int:
    return 2 * value


twice = Workflow("twice", input=int).then(double)


@pytest.fixture(params=["memory", "sqlite"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Runtime:
    store = SQLiteStore(tmp_path / "runs.db") if request.param == "sqlite" else None
    return Runtime(store, workflows=[twice])


async def test_runs_are_found_page_by_page_by_user_status_and_time(runtime: Runtime) -> None:
    async with runtime:
        for number in range(5):
            run = await runtime.create_run(twice, run_id=f"r{number}")
            await run.start(number, tracing_options=TracingOptions(metadata={"tenant": "a" if number % 2 else "b"}))

        first = await runtime.find_runs(status=("success", "failed"), limit=2)
        second = await runtime.find_runs(status=("success", "failed"), limit=2, after=first[-1])
        of_tenant = await runtime.find_runs(metadata={"tenant": "a"})
        soon = datetime.now(UTC) + timedelta(hours=1)

        assert [run.run_id for run in (*first, *second)] == ["r4", "r3", "r2", "r1"]
        assert [run.run_id for run in of_tenant] == ["r3", "r1"]
        assert await runtime.find_runs(started_after=soon) == []
        assert len(await runtime.find_runs(started_before=soon)) == 5


async def test_a_time_without_a_zone_is_refused(runtime: Runtime) -> None:
    async with runtime:
        with pytest.raises(InvalidInput, match="no time zone"):
            await runtime.find_runs(started_after=datetime(2026, 1, 1))  # noqa: DTZ001  # the case


async def test_runs_are_deleted_one_by_one_and_by_age(runtime: Runtime) -> None:
    async with runtime:
        for number in range(3):
            await (await runtime.create_run(twice, run_id=f"r{number}")).start(number)
        await runtime.delete_run("r1")

        assert [run.run_id for run in await runtime.find_runs()] == ["r2", "r0"]
        with pytest.raises(RunNotFound):
            await runtime.delete_run("r1")
        assert await runtime.delete_ended(before=datetime.now(UTC) - timedelta(days=1)) == 0
        assert await runtime.delete_ended(before=datetime.now(UTC) + timedelta(days=1)) == 2
        assert await runtime.find_runs() == []


async def test_a_run_is_canceled_by_a_runtime_that_does_not_know_its_workflow(
    tmp_path: Path, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")

    @step
    async def ask(value: int, ctx: StepContext) -> int:
        return await ctx.suspend({"more than": value}, resume=int)

    async with Runtime(SQLiteStore(tmp_path / "runs.db")) as runtime:
        run = await runtime.create_run(Workflow("asking", input=int).then(ask), run_id="r")
        await run.start(1)
    async with Runtime(SQLiteStore(tmp_path / "runs.db"), workflows=[twice]) as runtime:
        result = await runtime.cancel_run("r")
        again = await runtime.cancel_run("r")
        found = await runtime.find_runs(status="canceled")
        with pytest.raises(RunNotFound):
            await runtime.cancel_run("nowhere")

    assert (result.status, result.result, again.status) == ("canceled", None, "canceled")
    assert [each.run_id for each in found] == ["r"]
    traces.assert_complete()
    root = traces.one("invoke_workflow asking")
    assert root.attributes is not None
    assert root.attributes["spanflow.run.status"] == "canceled"
    assert "spanflow.run.input" not in root.attributes, "what of it is to be redacted is unknown here"


async def test_a_runtime_that_knows_the_workflow_cancels_with_its_result_type(runtime: Runtime) -> None:
    async with runtime:
        run = await runtime.create_run(twice, run_id="r")
        await run.start(2)

        assert (await runtime.cancel_run("r")).unwrap() == 4


async def test_an_observer_in_another_runtime_sees_the_values_and_not_only_where_they_are_stored(
    tmp_path: Path,
) -> None:
    @step
    async def split(value: int) -> list[int]:
        return [value, value + 1]

    @step
    async def add(values: list[int]) -> int:
        return sum(values)

    flow = Workflow("flow", input=int).then(double).then(split).foreach(double.with_id("each")).then(add)
    async with Runtime(SQLiteStore(tmp_path / "runs.db"), workflows=[flow]) as first:
        run = await first.create_run(flow, run_id="r")
        seen = [event async for event in await run.stream(1)]
    async with Runtime(SQLiteStore(tmp_path / "runs.db"), workflows=[flow]) as second:
        run = await second.get_run("r")
        replayed = [event async for event in run.observe_stream()]
        tail = [event async for event in run.observe_stream(after=10)]

    assert [event.payload for event in replayed] == [event.payload for event in seen]
    assert [event.payload for event in tail] == [event.payload for event in seen[10:]]


async def test_a_run_that_executes_elsewhere_is_followed_to_its_end(tmp_path: Path) -> None:
    go = asyncio.Event()

    @step
    async def slow(value: int) -> int:
        await go.wait()
        return value + 1

    flow = Workflow("flow", input=int).then(double).then(slow)
    async with (
        Runtime(SQLiteStore(tmp_path / "runs.db"), workflows=[flow]) as here,
        Runtime(SQLiteStore(tmp_path / "runs.db"), workflows=[flow]) as elsewhere,
    ):
        stream = await (await elsewhere.create_run(flow, run_id="r")).stream(20)
        run = await here.get_run("r")
        waiting = asyncio.create_task(run.wait())
        seen: list[str] = []
        async for event in run.observe_stream():
            seen.append(event.type)
            if event.type == "step-start" and event.path == "slow":
                go.set()

        assert (await waiting).unwrap() == 41
        assert seen == [event.type async for event in stream]
        assert [event async for event in run.observe_stream(after=len(seen))] == []
