"""The root span: what it carries, whose child it is, and that it is exported once, from true start to true end."""

import asyncio
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from opentelemetry import context, propagate, trace
from opentelemetry.sdk.trace import ReadableSpan
from pydantic import BaseModel, SecretStr

from spanflow import (
    Event,
    InvalidInput,
    Retry,
    Runtime,
    StepContext,
    TracingContext,
    TracingOptions,
    Workflow,
    WorkflowResult,
    step,
)
from spanflow.events import parse_event
from spanflow.testing import FakeClock, Traces
from tests.tracing_contract.reading import attributes, check, parent_id, seconds, span_id, times, trace_id

ROOT = "invoke_workflow shop"


@step
async def same(value: int) -> int:
    return value


@step
async def ask(value: int, ctx: StepContext) -> int:
    return await ctx.suspend("?", resume=int)


def shop() -> Workflow[int, int]:
    return Workflow("shop", input=int)


async def start(
    workflow: Workflow[int, Any] | None = None, *, clock: FakeClock | None = None, **options: Any
) -> WorkflowResult[Any]:
    run = await (workflow or shop().then(same)).create_run(run_id="run-1", clock=clock)
    return await run.start(1, **options)


async def metadata_on_root(traces: Traces, metadata: Any) -> dict[str, Any]:
    result = await start(tracing_options=TracingOptions(metadata=metadata))
    assert result.status == "success"
    traces.assert_complete()
    return attributes(traces.one(ROOT))


# ---------------------------------------------------------------- what it carries


class Colour(Enum):
    RED = "red"


class Plan(BaseModel):
    name: str
    seats: int


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"text": "a", "whole": 1, "part": 1.5, "flag": True}, {"text": "a", "whole": 1, "part": 1.5, "flag": True}),
        ({"user.id": "u-42", "session.id": "s-7"}, {"user.id": "u-42", "session.id": "s-7"}),
        ({"a": {"b": {"c": 1}, "d": "x"}}, {"a.b.c": 1, "a.d": "x"}),
        ({"words": ["a", "b"], "numbers": [1, 2], "flags": [True]}, {"words": ("a", "b"), "numbers": (1, 2)}),
        ({"mixed": ["a", 1, None]}, {"mixed": '["a",1,null]'}),
        ({"deep": [{"a": [1]}]}, {"deep": '[{"a":[1]}]'}),
        ({"colour": Colour.RED}, {"colour": "red"}),
        ({"plan": Plan(name="pro", seats=3)}, {"plan.name": "pro", "plan.seats": 3}),
        ({7: "seven", None: "none", True: "yes"}, {"7": "seven"}),
        ({"": "empty", " ": "blank"}, {" ": "blank"}),
        ({"empty text": ""}, {"empty text": ""}),
    ],
)
async def test_metadata_of_any_shape_becomes_attributes(
    traces: Traces, metadata: Mapping[str, Any], expected: dict[str, Any]
) -> None:
    found = await metadata_on_root(traces, metadata)
    assert {key: found.get(key) for key in expected} == expected
    assert {key: type(found.get(key)) for key in expected} == {key: type(value) for key, value in expected.items()}


async def test_metadata_without_a_value_leaves_nothing(traces: Traces) -> None:
    found = await metadata_on_root(traces, {"a": None, "b": {"c": None}, "d": {}})
    assert not {"a", "b", "b.c"} & found.keys()


class Unreadable(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("not now")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("not now")

    def __len__(self) -> int:
        return 1


class Speechless:
    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __str__ = __repr__


def endless() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["self"] = found
    return found


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"big": 2**80, "nan": math.nan, "infinite": -math.inf},
        {"when": datetime(2026, 1, 1, tzinfo=UTC), "id": UUID(int=7), "price": Decimal("1.5"), "raw": b"\xff\x00"},
        {"set": {1, 2}, "object": object(), "type": int, "function": len, "speechless": Speechless()},
        {"text": "half a character \ud800", "\ud800": 1},
        {("a", 1): "tuple", Colour.RED: "enum", 1.5: "float"},
        endless(),
        Unreadable(),
        {"inner": Unreadable()},
        {f"key-{number}": number for number in range(5_000)},
        {"text": "x" * 2_000_000, "list": list(range(100_000)), "k" * 10_000: 1},
        ["not", "a", "mapping"],
        "not a mapping",
    ],
    ids=lambda metadata: type(metadata).__name__,
)
async def test_no_metadata_is_ever_fatal_or_boundless(traces: Traces, metadata: Any) -> None:
    stream = await (await shop().then(same).create_run()).stream(
        1, tracing_options=TracingOptions(metadata=metadata, user_id="u-1")
    )
    events = [event async for event in stream]
    assert (await stream.get_workflow_state()).unwrap() == 1
    check(traces)
    found = attributes(traces.one(ROOT))
    assert found["user.id"] == "u-1"
    assert found["spanflow.run.status"] == "success"
    assert len(found) <= 128
    assert sum(len(key) + len(str(value)) for key, value in found.items()) < 200_000
    for event in events:
        assert parse_event(event.model_dump_json()).seq == event.seq


