"""Each log record says which trace, span, run and step it belongs to."""

import asyncio
import logging
from collections.abc import Iterator

import pytest
from opentelemetry import trace

from spanflow import StepContext, TraceContextFilter, Workflow, step, tool
from spanflow.testing import Traces
from tests.tracing_contract.processes import in_process
from tests.tracing_contract.reading import span_id, trace_id

log = logging.getLogger("tests.shop")
user = trace.get_tracer("user")


class Kept(logging.Handler):
    """Keeps (message, trace, span, run, step) of each record."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[dict[str, str]] = []
        self.setFormatter(logging.Formatter("%(message)s|%(trace_id)s|%(span_id)s|%(run_id)s|%(step_id)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(
            dict(zip(("message", "trace", "span", "run", "step"), self.format(record).split("|"), strict=True))
        )

    def one(self, message: str) -> dict[str, str]:
        (found,) = [each for each in self.kept if each["message"] == message]
        return found


@pytest.fixture
def logged() -> Iterator[Kept]:
    handler = Kept()
    handler.addFilter(TraceContextFilter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)


@tool
async def weigh(item: int) -> int:
    """Weigh an item."""
    log.info("weighing")
    return item


@step
async def talk(value: int) -> int:
    log.info("before")
    with user.start_as_current_span("mine"):
        log.info("inside mine")
    await weigh(item=value)
    log.info("after")
    return value


@step
def talk_in_thread(value: int) -> int:
    log.info("in thread")
    return value


def shop() -> Workflow[int, int]:
    return Workflow("shop", input=int)


async def test_a_record_of_a_step_names_its_trace_span_run_and_step(traces: Traces, logged: Kept) -> None:
    await (await shop().then(talk).create_run(run_id="run-1")).start(1)
    span = traces.one("step talk")
    expected = {"trace": trace_id(span), "span": span_id(span), "run": "run-1", "step": "talk"}
    assert logged.one("before") == {"message": "before"} | expected
    assert logged.one("after") == {"message": "after"} | expected


async def test_a_record_inside_a_span_of_the_users_names_that_span(traces: Traces, logged: Kept) -> None:
    await (await shop().then(talk).create_run(run_id="run-1")).start(1)
    record = logged.one("inside mine")
    assert record["span"] == span_id(traces.one("mine"))
    assert (record["run"], record["step"]) == ("run-1", "talk")


async def test_a_record_of_a_tool_names_the_tools_span_and_the_step_that_called(traces: Traces, logged: Kept) -> None:
    await (await shop().then(talk).create_run(run_id="run-1")).start(1)
    record = logged.one("weighing")
    assert record["span"] == span_id(traces.one("execute_tool weigh"))
    assert (record["run"], record["step"]) == ("run-1", "talk")


async def test_a_record_of_a_thread_names_the_step_that_runs_there(traces: Traces, logged: Kept) -> None:
    await (await shop().then(talk_in_thread).create_run(run_id="run-1")).start(1)
    record = logged.one("in thread")
    assert record["span"] == span_id(traces.one("step talk_in_thread"))
    assert (record["run"], record["step"]) == ("run-1", "talk_in_thread")


async def test_a_record_of_a_condition_names_the_run(traces: Traces, logged: Kept) -> None:
    def fits(value: int) -> bool:
        log.info("asked")
        return True

    await (await shop().branch((fits, talk)).create_run(run_id="run-1")).start(1)
    record = logged.one("asked")
    assert record["run"] == "run-1"
    assert record["span"] == span_id(traces.one("invoke_workflow shop"))


async def test_records_of_a_run_inside_a_run_name_the_inner_one(traces: Traces, logged: Kept) -> None:
    inner = Workflow("inner", input=int).then(talk_in_thread)

    @step
    async def delegate(value: int) -> int:
        run = await inner.create_run(run_id="inner-1")
        result = (await run.start(value)).unwrap()
        log.info("delegated")
        return result

    await (await shop().then(delegate).create_run(run_id="run-1")).start(1)
    assert (logged.one("in thread")["run"], logged.one("in thread")["step"]) == ("inner-1", "talk_in_thread")
    assert (logged.one("delegated")["run"], logged.one("delegated")["step"]) == ("run-1", "delegate")


async def test_records_of_runs_side_by_side_do_not_mix(traces: Traces, logged: Kept) -> None:
    meet = asyncio.Barrier(5)

    @step
    async def hold(value: int, ctx: StepContext) -> int:
        await meet.wait()
        log.info("held by %s", ctx.run_id)
        return value

    runs = [await shop().then(hold).create_run(run_id=f"run-{number}") for number in range(5)]
    results = await asyncio.gather(*(run.start(1) for run in runs))
    for result in results:
        record = logged.one(f"held by {result.run_id}")
        assert (record["run"], record["trace"]) == (result.run_id, result.trace_id)


async def test_a_record_outside_of_any_run_names_the_ambient_span_and_no_run(traces: Traces, logged: Kept) -> None:
    log.info("nowhere")
    with user.start_as_current_span("request"):
        log.info("in a request")
        async for event in await (await shop().then(talk).create_run()).stream(1):
            log.info("read %s", event.seq)
    request = traces.one("request")
    assert logged.one("nowhere") == {"message": "nowhere", "trace": "-", "span": "-", "run": "-", "step": "-"}
    for message in ("in a request", "read 1", "read 3"):
        record = logged.one(message)
        assert (record["trace"], record["span"]) == (trace_id(request), span_id(request))
        assert (record["run"], record["step"]) == ("-", "-")


def test_without_a_provider_records_still_name_run_and_step() -> None:
    ended = in_process("""
        import logging
        from spanflow import TraceContextFilter, Workflow, step

        handler = logging.StreamHandler()
        handler.addFilter(TraceContextFilter())
        handler.setFormatter(logging.Formatter("%(message)s %(trace_id)s %(span_id)s %(run_id)s %(step_id)s"))
        logging.getLogger().addHandler(handler)

        @step
        async def talk(value: int) -> int:
            logging.warning("hello")
            return value

        async def main():
            await (await Workflow("shop", input=int).then(talk).create_run(run_id="run-1")).start(1)

        asyncio.run(main())
        logging.warning("bye")
    """)
    assert ended.stderr.splitlines() == ["hello - - run-1 talk", "bye - - - -"]


def test_the_filter_lets_every_record_pass_and_keeps_its_text() -> None:
    record = log.makeRecord(log.name, logging.INFO, __file__, 1, "%s items", (3,), None)
    assert TraceContextFilter().filter(record) is True
    assert record.getMessage() == "3 items"
