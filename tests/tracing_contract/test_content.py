"""Inputs and outputs are on spans only when asked for, and then as valid, bounded JSON without secrets."""

import json
from collections.abc import AsyncGenerator, Iterator
from typing import Annotated, Any

import pytest
from opentelemetry import baggage, context
from opentelemetry.sdk.trace import ReadableSpan
from pydantic import BaseModel, SecretStr
from typing_extensions import TypedDict

from spanflow import Redacted, Retry, StepContext, TracingOptions, Workflow, configure_tracing, step, tool
from spanflow.testing import Traces
from spanflow.tracing.content import set_capture
from tests.tracing_contract.reading import attributes, check

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
LIMIT = 8192  # bytes

RUN = ("spanflow.run.input", "spanflow.run.output")
STEP = ("spanflow.step.input", "spanflow.step.output")
TOOL = ("gen_ai.tool.call.arguments", "gen_ai.tool.call.result")


class Question(BaseModel):
    text: str
    limit: int = 3


class Payment(BaseModel):
    holder: str
    number: SecretStr
    iban: Annotated[str, Redacted]
    api_key: str
    extra: dict[str, Any]


class Login(TypedDict):
    name: str
    pin: Annotated[str, Redacted]


SECRETS = ("4711", "DE02", "sk-1", "hunter2", "bearer-1", "0000")
PAYMENT = Payment(
    holder="Ada",
    number=SecretStr("4711"),
    iban="DE02",
    api_key="sk-1",
    extra={"password": "hunter2", "list": [{"authorization": "bearer-1", "city": "Bonn"}]},
)


@tool
async def search(text: str, limit: int = 3) -> list[str]:
    """Search."""
    return [text] * limit


@tool
async def stream_words(text: str) -> AsyncGenerator[str, None]:
    """Stream."""
    for word in text.split():
        yield word


@tool
async def log_in(name: str, pin: Annotated[str, Redacted]) -> Login:
    """Log in."""
    return Login(name=name, pin=pin)


@step
async def retrieve(question: Question) -> list[str]:
    return await search(text=question.text, limit=question.limit)


@step
async def first(found: list[str]) -> str:
    return found[0]


@step
async def passed(payment: Payment) -> Payment:
    return payment