async def test_metadata_never_shadows_what_is_ours_and_is_kept_beside_it(traces: Traces) -> None:
    ours = {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "shop",
        "spanflow.run.id": "run-1",
        "spanflow.run.status": "success",
    }
    theirs = dict.fromkeys([*ours, "error.type", "spanflow.tags"], "theirs")
    found = await metadata_on_root(traces, {**theirs, "spanflow": {"run": {"id": "theirs"}}})
    assert {key: found[key] for key in ours} == ours
    assert "error.type" not in found
    assert list(found.values()).count("theirs") == len(theirs) + 1


async def test_entries_that_flatten_to_the_same_key_are_both_kept(traces: Traces) -> None:
    found = await metadata_on_root(traces, {"a.b": "first", "a": {"b": "second"}})
    assert found["a.b"] == "first"
    assert "second" in found.values()


async def test_secrets_in_metadata_are_redacted(traces: Traces) -> None:
    secrets = {"api_key": "s3cr3t", "password": "s3cr3t", "plan": {"access_token": "s3cr3t"}, "k": SecretStr("s3cr3t")}
    stream = await (await shop().then(same).create_run()).stream(1, tracing_options=TracingOptions(metadata=secrets))
    await stream.get_workflow_state()
    assert "s3cr3t" not in str(attributes(traces.one(ROOT)))


async def test_tags_user_and_session_have_their_own_options(traces: Traces) -> None:
    await start(tracing_options=TracingOptions(tags=["beta", "eu"], user_id="u-42", session_id="s-7"))
    found = attributes(traces.one(ROOT))
    assert (found["spanflow.tags"], found["user.id"], found["session.id"]) == (("beta", "eu"), "u-42", "s-7")


async def test_the_options_for_user_and_session_win_over_metadata(traces: Traces) -> None:
    metadata = {"user.id": "from metadata", "session": {"id": "from metadata"}}
    await start(tracing_options=TracingOptions(metadata=metadata, user_id="u-42", session_id="s-7"))
    found = attributes(traces.one(ROOT))
    assert (found["user.id"], found["session.id"]) == ("u-42", "s-7")


async def test_parts_of_the_runtime_context_are_copied_to_the_root_when_asked_for(traces: Traces) -> None:
    runtime_context = {"tenant": {"id": 7, "plan": {"name": "pro"}}, "region": "eu", "private": "no"}
    options = TracingOptions(runtime_context_keys=["tenant.id", "tenant.plan", "region", "missing", "region.deeper"])
    await start(runtime_context=runtime_context, tracing_options=options)
    found = attributes(traces.one(ROOT))
    assert (found["tenant.id"], found["tenant.plan.name"], found["region"]) == (7, "pro", "eu")
    assert not {"missing", "region.deeper", "private"} & found.keys()
    assert "no" not in found.values()


async def test_the_runtime_context_never_shadows_what_is_ours(traces: Traces) -> None:
    options = TracingOptions(runtime_context_keys=["spanflow.run.id"])
    await start(runtime_context={"spanflow": {"run": {"id": "theirs"}}}, tracing_options=options)
    assert attributes(traces.one(ROOT))["spanflow.run.id"] == "run-1"


async def test_metadata_stays_off_the_spans_below_the_root(traces: Traces) -> None:
    await start(tracing_options=TracingOptions(metadata={"plan": "pro"}, user_id="u-42", tags=["beta"]))
    assert not {"plan", "user.id", "spanflow.tags"} & attributes(traces.one("step same")).keys()


async def test_the_start_event_tells_the_metadata(traces: Traces) -> None:
    metadata = {"user.id": "u-42", "flags": {"ranker": "v2"}}
    stream = await (await shop().then(same).create_run()).stream(1, tracing_options=TracingOptions(metadata=metadata))
    first: Event = await anext(stream)
    assert first.type == "start"
    assert first.payload.metadata == metadata
    await stream.get_workflow_state()


# ---------------------------------------------------------------- whose child it is


