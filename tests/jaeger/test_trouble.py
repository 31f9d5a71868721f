"""A Collector goes away, comes back, or is not what was meant; no run fails for it, and nothing is lost."""

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.jaeger.programs import Collector, Jaeger, eventually
from tests.jaeger.search import Search
from tests.jaeger.talking import go_on, talking, told
from tests.tracing_contract.processes import in_process

PHASES = """
import asyncio, json, sys
from spanflow import Workflow, configure_tracing, step

@step
async def measure(number: int) -> int:
    return number

@step
async def wait(numbers: list[int]) -> list[int]:
    print(json.dumps({}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    return numbers

once = Workflow("once", input=list[int]).foreach(measure, concurrency=8).then(wait)
again = Workflow("again", input=list[int]).foreach(measure, concurrency=8).then(wait)
last = Workflow("last", input=list[int]).foreach(measure, concurrency=8)
phases = Workflow("phases", input=list[int]).then(once).then(again).then(last)

async def main():
    result = await (await phases.create_run()).start(list(range(500)))
    print(json.dumps({"status": result.status, "trace_id": result.trace_id}), flush=True)

with configure_tracing() as setup:
    asyncio.run(main())
    print(json.dumps({"flushed": setup.flush(40)}), flush=True)
"""


@pytest.fixture
def own(jaeger: Jaeger, tmp_path: Path) -> Generator[Collector]:
    """A Collector that may be stopped: it is this test's alone."""
    with Collector(tmp_path, "collector-config.yaml", jaeger.otlp) as running:
        yield running


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_a_collector_that_is_away_for_a_part_of_a_run_costs_no_span(
    ending: str, own: Collector, search: Search, service: str
) -> None:
    with talking("-c", PHASES, OTEL_SERVICE_NAME=service, **own.environment) as process:
        assert told(process) == {}
        # What a Collector has taken and not handed on dies with it; this is about what it has not taken. So all of the
        # first phase has to have passed: the items, the foreach around them, and what announces the run.
        eventually(lambda: spans_of(search, service) >= 502)
        own.stop() if ending == "stop" else own.kill()
        go_on(process)
        assert told(process) == {}
        own.start()
        go_on(process)
        facts = told(process)
        assert facts["status"] == "success"
        assert told(process) == {"flushed": True}
    trace_id = facts["trace_id"]
    eventually(lambda: len(search.trace(trace_id, raw=True).spans) >= 1510)
    trace = search.trace(trace_id)
    assert trace.problems() == []
    assert len(trace.named("step measure")) == 1500


def spans_of(search: Search, service: str) -> int:
    return sum(len(search.trace(trace_id, raw=True).spans) for trace_id in search.find(service))


WIDE = """
import asyncio, json
from spanflow import TracingOptions, Workflow, configure_tracing, step

@step
async def measure(number: int) -> int:
    return number

wide = Workflow("wide", input=int).map(lambda count: list(range(count))).foreach(measure, concurrency=64)

async def main():
    every_one = TracingOptions(max_step_spans=None)
    stream = await (await wide.create_run()).stream(100_000, tracing_options=every_one)
    async for event in stream:
        last = event
    return stream.trace_id, last.payload.counts

with configure_tracing() as setup:
    trace_id, counts = asyncio.run(main())
    facts = {"trace_id": trace_id, "dropped": counts.spans_dropped, "spans": counts.spans, "flushed": setup.flush(200)}
    print(json.dumps(facts), flush=True)
"""


def test_a_hundred_thousand_items_arrive_in_jaeger(own: Collector, search: Search, service: str) -> None:
    with talking("-c", WIDE, OTEL_SERVICE_NAME=service, **own.environment) as process:
        facts = told(process)
        assert process.wait(200) == 0
    assert (facts["flushed"], facts["dropped"]) == (True, 0)
    trace_id, spans = facts["trace_id"], facts["spans"]
    eventually(lambda: len(search.trace(trace_id, raw=True).spans) == spans, timeout=200)
    trace = search.trace(trace_id, raw=True)
    ids = {span.context.span_id for span in trace.spans}
    assert len(ids) == len(trace.spans) == spans
    assert {span.attributes["spanflow.foreach.index"] for span in trace.named("step measure")} == set(range(100_000))
    assert [span.name for span in trace.spans if span.parent is None] == ["invoke_workflow wide"]
    assert all(span.parent is None or span.parent.span_id in ids for span in trace.spans)


SMALL = """
from spanflow import Workflow, configure_tracing, step

@step
async def measure(number: int) -> int:
    return number

async def main():
    return (await (await Workflow("small", input=int).then(measure).create_run()).start(1)).status

with configure_tracing() as setup:
    show(status=asyncio.run(main()), flushed=setup.flush(3))
"""


@pytest.mark.parametrize(
    ("port", "protocol", "advice"),
    [("http", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"), ("grpc", "http/protobuf", "PROTOCOL=grpc")],
)
def test_the_wrong_protocol_on_a_port_of_a_collector_is_said_once_with_what_to_change(
    port: str, protocol: str, advice: str, collector: Collector
) -> None:
    endpoint = collector.http if port == "http" else collector.grpc
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    ended = in_process(SMALL, OTEL_METRICS_EXPORTER="none", **variables)
    assert ended.facts == {"status": "success", "flushed": False}
    (line,) = [line for line in ended.stderr.splitlines() if "do not get through" in line]
    assert advice in line, line


def test_the_port_of_jaegers_page_is_said_once_with_what_to_change(jaeger: Jaeger) -> None:
    ended = in_process(SMALL, OTEL_EXPORTER_OTLP_ENDPOINT=jaeger.url, OTEL_METRICS_EXPORTER="none")
    assert ended.facts == {"status": "success", "flushed": False}
    (line,) = [line for line in ended.stderr.splitlines() if "do not get through" in line]
    assert "it answers with a web page" in line
    assert "the port of the receiver, mostly 4318 (HTTP) or 4317 (gRPC)" in line


def test_a_jaeger_without_a_collector_takes_the_trace_and_what_it_does_not_take_is_said(jaeger: Jaeger) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{jaeger.otlp}", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    ended = in_process(SMALL, **variables)
    assert ended.facts["status"] == "success"
    (line,) = [line for line in ended.stderr.splitlines() if "do not get through" in line]
    assert line.startswith("Metrics do not get through"), line
    assert "set OTEL_METRICS_EXPORTER=none" in line