def qa() -> Workflow[Question, str]:
    return Workflow("qa", input=Question).then(retrieve).then(first)


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin and end with neither a choice of the process nor one of the environment."""
    monkeypatch.delenv(VARIABLE, raising=False)
    set_capture(None)
    yield
    set_capture(None)


@pytest.fixture
def capturing(nothing_chosen: None) -> None:
    configure_tracing(capture_content=True)


def content(span: ReadableSpan) -> dict[str, Any]:
    """Return what was captured on a span, parsed."""
    found = {key: value for key, value in attributes(span).items() if key in RUN + STEP + TOOL}
    return {key: json.loads(value) for key, value in found.items()}


def everything_on(traces: Traces) -> str:
    return "\n".join(str((span.name, dict(span.attributes or {}), span.events)) for span in traces.spans)


# ---------------------------------------------------------------- when


async def test_nothing_is_captured_unless_asked_for(traces: Traces) -> None:
    await (await qa().create_run()).start(Question(text="what is visible?"))
    check(traces)
    assert "what is visible" not in everything_on(traces)
    assert not any(content(span) for span in traces.spans)


@pytest.mark.parametrize("how", ["configure_tracing", "SPAN_ONLY", "SPAN_AND_EVENT", "span_only", "true"])
async def test_content_is_captured_when_asked_for(traces: Traces, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "configure_tracing":
        configure_tracing(capture_content=True)
    else:
        monkeypatch.setenv(VARIABLE, how)
    await (await qa().create_run()).start(Question(text="why", limit=2))
    check(traces)
    question = {"text": "why", "limit": 2}
    assert content(traces.one("invoke_workflow qa")) == {RUN[0]: question, RUN[1]: "why"}
    assert content(traces.one("step retrieve")) == {STEP[0]: question, STEP[1]: ["why", "why"]}
    assert content(traces.one("step first")) == {STEP[0]: ["why", "why"], STEP[1]: "why"}
    assert content(traces.one("execute_tool search")) == {TOOL[0]: question, TOOL[1]: ["why", "why"]}


@pytest.mark.parametrize("value", ["NO_CONTENT", "EVENT_ONLY", "false", "", "0"])
async def test_the_environment_may_say_no(traces: Traces, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    await (await qa().create_run()).start(Question(text="why"))
    assert not any(content(span) for span in traces.spans)


async def test_an_unknown_value_of_the_environment_captures_nothing_and_is_logged(
    traces: Traces, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "sometimes")
    await (await qa().create_run()).start(Question(text="why"))
    await (await qa().create_run()).start(Question(text="why"))
    assert not any(content(span) for span in traces.spans)
    assert caplog.text.count("sometimes") == 1


@pytest.mark.parametrize(("chosen", "environment"), [(True, "NO_CONTENT"), (False, "SPAN_ONLY")])
async def test_the_call_wins_over_the_environment(
    traces: Traces, monkeypatch: pytest.MonkeyPatch, chosen: bool, environment: str
) -> None:
    monkeypatch.setenv(VARIABLE, environment)
    configure_tracing(capture_content=chosen)
    await (await qa().create_run()).start(Question(text="why"))
    assert bool(content(traces.one("step first"))) is chosen


@pytest.mark.parametrize("hidden", ["input", "output", "both"])
async def test_a_run_may_hide_its_inputs_or_outputs(traces: Traces, capturing: None, hidden: str) -> None:
    options = TracingOptions(hide_input=hidden != "output", hide_output=hidden != "input")
    await (await qa().create_run()).start(Question(text="why"), tracing_options=options)
    shown = {"input": {1}, "output": {0}, "both": set[int]()}[hidden]
    for name, pair in (("invoke_workflow qa", RUN), ("step retrieve", STEP), ("execute_tool search", TOOL)):
        assert set(content(traces.one(name))) == {pair[index] for index in shown}, name


async def test_what_a_run_hides_stays_hidden_after_a_resume(traces: Traces, capturing: None) -> None:
    @step
    async def ask(question: Question, ctx: StepContext) -> list[str]:
        answer = await ctx.suspend("?", resume=str)
        return await search(text=answer)

    run = await Workflow("qa", input=Question).then(ask).create_run()
    await run.start(Question(text="why"), tracing_options=TracingOptions(hide_input=True, hide_output=True))
    await run.resume("because")
    check(traces)
    assert not any(content(span) for span in traces.spans)


# ---------------------------------------------------------------- what


async def test_a_failure_has_its_input_and_no_output(traces: Traces, capturing: None) -> None:
    @step(retry=Retry(max_attempts=2, delay=0))
    async def fail(value: int) -> int:
        raise LookupError

    await (await Workflow("shop", input=int).then(fail).create_run()).start(7)
    assert content(traces.one("invoke_workflow shop")) == {RUN[0]: 7}
    assert [content(span) for span in traces.find("step fail")] == [{STEP[0]: 7}] * 2


async def test_a_tool_that_refuses_its_arguments_shows_them(traces: Traces, capturing: None) -> None:
    @step
    async def ask(text: str) -> list[str]:
        return await search(text=text, limit="many")  # pyright: ignore[reportArgumentType]  # as a model may

    await (await Workflow("shop", input=str).then(ask).create_run()).start("why")
    assert content(traces.one("execute_tool search")) == {TOOL[0]: {"text": "why", "limit": "many"}}


async def test_a_streaming_tool_shows_its_arguments_and_result(traces: Traces, capturing: None) -> None:
    @step
    async def read(text: str) -> list[str]:
        return [word async for word in stream_words(text=text)]

    await (await Workflow("shop", input=str).then(read).then(first).create_run()).start("so it is")
    assert content(traces.one("execute_tool stream_words")) == {TOOL[0]: {"text": "so it is"}, TOOL[1]: "is"}


async def test_a_tool_outside_of_any_run_shows_its_arguments_and_result(traces: Traces, capturing: None) -> None:
    await search(text="why", limit=1)
    assert content(traces.one("execute_tool search")) == {TOOL[0]: {"text": "why", "limit": 1}, TOOL[1]: ["why"]}


async def test_a_run_that_bails_shows_the_value(traces: Traces, capturing: None) -> None:
    @step
    async def leave(value: int, ctx: StepContext) -> int:
        ctx.bail({"enough": True})

    await (await Workflow("shop", input=int).then(leave).create_run()).start(1)
    assert content(traces.one("invoke_workflow shop")) == {RUN[0]: 1, RUN[1]: {"enough": True}}


async def test_a_resumed_run_still_shows_its_input(traces: Traces, capturing: None) -> None:
    @step
    async def ask(value: int, ctx: StepContext) -> int:
        return await ctx.suspend("?", resume=int)

    run = await Workflow("shop", input=int).then(ask).create_run()
    await run.start(1)
    await run.resume(2)
    check(traces)
    assert [content(span) for span in traces.find("step ask")] == [{STEP[0]: 1}, {STEP[0]: 1, STEP[1]: 2}]
    assert content(traces.one("invoke_workflow shop")) == {RUN[0]: 1, RUN[1]: 2}


async def test_items_and_nested_steps_show_theirs(traces: Traces, capturing: None) -> None:
    @step
    async def double(value: int) -> int:
        return 2 * value

    nested = Workflow("inner", input=int).then(double)
    await (await Workflow("shop", input=list[int]).foreach(nested).create_run()).start([1, 2])
    assert [content(span) for span in traces.find("step double")] == [
        {STEP[0]: 1, STEP[1]: 2},
        {STEP[0]: 2, STEP[1]: 4},
    ]


async def test_events_and_results_are_whole_whatever_is_captured(traces: Traces, capturing: None) -> None:
    text = "x" * 50_000
    stream = await (await Workflow("shop", input=Payment).then(passed).create_run()).stream(
        PAYMENT.model_copy(update={"holder": text})
    )
    events = [event async for event in stream]
    result = (await stream.get_workflow_state()).unwrap()
    assert (result.holder, result.iban, result.number.get_secret_value()) == (text, "DE02", "4711")
    (started,) = [event for event in events if event.type == "step-start"]
    assert started.payload.input.iban == "DE02"


# ---------------------------------------------------------------- bounded, and cut in structure


class Deep(BaseModel):
    child: "Deep | None" = None
    text: str = "leaf"


def deep(levels: int) -> Deep:
    found = Deep()
    for _ in range(levels):
        found = Deep(child=found)
    return found


class Unreadable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "value",
    [
        "x" * 1_000_000,
        '"\\\n\x00' * 100_000,
        "ä€😀" * 100_000,
        list(range(100_000)),
        [{"name": f"item {number}", "tags": ["a", "b"] * 20} for number in range(2_000)],
        {f"key {number}": "value" * 50 for number in range(5_000)},
        {"x" * 100_000: 1},
        deep(200),
        {"object": Unreadable(), "set": {1}, "bytes": b"\xff", "nan": float("nan"), 7: "seven"},
        "half a character \ud800",
    ],
    ids=lambda value: f"{type(value).__name__}",
)
async def test_what_is_captured_is_compact_valid_json_of_bounded_size(
    traces: Traces, capturing: None, value: Any
) -> None:
    @tool
    async def pass_on(thing: Any) -> Any:
        """Pass on."""
        return thing

    @step
    async def passed_on(thing: Any) -> Any:
        return await pass_on(thing=thing)

    workflow: Workflow[Any, Any] = Workflow("shop", input=Any)
    (await (await workflow.then(passed_on).create_run()).start(value)).unwrap()
    check(traces)
    found = [
        attributes(traces.one(name))[key]
        for name, pair in (("invoke_workflow shop", RUN), ("step passed_on", STEP), ("execute_tool pass_on", TOOL))
        for key in pair
    ]
    for text in found:
        assert len(text.encode()) <= LIMIT
        assert len(text) <= len(json.dumps(json.loads(text), separators=(",", ":")))


async def test_what_is_too_long_keeps_its_structure_and_says_what_is_missing(traces: Traces, capturing: None) -> None:
    rows = [{"name": f"row {number}", "text": "x" * 5_000} for number in range(50)]
    workflow: Workflow[Any, Any] = Workflow("shop", input=list[dict[str, str]])

    @step
    async def size(values: list[dict[str, str]]) -> int:
        return len(values)

    (await (await workflow.then(size).create_run()).start(rows)).unwrap()
    found = content(traces.one("step size"))[STEP[0]]
    assert found[0]["name"] == "row 0"
    assert found[0]["text"].startswith("xxx")
    assert "+" in found[0]["text"]
    assert content(traces.one("step size"))[STEP[1]] == 50


# ---------------------------------------------------------------- secrets


async def test_secrets_are_redacted_by_key_type_and_marker(traces: Traces, capturing: None) -> None:
    (await (await Workflow("shop", input=Payment).then(passed).create_run()).start(PAYMENT)).unwrap()
    text = everything_on(traces)
    for secret in SECRETS:
        assert secret not in text, secret
    for name, pair in (("invoke_workflow shop", RUN), ("step passed", STEP)):
        for key in pair:
            found = content(traces.one(name))[key]
            assert found["holder"] == "Ada"
            assert found["extra"]["list"][0]["city"] == "Bonn"
            assert set(found) == {"holder", "number", "iban", "api_key", "extra"}


async def test_secrets_of_a_tools_parameters_and_result_are_redacted(traces: Traces, capturing: None) -> None:
    @step
    async def enter(name: str) -> str:
        return (await log_in(name=name, pin="0000"))["name"]

    (await (await Workflow("shop", input=str).then(enter).create_run()).start("Ada")).unwrap()
    found = content(traces.one("execute_tool log_in"))
    assert found[TOOL[0]]["name"] == found[TOOL[1]]["name"] == "Ada"
    assert "0000" not in everything_on(traces)


async def test_secrets_in_lists_of_models_and_in_a_bail_are_redacted(traces: Traces, capturing: None) -> None:
    @step
    async def collect(payments: list[Payment], ctx: StepContext) -> list[Payment]:
        ctx.bail({"paid": payments, "token": "hunter2"})

    (await (await Workflow("shop", input=list[Payment]).then(collect).create_run()).start([PAYMENT] * 3)).unwrap()
    assert content(traces.one("invoke_workflow shop"))[RUN[1]]["paid"][0]["holder"] == "Ada"
    for secret in SECRETS:
        assert secret not in everything_on(traces), secret


async def test_a_whole_value_may_be_marked(traces: Traces, capturing: None) -> None:
    @step
    async def whisper(value: Annotated[str, Redacted]) -> Annotated[str, Redacted]:
        return value

    shop: Workflow[str, Any] = Workflow("shop", input=Annotated[str, Redacted])
    (await (await shop.then(whisper).create_run()).start("hunter2")).unwrap()
    assert set(content(traces.one("step whisper"))) == set(STEP)
    assert "hunter2" not in everything_on(traces)


# ---------------------------------------------------------------- baggage


def all_baggage() -> dict[str, str]:
    return {key: str(value) for key, value in baggage.get_all().items()}


@step
async def in_step(value: int) -> dict[str, str]:
    return all_baggage()


@step
def in_thread(value: dict[str, str]) -> list[dict[str, str]]:
    return [value, all_baggage()]


METADATA = {"user.id": "u-42", "plan": "pro", "nested": {"key": 1}}


async def test_metadata_stays_out_of_baggage(traces: Traces) -> None:
    run = await Workflow("shop", input=int).then(in_step).then(in_thread).create_run()
    options = TracingOptions(metadata=METADATA, user_id="u-42", session_id="s-7", tags=["beta"])
    assert (await run.start(1, tracing_options=options)).unwrap() == [{}, {}]


async def test_baggage_of_the_caller_is_left_as_it_is(traces: Traces) -> None:
    token = context.attach(baggage.set_baggage("theirs", "kept"))
    run = await Workflow("shop", input=int).then(in_step).then(in_thread).create_run()
    result = await run.start(1, tracing_options=TracingOptions(metadata=METADATA))
    assert all_baggage() == {"theirs": "kept"}
    context.detach(token)
    assert result.unwrap() == [{"theirs": "kept"}] * 2


async def test_the_named_keys_are_in_the_baggage_of_the_run_and_nowhere_else(traces: Traces) -> None:
    nested = Workflow("inner", input=int).then(in_step).then(in_thread)
    run = await Workflow("shop", input=int).then(nested).create_run()
    options = TracingOptions(metadata=METADATA, session_id="s-7", baggage_keys=["user.id", "session.id", "missing"])
    wanted = {"user.id": "u-42", "session.id": "s-7"}
    assert (await run.start(1, tracing_options=options)).unwrap() == [wanted, wanted]
    assert all_baggage() == {}


async def test_the_named_keys_are_in_the_baggage_after_a_resume_too(traces: Traces) -> None:
    @step
    async def ask(value: int, ctx: StepContext) -> int:
        return await ctx.suspend("?", resume=int)

    run = await Workflow("shop", input=int).then(ask).then(in_step).create_run()
    await run.start(1, tracing_options=TracingOptions(metadata=METADATA, baggage_keys=["user.id"]))
    assert (await run.resume(2)).unwrap() == {"user.id": "u-42"}