async def test_the_trace_id_is_known_before_the_first_event_and_never_changes(traces: Traces) -> None:
    run = await shop().then(ask).create_run()
    assert run.trace_id is None
    first = await run.stream(1)
    known = first.trace_id
    assert known is not None
    assert known == run.trace_id
    events = [event async for event in first]
    second = await run.resume_stream(5)
    assert second.trace_id == known
    events += [event async for event in second]
    assert {event.trace_id for event in events} == {known}
    assert (await second.get_workflow_state()).trace_id == known == trace_id(traces.one(ROOT))


async def test_a_run_without_any_parent_begins_a_trace(traces: Traces) -> None:
    first, second = await start(), await start()
    assert first.trace_id != second.trace_id
    traces.assert_complete(traces=2)
    assert [span.parent for span in traces.find(ROOT)] == [None, None]


async def test_the_ambient_span_is_the_parent(traces: Traces) -> None:
    with trace.get_tracer("web").start_as_current_span("POST /orders"):
        result = await start()
    request = traces.one("POST /orders")
    assert parent_id(traces.one(ROOT)) == span_id(request)
    assert result.trace_id == trace_id(request)


async def test_the_span_that_was_current_stays_current(traces: Traces) -> None:
    with trace.get_tracer("web").start_as_current_span("POST /orders") as request:
        await start()
        assert trace.get_current_span() is request
    await start()
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_tracing_context_names_the_parent_whatever_is_ambient(traces: Traces) -> None:
    tracer = trace.get_tracer("web")
    chosen = tracer.start_span("chosen")
    with tracer.start_as_current_span("ambient"):
        result = await start(tracing_context=TracingContext(current_span=chosen))
    chosen.end()
    assert parent_id(traces.one(ROOT)) == span_id(traces.one("chosen"))
    assert result.trace_id == trace_id(traces.one("chosen"))


async def test_a_tracing_context_without_a_span_leaves_the_ambient_one(traces: Traces) -> None:
    with trace.get_tracer("web").start_as_current_span("ambient"):
        await start(tracing_context=TracingContext())
    assert parent_id(traces.one(ROOT)) == span_id(traces.one("ambient"))


async def test_a_tracing_context_wins_over_a_trace_id(traces: Traces) -> None:
    chosen = trace.get_tracer("web").start_span("chosen")
    await start(tracing_context=TracingContext(chosen), tracing_options=TracingOptions(trace_id="ab" * 16))
    chosen.end()
    assert parent_id(traces.one(ROOT)) == span_id(traces.one("chosen"))


async def test_a_remote_parent_is_the_parent(traces: Traces) -> None:
    carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1,b=2"}
    token = context.attach(propagate.extract(carrier))
    result = await start(shop().then(ask))
    context.detach(token)
    assert result.trace_id == "0af7651916cd43dd8448eb211c80319c"
    run = traces.find()
    assert {trace_id(span) for span in run} == {"0af7651916cd43dd8448eb211c80319c"}


async def test_the_root_keeps_its_remote_parent_and_trace_state_over_a_resume(traces: Traces) -> None:
    carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1,b=2"}
    run = await shop().then(ask).create_run()
    token = context.attach(propagate.extract(carrier))
    await run.start(1)
    context.detach(token)
    await run.resume(5)
    check(traces)
    root = traces.one(ROOT)
    assert (trace_id(root), parent_id(root)) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert root.parent is not None
    assert root.parent.is_remote
    for span in traces.spans:
        assert span.context is not None
        assert span.context.trace_state.to_header() == "a=1,b=2", span.name


async def test_a_trace_id_may_be_given(traces: Traces) -> None:
    given = "0af7651916cd43dd8448eb211c80319c"
    with trace.get_tracer("web").start_as_current_span("ambient"):
        result = await start(tracing_options=TracingOptions(trace_id=given))
    root = traces.one(ROOT)
    assert (result.trace_id, trace_id(root), root.parent) == (given, given, None)
    assert trace_id(traces.one("step same")) == given
    assert trace_id(traces.one("ambient")) != given


async def test_a_trace_id_and_a_parent_may_be_given(traces: Traces) -> None:
    options = TracingOptions(trace_id="0AF7651916cd43dd8448eb211c80319c", parent_span_id="b7ad6b7169203331")
    result = await start(tracing_options=options)
    root = traces.one(ROOT)
    assert result.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert parent_id(root) == "b7ad6b7169203331"
    assert root.parent is not None
    assert root.parent.is_remote
    traces.assert_complete()


