"""What every store does. One suite over all of them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel

from spanflow import RunConflict, RunNotFound, SpanflowError
from spanflow.events import (
    Counts,
    Resumed,
    RunStatus,
    StepError,
    StepResultEvent,
    StepRetry,
    ToolCall,
    ToolCallStreamingStart,
    ToolResultEvent,
)
from spanflow.plan import ForeachNode, Plan, SleepNode, StepNode, WorkflowNode
from spanflow.ports import FoundRun, Message, RunQuery, Store, append_now_of
from spanflow.state import RunState
from spanflow.tracing.record import TraceRecord
from tests.stores.conftest import Open
from tests.stores.support import (
    CREATED_AT,
    TRACE_ID,
    Part,
    appended,
    as_json,
    created,
    everything,
    finish,
    numbered,
    record,
    resumed,
    start,
    step,
    step_finish,
    step_result,
    step_start,
    suspended,
    waiting,
)

PLAN = Plan(
    workflow_id="w",
    description="what it is for",
    nodes=(
        StepNode(id="a", timeout=2.5),
        ForeachNode(id="each", body=StepNode(id="each"), concurrency=3),
        WorkflowNode(id="inner", plan=Plan(workflow_id="inner", nodes=(SleepNode(id="nap", seconds=1.5),))),
    ),
)
TRACE = TraceRecord(
    trace_id=TRACE_ID,
    span_id="b7ad6b7169203331",
    parent_span_id="00f067aa0ba902b7",
    trace_flags=1,
    trace_state="vendor=value",
    name="invoke_workflow w",
    started_at=CREATED_AT,
    attributes={"user.id": "u-1", "numbers": [1, 2]},
    metadata={"user.id": "u-1", "nested": {"deep": [None, True, 1.5, "ä"]}},
    hide_input=True,
    resume="link",
)
ERROR = StepError(path="a", type="ValueError", message="no ä", traceback="Traceback ...")


async def found(store: Store, **query: Any) -> list[str]:
    return [run.run_id for run in await store.find(RunQuery(**query))]


async def header(store: Store, run_id: str = "r1") -> FoundRun:
    (run,) = [run for run in await store.find(RunQuery()) if run.run_id == run_id]
    return run


class TestCreating:
    async def test_a_record_comes_back_as_it_was(self, store: Store) -> None:
        given = record(
            plan=PLAN,
            trace=TRACE,
            resource_id="res",
            initial_state={"count": 0},
            runtime_context={"tenant": {"name": "ä"}},
        )

        await store.create(given, numbered(start()))

        assert await store.load("r1") == given

    async def test_the_first_events_are_there_with_the_run(self, store: Store) -> None:
        entries = numbered(start(), step_start())

        await store.create(record(), entries)

        assert as_json(await everything(store)) == as_json(entries)

    async def test_an_id_that_is_taken_is_refused_and_the_first_run_stays(self, open_store: Open) -> None:
        one, other = open_store(), open_store()
        await one.create(record(), numbered(start("first")))

        with pytest.raises(RunConflict, match="'r1' already exists") as caught:
            await other.create(record(resource_id="second"), numbered(start("second")))

        assert caught.value.run_id == "r1"
        assert (await other.load("r1")).resource_id is None
        (entry,) = await everything(other)
        assert entry.payload["input"] == "first"

    @pytest.mark.parametrize("run_id", ["ä/ö 😀", "'; DROP TABLE runs; --", "%", "x" * 1000, "a\nb"])
    async def test_an_id_may_be_any_text(self, store: Store, run_id: str) -> None:
        at = await created(store, run_id)

        await appended(store, at, step_start(), run_id=run_id)

        assert (await store.load(run_id)).run_id == run_id
        assert len(await everything(store, run_id)) == 2
        assert await found(store) == [run_id]


class TestAppending:
    async def test_events_are_read_in_the_order_they_were_appended(self, store: Store) -> None:
        at = await created(store)
        for number in range(5):
            at = await appended(store, at, *step(f"s{number}"))

        entries = await everything(store)

        assert [entry.seq for entry in entries] == list(range(1, 17))
        assert [entry.path for entry in entries[1::3]] == ["s0", "s1", "s2", "s3", "s4"]

    @pytest.mark.parametrize("expected", [0, 1, 3, 5, 100])
    async def test_a_journal_that_ends_elsewhere_refuses_and_stays(self, store: Store, expected: int) -> None:
        at = await created(store, "r1", step_start(), step_result(), step_finish())
        assert at == 4
        before = as_json(await everything(store))

        with pytest.raises(RunConflict, match=rf"'r1' stands at event 4, not {expected}") as caught:
            await appended(store, expected, step_start("b"))

        assert caught.value.run_id == "r1"
        assert as_json(await everything(store)) == before

    async def test_of_two_who_drive_the_second_is_refused(self, open_store: Open) -> None:
        one, other = open_store(), open_store()
        at = await created(one)
        await appended(one, at, *step("a", output="of the first"))

        with pytest.raises(RunConflict):
            await appended(other, at, step_start("b"))

        assert [entry.path for entry in await everything(other)] == ["", "a", "a", "a"]

    async def test_one_who_drove_before_cannot_write_after_another_has(self, open_store: Open) -> None:
        paused, successor = open_store(), open_store()
        at = await created(paused)
        at = await appended(paused, at, step_start())
        await appended(successor, at, step_start(attempt=2), step_result())

        for part in (step_result(), finish()):
            with pytest.raises(RunConflict):
                await appended(paused, at, part)

        assert [entry.payload.get("attempt") for entry in await everything(paused)] == [None, 1, 2, None]
        assert (await header(paused)).status == "running"

    async def test_no_events_change_nothing(self, store: Store) -> None:
        await created(store)

        await store.append("r1", [], expected_seq=1)

        assert len(await everything(store)) == 1

    async def test_each_run_has_a_journal_of_its_own(self, store: Store) -> None:
        for run_id in ("r1", "r2", "r3"):
            await created(store, run_id)
        await asyncio.gather(*(appended(store, 1, *step(run_id), run_id=run_id) for run_id in ("r3", "r1", "r2")))

        for run_id in ("r1", "r2", "r3"):
            assert [entry.path for entry in await everything(store, run_id)] == ["", run_id, run_id, run_id]


class TestAppendingOnTheSpot:
    async def now(self, store: Store, after: int, *parts: Part) -> int:
        """As ``appended``, by ``append_now`` where the store has it."""
        append_now, entries = append_now_of(store), numbered(*parts, after=after)
        if append_now is None or not append_now("r1", entries, after):
            await store.append("r1", entries, expected_seq=after)
        return after + len(entries)

    async def test_it_does_what_append_does(self, store: Store) -> None:
        at = await created(store, owner="me", lease_until=100)
        for number in range(3):
            at = await self.now(store, at, *step(f"s{number}"))
        at = await self.now(store, at, waiting("nap", CREATED_AT + 10**9))
        assert (await header(store)).wake_at == CREATED_AT + 10**9
        at = await self.now(store, at, suspended("b"), finish("suspended"))
        assert ((await header(store)).status, (await header(store)).owner) == ("suspended", None)
        at = await self.now(store, at, resumed("b"))
        assert (await header(store)).status == "running"
        await self.now(store, at, *step("b"), finish())

        entries = await everything(store)

        assert [entry.seq for entry in entries] == list(range(1, 19))
        assert (await header(store)).status == "success"

    async def test_a_journal_that_ends_elsewhere_refuses(self, open_store: Open) -> None:
        one, other = open_store(), open_store()
        at = await created(one)
        at = await self.now(one, at, *step("a"))
        await self.now(other, at, step_start("b"))

        for expected in (0, 1, 3, at, at + 9):
            with pytest.raises(RunConflict):
                await self.now(one, expected, step_start("c"))

        assert len(await everything(one)) == at + 1
        await self.now(one, at + 1, step_result("b"))

    async def test_a_run_that_was_deleted_or_replaced_refuses(self, open_store: Open) -> None:
        driver, other = open_store(), open_store()
        at = await self.now(driver, await created(driver), *step("a"))
        await other.delete("r1")
        with pytest.raises(RunNotFound):
            await self.now(driver, at, *step("b"))

        await created(other)

        with pytest.raises(RunConflict):
            await self.now(driver, at, *step("b"))
        await self.now(driver, 1, *step("new"))
        assert [entry.path for entry in await everything(other)] == ["", "new", "new", "new"]

    async def test_what_is_no_json_is_refused(self, durable: Store) -> None:
        at = await self.now(durable, await created(durable), *step("a"))

        with pytest.raises(SpanflowError, match="Step 'b': its value: value of type object"):
            await self.now(durable, at, *step("b", object()))

        assert await self.now(durable, at, *step("b")) == at + 3


class TestReading:
    @pytest.mark.parametrize("after", range(9))
    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    async def test_a_page_begins_behind_any_event(self, store: Store, after: int, limit: int) -> None:
        at = await created(store)
        at = await appended(store, at, *step("a"))
        at = await appended(store, at, *step("b"))
        assert at == 7

        page = await store.read("r1", after=after, limit=limit)

        assert [entry.seq for entry in page] == list(range(after + 1, min(after + limit, 7) + 1))

    async def test_another_process_reads_what_was_written_at_once(self, open_store: Open) -> None:
        writer, reader = open_store(), open_store()
        at = await created(writer)
        assert len(await everything(reader)) == 1

        await appended(writer, at, step_start())

        assert len(await everything(reader)) == 2

    async def test_every_kind_of_event_comes_back_as_it_was(self, store: Store) -> None:
        call = {"tool_call_id": "c1", "tool_name": "search"}
        parts: list[Part] = [
            start({"text": "ä", "number": 1.5}),
            step_start("each[3]"),
            (ToolCall, "each[3]", {**call, "args": {"query": "x", "limit": None}}),
            (ToolCallStreamingStart, "each[3]", call),
            (ToolResultEvent, "each[3]", {**call, "result": ["found"]}),
            (ToolResultEvent, "each[3]", {**call, "error": ERROR}),
            (StepRetry, "each[3]", {"id": "each", "attempt": 1, "error": ERROR, "delay": 0.5}),
            step_start("each[3]", attempt=2),
            suspended("each[3]", {"question": ["?"]}),
            finish("suspended"),
            resumed("each[3]", {"answer": None}),
            (StepResultEvent, "each[3]", {"id": "each", "status": "failed", "error": ERROR}),
            step_finish("each[3]", attempt=3),
            (StepResultEvent, "map", {"id": "map", "status": "success", "output_ref": ["each[*]", {"k": "each:1"}]}),
            waiting("loop#2/nap", 5),
            waiting("loop#2/news", None, "news"),
            finish("success", {"all": "done"}),
        ]
        entries = numbered(*parts)
        entries[6].changes = {"decisions": {"loop?1": True}, "state": {"": {"count": 1}}}
        entries[9].span_id = None

        await store.create(record(), entries[:1])
        await store.append("r1", entries[1:10], expected_seq=1)
        await store.append("r1", entries[10:], expected_seq=10)

        assert as_json(await everything(store)) == as_json(entries)

    async def test_what_the_state_needs_as_models_comes_back_as_models(self, store: Store) -> None:
        failed: Part = (StepResultEvent, "a", {"id": "a", "status": "failed", "error": ERROR})
        at = await created(store, "r1", step_start(), suspended(), finish("suspended"))
        await appended(store, at, resumed(), step_start(attempt=2), failed, step_finish(), finish("failed"))

        entries = await everything(store)

        assert entries[4].payload["resumed"] == Resumed(path="a", data=7)
        assert entries[6].payload["error"] == ERROR
        assert isinstance(entries[8].payload["counts"], Counts)

    async def test_the_fold_is_the_one_of_what_was_written(self, store: Store) -> None:
        entries = numbered(
            start(),
            *step("a", {"x": [1, None]}),
            step_start("b"),
            suspended("b"),
            finish("suspended"),
            resumed("b"),
            step_start("b", attempt=2),
            step_result("b"),
            step_finish("b", attempt=2),
            finish(),
        )
        await store.create(record(), entries[:3])
        await store.append("r1", entries[3:7], expected_seq=3)
        await store.append("r1", entries[7:], expected_seq=7)

        folded = RunState.fold(entry.event for entry in await everything(store))

        assert folded == RunState.fold(entry.event for entry in entries)
        assert folded.steps["b"].answers == (7,)


class Order(BaseModel):
    """What a step of a user takes and gives."""

    number: int
    note: bytes = b""


class TestValues:
    async def test_a_model_is_read_back_as_its_json(self, durable: Store) -> None:
        await created(durable, "r1", *step("a", Order(number=3)))

        assert (await everything(durable))[2].payload["output"] == {"number": 3, "note": ""}

    async def test_a_value_that_is_no_json_is_refused_with_its_step_and_type(self, durable: Store) -> None:
        at = await created(durable)

        with pytest.raises(SpanflowError, match=r"Step 'a': its value: value\['client'\] of type object") as caught:
            await appended(durable, at, *step("a", {"client": object()}))

        assert type(caught.value) is SpanflowError
        assert len(await everything(durable)) == 1
        assert await appended(durable, at, *step("a")) == 4

    async def test_a_run_whose_input_is_no_json_is_not_created(self, durable: Store) -> None:
        with pytest.raises(SpanflowError, match="Run 'r1': its input: value of type object"):
            await durable.create(record(), numbered(start(object())))

        with pytest.raises(RunNotFound):
            await durable.load("r1")

    async def test_a_message_that_is_no_json_is_refused(self, durable: Store) -> None:
        await created(durable)

        with pytest.raises(SpanflowError, match="of type object"):
            await durable.post("r1", Message(id="m", name="news", payload=object()))

        assert not await durable.messages("r1")

    async def test_what_json_has_no_numbers_for_is_kept_as_text(self, durable: Store) -> None:
        await created(durable, "r1", *step("a", [float("nan"), float("inf"), 2**70, b"\xff"]))

        assert (await everything(durable))[2].payload["output"] == ["NaN", "Infinity", 2**70, "_w=="]

    async def test_a_value_of_50_mb_comes_back(self, durable: Store) -> None:
        large = "ä" * 25_000_000
        at = await created(durable)

        at = await appended(durable, at, *step("a", large))
        await appended(durable, at, *step("b"))

        entries = await everything(durable)
        assert entries[2].payload["output"] == large
        assert len(entries) == 7


class TestHeader:
    async def test_a_new_run_is_running(self, store: Store) -> None:
        await created(store, resource_id="res", trace=TRACE)

        (run,) = await store.find(RunQuery())

        assert (run.run_id, run.workflow_id, run.status) == ("r1", "w", "running")
        assert (run.trace_id, run.started_at, run.ended_at, run.wake_at) == (TRACE_ID, CREATED_AT, None, None)
        assert run.metadata == {
            "user.id": "u-1",
            "numbers": [1, 2],
            "nested": {"deep": [None, True, 1.5, "ä"]},
        }

    @pytest.mark.parametrize("status", ["success", "failed", "canceled"])
    async def test_a_run_that_ended_says_how_and_when(self, store: Store, status: RunStatus) -> None:
        at = await created(store, "r1", *step("a"))

        await appended(store, at, finish(status))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

        run = await header(store)
        assert (run.status, run.ended_at) == (status, CREATED_AT + 5000)

    async def test_a_run_may_end_with_its_first_events(self, store: Store) -> None:
        await created(store, "r1", *step("a"), finish(), owner="me", lease_until=10)

        run = await header(store)

        assert (run.status, run.ended_at, run.owner) == ("success", CREATED_AT + 5000, None)

    async def test_a_run_that_suspends_has_not_ended_and_runs_again_when_resumed(self, store: Store) -> None:
        at = await created(store, "r1", step_start(), suspended())
        at = await appended(store, at, finish("suspended"))
        first = await header(store)

        await appended(store, at, resumed())
        second = await header(store)

        assert (first.status, first.ended_at) == ("suspended", None)
        assert (second.status, second.ended_at) == ("running", None)

    async def test_a_refused_append_leaves_the_status(self, store: Store) -> None:
        at = await created(store, "r1", *step("a"))

        with pytest.raises(RunConflict):
            await appended(store, at - 1, finish())

        assert (await header(store)).status == "running"

    async def test_the_earliest_time_that_is_waited_for_is_known(self, store: Store) -> None:
        day = CREATED_AT + 86_400 * 10**9
        at = await created(store)
        at = await appended(store, at, waiting("long", day + 2), waiting("news", None, "news"))
        assert (await header(store)).wake_at == day + 2
        at = await appended(store, at, waiting("short", day + 1))
        assert (await header(store)).wake_at == day + 1
        await appended(store, at, waiting("longer", day + 3))
        assert (await header(store)).wake_at == day + 1

    async def test_a_time_may_be_beyond_what_a_database_can_count_to(self, store: Store) -> None:
        year_9999 = 253_402_214_400 * 10**9
        at = await created(store)

        await appended(store, at, waiting("forever", year_9999))

        assert (await everything(store))[-1].payload["until"] == year_9999
        assert ((await header(store)).wake_at or 0) > CREATED_AT
        assert await found(store, started_before=10**30, started_after=-(10**30)) == ["r1"]

    async def test_a_wait_that_is_over_as_it_is_stored_is_waited_for_no_longer(self, store: Store) -> None:
        await created(store, "r1", waiting("nap", CREATED_AT + 10**9), step_result("nap"))
        assert (await header(store)).wake_at is None

    async def test_a_long_past_that_a_run_begins_with_is_read_page_by_page(self, store: Store) -> None:
        parts = [part for number in range(700) for part in step(f"s{number}", number)]
        await created(store, "r1", *parts)
        assert [entry.seq for entry in await everything(store)] == list(range(1, 2102))
        page = await store.read("r1", after=998, limit=10)
        assert [entry.seq for entry in page] == list(range(999, 1009))
        assert await appended(store, 2101, *step("end")) == 2104
        assert (await everything(store))[-1].seq == 2104

    async def test_a_time_that_has_come_is_waited_for_no_longer(self, store: Store) -> None:
        at = await created(store, "r1", waiting("nap", CREATED_AT + 10_000))
        assert (await header(store)).wake_at == CREATED_AT + 10_000

        await appended(store, at, waiting("next", CREATED_AT + 90_000), at=CREATED_AT + 20_000)

        assert (await header(store)).wake_at == CREATED_AT + 90_000

    async def test_a_suspended_run_keeps_the_time_it_waits_for_and_an_ended_one_does_not(self, store: Store) -> None:
        at = await created(store, "r1", waiting("nap", CREATED_AT + 10**9))
        at = await appended(store, at, finish("suspended"))
        assert (await header(store)).wake_at == CREATED_AT + 10**9

        await appended(store, at, finish("canceled"))

        assert (await header(store)).wake_at is None


class TestFinding:
    async def test_the_newest_is_first_whatever_its_clock_said(self, store: Store) -> None:
        for number in range(3):
            await created(store, f"r{number}", created_at=CREATED_AT - number)

        assert await found(store) == ["r2", "r1", "r0"]

    async def test_each_condition_restricts(self, store: Store) -> None:
        await created(store, "r1", finish(), created_at=CREATED_AT)
        await created(store, "r2", workflow_id="other", created_at=CREATED_AT + 10)
        await created(store, "r3", suspended(), finish("suspended"), created_at=CREATED_AT + 20)
        await created(store, "r4", waiting("nap", CREATED_AT + 500), trace=TraceRecord(), created_at=CREATED_AT + 30)

        assert await found(store, status="success") == ["r1"]
        assert await found(store, status=("success", "suspended")) == ["r3", "r1"]
        assert await found(store, workflow="other") == ["r2"]
        assert await found(store, trace_id=TRACE_ID) == ["r3", "r2", "r1"]
        assert await found(store, started_after=CREATED_AT + 10) == ["r4", "r3"]
        assert await found(store, started_before=CREATED_AT + 10) == ["r1"]
        assert await found(store, started_after=CREATED_AT, started_before=CREATED_AT + 30) == ["r3", "r2"]
        assert await found(store, limit=2) == ["r4", "r3"]
        assert await found(store, status="running", workflow="w") == ["r4"]
        assert await found(store, trace_id="0" * 32) == []
        assert await found(store, status=()) == []
        assert (await found(store, wakes_before=CREATED_AT + 500), await found(store, wakes_before=2**62)) == (
            [],
            ["r4"],
        )

    async def test_metadata_is_compared_as_json(self, store: Store) -> None:
        metadata: dict[str, Any] = {"n": 1, "f": 1.0, "yes": True, "none": None, "t": "1", "l": [1, "a"], "d.e": "é'\""}
        await created(store, "r1", trace=TraceRecord(metadata=metadata))
        await created(store, "r2", trace=TraceRecord(attributes={"n": 1, "l": (1, 2)}))
        await created(store, "r3")

        for key, value in metadata.items():
            assert (await found(store, metadata={key: value}))[-1:] == ["r1"], key
        assert await found(store, metadata={"n": 1}) == ["r2", "r1"]
        assert await found(store, metadata={"n": 1, "yes": True}) == ["r1"]
        assert await found(store, metadata={"l": (1, 2)}) == ["r2"]
        for key, value in {"n": "1", "f": True, "yes": 1, "none": "None", "t": 1, "absent": None}.items():
            assert await found(store, metadata={key: value}) == [], key

    async def test_metadata_may_be_any_object(self, store: Store) -> None:
        await created(store, trace=TraceRecord(metadata={"order": Order(number=3), "odd": object, "ids": {1}}))

        assert await found(store, metadata={"order": Order(number=3)}) == ["r1"]

    async def test_pages_follow_one_another_also_when_runs_come_and_go(self, store: Store) -> None:
        for number in range(7):
            await created(store, f"r{number}")
        first = await store.find(RunQuery(limit=3))
        await created(store, "newer")
        await store.delete(first[-1].run_id)

        second = await store.find(RunQuery(limit=3, after=first[-1].cursor))
        third = await store.find(RunQuery(limit=3, after=second[-1].cursor))

        assert [run.run_id for run in first] == ["r6", "r5", "r4"]
        assert [run.run_id for run in second] == ["r3", "r2", "r1"]
        assert [run.run_id for run in third] == ["r0"]
        assert await found(store, after=third[-1].cursor) == []


class TestMessages:
    async def test_messages_are_kept_in_the_order_they_were_sent(self, open_store: Open) -> None:
        one, other = open_store(), open_store()
        await created(one)
        await created(one, "r2")
        sent = [Message(id=f"m{number}", name="news", payload={"n": number, "t": "ä"}) for number in range(5)]

        for number, message in enumerate(sent):
            await (one, other)[number % 2].post("r1", message)
        await one.post("r2", sent[0])

        assert list(await other.messages("r1")) == sent
        assert list(await other.messages("r2")) == sent[:1]

    async def test_a_run_without_messages_has_none(self, store: Store) -> None:
        await created(store)

        assert not await store.messages("r1")

    async def test_an_owner_learns_how_many_messages_each_of_its_runs_has(self, open_store: Open) -> None:
        store, sender = open_store(), open_store()
        for run_id, owner in (("r1", "me"), ("r2", "me"), ("r3", "me"), ("r4", "other")):
            await created(store, run_id, owner=owner, lease_until=100)
        await created(store, "r5")
        for run_id in ("r1", "r2", "r1", "r4", "r5"):
            await sender.post(run_id, Message(id="m", name="news"))

        assert await store.posted("me") == {"r1": 2, "r2": 1}
        assert await store.posted("other") == {"r4": 1}
        assert await store.posted("nobody") == {}

    async def test_a_run_that_its_owner_lost_or_ended_or_that_is_gone_counts_no_more(self, store: Store) -> None:
        for run_id in ("lost", "ended", "gone", "kept"):
            await created(store, run_id, owner="me", lease_until=100)
            await store.post(run_id, Message(id="m", name="news"))

        assert await store.claim("lost", "other", now=101, lease_until=200)
        await appended(store, 1, finish(), run_id="ended")
        await store.delete("gone")

        assert await store.posted("me") == {"kept": 1}


UNKNOWN: list[Callable[[Store], Awaitable[object]]] = [
    lambda store: store.load("gone"),
    lambda store: store.read("gone"),
    lambda store: store.messages("gone"),
    lambda store: store.post("gone", Message(id="m", name="n")),
    lambda store: store.append("gone", numbered(step_start(), run_id="gone"), expected_seq=0),
    lambda store: store.append("gone", numbered(finish(), run_id="gone", after=4), expected_seq=4),
    lambda store: store.delete("gone"),
    lambda store: store.claim("gone", "me", now=0, lease_until=1),
]


class TestUnknownRuns:
    @pytest.mark.parametrize("call", UNKNOWN)
    async def test_a_run_that_was_never_there_is_not_found(
        self, store: Store, call: Callable[[Store], Awaitable[object]]
    ) -> None:
        with pytest.raises(RunNotFound, match="'gone'") as caught:
            await call(store)

        assert caught.value.run_id == "gone"

    @pytest.mark.parametrize("call", UNKNOWN)
    async def test_a_run_that_was_deleted_is_not_found(
        self, open_store: Open, call: Callable[[Store], Awaitable[object]]
    ) -> None:
        driver, other = open_store(), open_store()
        at = await created(driver, "gone")
        await appended(driver, at, *step("a"), run_id="gone")
        await other.delete("gone")

        with pytest.raises(RunNotFound):
            await call(driver)

        assert await found(driver) == []


class TestDeleting:
    async def test_nothing_of_a_deleted_run_is_left_and_its_id_is_free(self, open_store: Open) -> None:
        store, driver = open_store(), open_store()
        at = await created(store, "r1", trace=TRACE, owner="me", lease_until=10)
        await appended(driver, at, *step("old"))
        await store.post("r1", Message(id="m", name="n"))
        await created(store, "r2")

        await store.delete("r1")
        assert await found(store, metadata={"user.id": "u-1"}) == []
        assert await store.renew("me", lease_until=20) == frozenset()
        await created(store, "r1", step_start("new"))

        assert [entry.path for entry in await everything(driver)] == ["", "new"]
        assert not await driver.messages("r1")
        assert await found(store) == ["r1", "r2"]
        with pytest.raises(RunConflict):
            await appended(driver, 4, *step("late"))

    async def test_runs_that_ended_before_a_time_are_deleted_and_no_others(self, store: Store) -> None:
        for number in range(120):
            await created(store, f"old{number}", finish(), created_at=CREATED_AT)
        await created(store, "limit", finish(), created_at=CREATED_AT + 1000)
        await created(store, "running")
        await created(store, "suspended", suspended(), finish("suspended"))

        assert await store.delete_ended(CREATED_AT + 3000) == 120
        assert await store.delete_ended(CREATED_AT + 3000) == 0

        assert await found(store) == ["suspended", "running", "limit"]


class TestOwning:
    async def test_a_run_is_created_with_its_owner(self, store: Store) -> None:
        await created(store, owner="me", lease_until=100)

        assert (await header(store)).owner == "me"
        assert not await store.claim("r1", "other", now=100, lease_until=500)
        assert await store.renew("me", lease_until=200) == {"r1"}

    async def test_who_owns_nothing_may_claim_what_nobody_owns(self, store: Store) -> None:
        await created(store)

        assert await store.claim("r1", "me", now=0, lease_until=100)
        assert not await store.claim("r1", "other", now=50, lease_until=150)
        assert await store.claim("r1", "me", now=60, lease_until=200)
        assert not await store.claim("r1", "other", now=200, lease_until=300)
        assert await store.claim("r1", "other", now=201, lease_until=300)
        assert (await header(store)).owner == "other"

    async def test_of_many_who_claim_at_once_one_succeeds(self, open_store: Open) -> None:
        handles = [open_store() for _ in range(8)]
        await created(handles[0], owner="dead", lease_until=10)

        claims = [store.claim("r1", f"o{n}", now=11, lease_until=100) for n, store in enumerate(handles)]
        taken = await asyncio.gather(*claims)

        assert taken.count(True) == 1
        assert (await header(handles[0])).owner == f"o{taken.index(True)}"

    async def test_all_leases_of_an_owner_are_renewed_at_once(self, store: Store) -> None:
        for number in range(4):
            await created(store, f"r{number}", owner="me" if number else "other", lease_until=100)
        assert await store.claim("r2", "thief", now=101, lease_until=500)

        assert await store.renew("me", lease_until=300) == {"r1", "r3"}

        assert await store.orphans(299) == ["r0"]
        assert await store.renew("nobody", lease_until=300) == frozenset()

    async def test_only_the_owner_can_release(self, store: Store) -> None:
        await created(store, owner="me", lease_until=100)

        await store.release("r1", "other")
        assert not await store.claim("r1", "other", now=50, lease_until=100)
        await store.release("r1", "me")

        assert await store.claim("r1", "other", now=50, lease_until=100)
        await store.release("gone", "me")

    @pytest.mark.parametrize("status", ["success", "failed", "canceled", "suspended"])
    async def test_a_run_that_stops_has_no_owner(self, store: Store, status: Any) -> None:
        at = await created(store, owner="me", lease_until=100)

        await appended(store, at, finish(status))

        assert (await header(store)).owner is None
        assert await store.renew("me", lease_until=300) == frozenset()

    async def test_an_event_that_is_not_the_last_leaves_the_owner(self, store: Store) -> None:
        at = await created(store, owner="me", lease_until=100)

        await appended(store, at, *step("a"), waiting("nap", 2**62))

        assert await store.renew("me", lease_until=300) == {"r1"}

    async def test_orphans_are_running_and_their_lease_is_over_the_oldest_first(self, store: Store) -> None:
        await created(store, "never owned")
        await created(store, "alive", owner="a", lease_until=100)
        await created(store, "dead", owner="b", lease_until=99)
        await created(store, "suspended", suspended(), finish("suspended"))
        await created(store, "ended", finish())

        assert await store.orphans(100) == ["never owned", "dead"]
        assert await store.orphans(101) == ["never owned", "alive", "dead"]
        assert await store.orphans(101, limit=1) == ["never owned"]


class TestClosing:
    async def test_a_closed_store_may_be_used_again(self, store: Store) -> None:
        at = await created(store)

        await store.aclose()
        await appended(store, at, step_start())
        await store.aclose()
        await store.aclose()

        assert len(await everything(store)) == 2

    async def test_what_was_stored_is_there_for_who_opens_it_later(self, open_durable: Open) -> None:
        first = open_durable()
        await created(first, "r1", *step("a"))
        await first.aclose()

        assert len(await everything(open_durable())) == 4

    def test_only_memory_gives_values_back_as_they_were(self, store: Store) -> None:
        assert store.is_live is (type(store).__name__ == "MemoryStore")
