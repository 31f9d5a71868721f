"""Metrics arrive at the Collector, ours and those it makes of spans, and from each of them a way leads to a trace."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.jaeger.programs import Collector, Jaeger, eventually
from tests.jaeger.search import FoundTrace, Search
from tests.tracing_contract.processes import in_process

SCRIPT = """
from spanflow import configure_tracing
from tests.tracing_contract.scenario import everything, run_everything

async def main():
    run = await everything.create_run()
    _, result = await run_everything(run)
    return result.trace_id

with configure_tracing():
    show(trace_id=asyncio.run(main()))
"""
DURATIONS = {
    "gen_ai_invoke_workflow_duration_seconds": "invoke_workflow ",
    "gen_ai_execute_tool_duration_seconds": "execute_tool ",
    "spanflow_step_duration_seconds": "step ",
}
SPANS = "spans_duration_seconds"  # what the Collector makes of spans
EXEMPLAR = re.compile(r"^(\w+)_bucket\{.*\} \d+ # \{(.*?)\} (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Exemplar:
    trace_id: str
    span_id: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What the Collector serves after one run, and the run's trace."""

    figures: str
    trace: FoundTrace
    trace_id: str

    def exemplars(self, metric: str) -> list[Exemplar]:
        return [
            Exemplar(ids["trace_id"], ids["span_id"], float(value))
            for name, labels, value in EXEMPLAR.findall(self.figures)
            if name == metric
            for ids in [dict(re.findall(r'(\w+)="(\w+)"', labels))]
        ]

    def count(self, metric: str) -> int:
        """Return how many values were measured, whatever their attributes."""
        return sum(map(int, re.findall(rf"^{metric}_count\{{.*\}} (\d+)", self.figures, re.MULTILINE)))


@pytest.fixture(scope="module")
def measured(jaeger: Jaeger, search: Search, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    folder = tmp_path_factory.mktemp("metrics")
    soon: dict[str, Any] = {"connectors": {"spanmetrics": {"metrics_flush_interval": "2s"}}}
    everything = {"SAMPLING_PERCENTAGE": "100", "DECISION_WAIT": "200ms"}
    with Collector(folder, "collector-config.production.yaml", jaeger.otlp, soon, **everything) as collector:
        ended = in_process(SCRIPT, OTEL_SERVICE_NAME="measured", **collector.environment)
        assert ended.stderr == ""
        trace_id = ended.facts["trace_id"]
        eventually(lambda: bool(search.trace(trace_id, raw=True).named("invoke_workflow everything")))
        served: list[str] = []

        def has_all() -> bool:
            served.append(collector.exposition())  # exemplars of spans are there until the next flush
            return {*DURATIONS, SPANS} == {name for name, *_ in EXEMPLAR.findall(served[-1])}

        eventually(has_all)
        yield Measured(served[-1], search.trace(trace_id), trace_id)


@pytest.mark.parametrize("metric", DURATIONS)
def test_every_span_is_measured_and_an_exemplar_leads_to_one_of_its_length(measured: Measured, metric: str) -> None:
    spans = {f"{span.context.span_id:016x}": span for span in measured.trace.spans}
    assert measured.count(metric) == sum(span.name.startswith(DURATIONS[metric]) for span in spans.values())
    exemplars = measured.exemplars(metric)
    assert exemplars
    for each in exemplars:
        assert each.trace_id == measured.trace_id
        span = spans[each.span_id]
        assert span.name.startswith(DURATIONS[metric])
        assert each.seconds == pytest.approx((span.end_time - span.start_time) / 1e9, abs=1e-6)


def test_runs_that_are_active_are_counted(measured: Measured) -> None:
    pattern = r'^spanflow_runs_active\{gen_ai_workflow_name="everything".*\} (\S+)'
    (value,) = re.findall(pattern, measured.figures, re.MULTILINE)
    assert float(value) == 0


def test_the_collector_times_every_span_and_its_exemplars_lead_to_them(measured: Measured) -> None:
    assert measured.count(SPANS) == len(measured.trace.spans)
    exemplars = measured.exemplars(SPANS)
    assert exemplars
    assert {each.trace_id for each in exemplars} == {measured.trace_id}
    assert {each.span_id for each in exemplars} <= {f"{span.context.span_id:016x}" for span in measured.trace.spans}


def test_no_figure_names_a_user_or_a_session(measured: Measured) -> None:
    assert "u-42" not in measured.figures
    assert "s-7" not in measured.figures