async def test_short_ids_are_filled_up_with_zeros(traces: Traces) -> None:
    result = await start(tracing_options=TracingOptions(trace_id="abc", parent_span_id="7"))
    assert result.trace_id == "abc".zfill(32)
    assert parent_id(traces.one(ROOT)) == "7".zfill(16)


async def test_a_given_trace_id_is_for_one_run_only(traces: Traces) -> None:
    await start(tracing_options=TracingOptions(trace_id="abc"))
    other = await start()
    with trace.get_tracer("web").start_as_current_span("unrelated"):
        pass
    assert other.trace_id != "abc".zfill(32)
    assert len(traces.trace_ids) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"trace_id": "0" * 32},
        {"trace_id": "xyz"},
        {"trace_id": "a" * 33},
        {"trace_id": ""},
        {"trace_id": "0x12"},
        {"trace_id": "abc", "parent_span_id": "0"},
        {"trace_id": "abc", "parent_span_id": "a" * 17},
        {"parent_span_id": "abc"},
    ],
)
def test_ids_that_cannot_be_are_refused_at_once(options: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="TracingOptions"):
        TracingOptions(**options)  # pyright: ignore[reportArgumentType]  # the ids of the table


async def test_input_that_is_refused_leaves_no_span(traces: Traces) -> None:
    run = await shop().then(same).create_run()
    with pytest.raises(InvalidInput):
        await run.start("many")  # pyright: ignore[reportArgumentType]  # that is the point
    assert traces.spans == ()
    await run.start(1)
    check(traces)


async def test_a_second_start_leaves_no_span(traces: Traces) -> None:
    run = await shop().then(same).create_run()
    await run.start(1)
    with pytest.raises(Exception, match="started before"):
        await run.start(1)
    check(traces)


async def test_a_run_id_that_is_taken_exports_no_second_root(traces: Traces) -> None:
    async with Runtime() as runtime:
        workflow = shop().then(same)
        await (await runtime.create_run(workflow, run_id="taken")).start(1)
        with pytest.raises(Exception, match="taken"):
            await (await runtime.create_run(workflow, run_id="taken")).start(1)
    assert len(traces.find(ROOT)) == 1


# ---------------------------------------------------------------- once, from true start to true end


async def test_the_root_is_exported_once_after_any_number_of_resumes_with_true_start_and_end(traces: Traces) -> None:
    clock = FakeClock()
    begin = clock.time_ns()
    workflow = shop().then(ask).then(ask.with_id("again")).then(ask.with_id("at last"))
    run = await workflow.create_run(clock=clock)
    stream = await run.stream(1, tracing_options=TracingOptions(metadata={"user.id": "u-42"}))
    events = [event async for event in stream]
    for day in range(3):
        assert traces.find(ROOT) == ()
        await clock.advance(86_400)
        stream = await run.resume_stream(day)
        events += [event async for event in stream]
    check(traces)
    root = traces.one(ROOT)
    assert times(root) == (begin, clock.time_ns())
    assert seconds(root) == 3 * 86_400
    assert (times(root)[0], times(root)[1]) == (events[0].timestamp, events[-1].timestamp)
    assert span_id(root) == events[0].span_id == events[-1].span_id
    assert attributes(root)["user.id"] == "u-42"
    assert attributes(root)["spanflow.run.status"] == "success"
    assert {event.trace_id for event in events} == {trace_id(root)}


async def test_a_run_that_fails_after_a_resume_ends_its_root_as_an_error(traces: Traces) -> None:
    @step
    async def fail(value: int) -> int:
        raise LookupError("gone")

    run = await shop().then(ask).then(fail).create_run()
    await run.start(1)
    assert (await run.resume(2)).status == "failed"
    check(traces)
    found = attributes(traces.one(ROOT))
    assert (found["spanflow.run.status"], found["error.type"]) == ("failed", "LookupError")


async def test_another_holder_of_the_run_may_resume_it(traces: Traces) -> None:
    workflow = shop().then(ask)
    async with Runtime(workflows=[workflow]) as runtime:
        run = await runtime.create_run(workflow, run_id="run-1")
        with trace.get_tracer("web").start_as_current_span("POST /orders"):
            await run.start(1, tracing_options=TracingOptions(metadata={"user.id": "u-42"}))
        del run
        found = await runtime.get_run("run-1")
        assert (await found.resume(5)).unwrap() == 5
    check(traces)
    root = traces.one(ROOT)
    assert parent_id(root) == span_id(traces.one("POST /orders"))
    assert attributes(root)["user.id"] == "u-42"


