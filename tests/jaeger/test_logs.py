"""What a program logs arrives at the Collector with the spans it belongs to, and without secrets in production."""

import re
from pathlib import Path

import pytest

from tests.jaeger.programs import Collector, Jaeger, eventually
from tests.jaeger.search import Search
from tests.tracing_contract.processes import in_process

SCRIPT = """
import logging
from spanflow import Workflow, configure_tracing, step

@step
async def check(value: int) -> int:
    logging.getLogger("shop").warning("refused: password=hunter2", extra={"access_token": "hunter3", "shelf": "A3"})
    return value

async def main():
    run = await Workflow("shop", input=int).then(check).create_run(run_id="run-1")
    return (await run.start(7)).trace_id

with configure_tracing(logs=True):
    show(trace_id=asyncio.run(main()))
"""


@pytest.mark.parametrize(
    ("configuration", "text"),
    [("collector-config.yaml", "refused: password=hunter2"), ("collector-config.production.yaml", "refused: ****")],
)
def test_a_record_arrives_with_its_trace_span_run_and_step(
    configuration: str, text: str, jaeger: Jaeger, search: Search, service: str, tmp_path: Path
) -> None:
    everything = {"SAMPLING_PERCENTAGE": "100", "DECISION_WAIT": "200ms"}
    with Collector(tmp_path, configuration, jaeger.otlp, None, **everything) as collector:
        trace_id = in_process(SCRIPT, OTEL_SERVICE_NAME=service, **collector.environment).facts["trace_id"]
        eventually(lambda: len(search.trace(trace_id, raw=True).spans) == 2)
        eventually(lambda: "LogRecord #0" in collector.log)
        _, _, record = collector.log.partition("LogRecord #0")  # as the exporter `debug` prints it
    span = search.trace(trace_id).one("step check")
    assert re.findall(r"Trace ID: (\w+)\s+Span ID: (\w+)", record) == [(trace_id, f"{span.context.span_id:016x}")]
    assert f"Body: Str({text})" in record
    assert "SeverityText: WARN" in record
    for key, value in (("spanflow.run.id", "run-1"), ("spanflow.step.id", "check"), ("shelf", "A3")):
        assert f"-> {key}: Str({value})" in record
    assert "hunter3" not in record  # redacted where it was logged