async def test_the_caller_of_resume_is_linked_from_the_wait_and_is_no_parent(traces: Traces) -> None:
    run = await shop().then(ask).create_run()
    tracer = trace.get_tracer("web")
    with tracer.start_as_current_span("POST /orders"):
        await run.start(1)
    with tracer.start_as_current_span("POST /answers"):
        await run.resume(5)
    traces.assert_complete(traces=2)
    wait, answer = traces.one("wait ask"), traces.one("POST /answers")
    assert [(link.context.trace_id, link.context.span_id) for link in wait.links] == [_key(answer)]
    assert traces.children(answer) == ()
    assert {trace_id(span) for span in traces.find() if span is not answer} == {trace_id(traces.one(ROOT))}


async def test_a_resume_from_nowhere_leaves_no_link(traces: Traces) -> None:
    run = await shop().then(ask).create_run()
    await run.start(1)
    await run.resume(5)
    assert all(not span.links for span in traces.spans)


async def test_each_wait_is_linked_to_its_own_answer(traces: Traces) -> None:
    tracer = trace.get_tracer("web")
    run = await shop().parallel(ask, ask.with_id("other")).create_run()
    await run.start(1)
    for path in ("other", "ask"):
        with tracer.start_as_current_span(f"answer {path}"):
            await run.resume(5, step=path)
    for path in ("other", "ask"):
        (link,) = traces.one(f"wait {path}").links
        assert (link.context.trace_id, link.context.span_id) == _key(traces.one(f"answer {path}"))


# ---------------------------------------------------------------- the marker of a long run


async def test_a_suspended_run_is_found_by_a_marker_that_carries_the_roots_attributes(traces: Traces) -> None:
    options = TracingOptions(metadata={"user.id": "u-42", "plan": {"name": "pro"}}, tags=["beta"])
    run = await shop().then(ask).create_run(clock=FakeClock())
    await run.start(1, tracing_options=options)
    marker = traces.one("run.started")
    assert traces.find(ROOT) == ()
    assert seconds(marker) == 1e-9
    await run.resume(5)
    check(traces)
    root = traces.one(ROOT)
    assert parent_id(marker) == span_id(root)
    assert times(marker)[0] == times(root)[0]
    assert attributes(marker) == {key: v for key, v in attributes(root).items() if key != "spanflow.run.status"}


@pytest.mark.parametrize("wait", ["sleep", "event", "event in time", "suspension"])
async def test_a_run_that_will_wait_for_long_announces_itself_before_it_waits(traces: Traces, wait: str) -> None:
    clock = FakeClock(auto=False)
    workflow: Workflow[int, Any] = {
        "sleep": shop().sleep(3600),
        "event": shop().wait_for_event("paid", int),
        "event in time": shop().wait_for_event("paid", int, timeout=3600),
        "suspension": shop().then(ask),
    }[wait]
    run = await workflow.create_run(clock=clock)
    stream = await run.stream(1)
    async for event in stream:
        if event.type in ("step-waiting", "step-suspended"):
            break
    await clock.advance(0.001)
    assert len(traces.find("run.started")) == 1
    await run.cancel()
    check(traces)
    assert len(traces.find("run.started")) == 1


async def test_a_run_that_will_try_again_after_long_announces_itself_before_it_waits(traces: Traces) -> None:
    @step(retry=Retry(max_attempts=2, delay=50))
    async def fail(value: int) -> int:
        raise LookupError

    clock = FakeClock(auto=False)
    run = await shop().then(fail).create_run(clock=clock)
    async for event in await run.stream(1):
        if event.type == "step-retry":
            break
    await clock.advance(0.001)
    assert len(traces.find("run.started")) == 1
    await run.cancel()


async def test_a_short_run_has_no_marker(traces: Traces) -> None:
    await start(shop().then(same).sleep(0.2).then(same.with_id("again")), clock=FakeClock())
    assert traces.find("run.started") == ()
    traces.assert_complete()


async def test_a_run_has_one_marker_however_often_it_waits(traces: Traces) -> None:
    workflow = shop().sleep(10).then(ask).sleep(10, id="nap").then(ask.with_id("again"))
    run = await workflow.create_run(clock=FakeClock())
    await run.start(1)
    await run.resume(1)
    await run.resume(1)
    check(traces)
    assert len(traces.find("run.started")) == 1


async def test_a_step_that_takes_longer_than_a_second_has_the_run_announce_itself_meanwhile(traces: Traces) -> None:
    @step
    async def work(value: int) -> int:
        await asyncio.sleep(1.2)  # real time: no fake clock reaches into a step
        return value

    await start(shop().then(work))
    check(traces)
    assert [span.name for span in traces.spans] == ["run.started", "step work", ROOT]


def _key(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id
