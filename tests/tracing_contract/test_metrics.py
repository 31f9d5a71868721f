"""Metrics say what the spans say: same durations, same errors, and exemplars that lead to the spans."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.tracing_contract.processes import in_process

SCRIPT = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from spanflow import StepContext, Workflow, step, tool
from tests.tracing_contract.scenario import OutOfStock, everything, run_everything

memory, reader, now = InMemorySpanExporter(), InMemoryMetricReader(), InMemoryMetricReader()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(memory))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([reader, now]))  # who reads takes the exemplars: two readers, two sets

def active():
    return {
        point.attributes["gen_ai.workflow.name"]: point.value
        for resource in now.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "spanflow.runs.active"
        for point in metric.data.data_points
    }

within = {}

@tool
async def weigh(item: str) -> int:
    "Weigh an item."
    if item == "unicorn":
        raise OutOfStock(item)
    return len(item)

@step
async def careful(item: str) -> int:
    try:
        return await weigh(item=item)
    except OutOfStock:
        return 0

@step
async def careless(item: str) -> int:
    return await weigh(item=item)

@step
async def look(item: str) -> str:
    within["look"] = active()
    return item

@step
async def last_forever(item: str, ctx: StepContext) -> str:
    asyncio.get_running_loop().call_soon(started.set)
    await asyncio.Event().wait()

@step
async def ask(item: str, ctx: StepContext) -> str:
    return await ctx.suspend("?", resume=str)

@step
async def quit(item: str, ctx: StepContext) -> str:
    ctx.bail("enough")

async def start(workflow):
    run = await workflow.create_run()
    return run, await run.start("unicorn")

async def main():
    global started
    started = asyncio.Event()
    await run_everything(await everything.create_run())
    after = {"success": active()}
    await start(Workflow("caught", input=str).then(look).then(careful))
    after["caught"] = active()
    await start(Workflow("failing", input=str).then(careless))
    after["failing"] = active()
    run = await Workflow("canceled", input=str).then(last_forever).create_run()
    await run.stream("x")
    await started.wait()
    within["last_forever"] = active()
    await run.cancel()
    after["canceled"] = active()
    run, _ = await start(Workflow("asking", input=str).then(ask))
    after["suspended"] = active()
    await run.cancel()
    after["canceled while suspended"] = active()
    await start(Workflow("bailing", input=str).then(quit))
    after["bailed"] = active()
    await weigh(item="pen")
    return after

after = asyncio.run(main())
provider.force_flush()

def collected():
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield {
                    "scope": scope.scope.name,
                    "name": metric.name,
                    "unit": metric.unit,
                    "kind": type(metric.data).__name__,
                    "points": [
                        {
                            "attributes": dict(point.attributes),
                            "sum": getattr(point, "sum", None),
                            "count": getattr(point, "count", None),
                            "bounds": getattr(point, "explicit_bounds", None),
                            "value": getattr(point, "value", None),
                            "exemplars": [
                                {"trace": f"{each.trace_id:032x}", "span": f"{each.span_id:016x}", "value": each.value}
                                for each in point.exemplars
                            ],
                        }
                        for point in metric.data.data_points
                    ],
                }

show(
    metrics=list(collected()),
    after=after,
    within=within,
    spans=[
        {
            "name": span.name,
            "trace": f"{span.context.trace_id:032x}",
            "span": f"{span.context.span_id:016x}",
            "seconds": (span.end_time - span.start_time) / 1e9,
            "attributes": dict(span.attributes),
        }
        for span in memory.get_finished_spans()
    ],
)
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """All points of all metrics, all spans, and how many runs were active when."""

    metrics: dict[str, dict[str, Any]]
    spans: list[dict[str, Any]]
    within: dict[str, dict[str, int]]
    after: dict[str, dict[str, int]]

    def count(self, metric: str, attributes: Mapping[str, str]) -> int:
        """Return how many values were measured with just these attributes."""
        return sum(point["count"] for point in self.metrics[metric]["points"] if point["attributes"] == attributes)

    def named(self, prefix: str) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["name"].startswith(prefix)]


@pytest.fixture(scope="module")
def measured() -> Measured:
    ended = in_process(SCRIPT)
    assert ended.stderr == ""
    facts = ended.facts
    metrics = {metric["name"]: metric for metric in facts["metrics"] if metric["scope"] == "spanflow"}
    assert len(metrics) == 4
    return Measured(metrics, facts["spans"], facts["within"], facts["after"])


DURATIONS = {
    "gen_ai.invoke_workflow.duration": "invoke_workflow ",
    "gen_ai.execute_tool.duration": "execute_tool ",
    "spanflow.step.duration": "step ",
}
KEYS = {
    "gen_ai.invoke_workflow.duration": {"gen_ai.workflow.name", "error.type"},
    "gen_ai.execute_tool.duration": {"gen_ai.tool.name", "gen_ai.tool.type", "error.type"},
    "spanflow.step.duration": {"spanflow.step.id", "error.type"},
}


@pytest.mark.parametrize("name", DURATIONS)
def test_durations_are_histograms_of_seconds(measured: Measured, name: str) -> None:
    metric = measured.metrics[name]
    assert (metric["unit"], metric["kind"]) == ("s", "Histogram")


def test_runs_that_are_active_are_an_up_down_counter(measured: Measured) -> None:
    metric = measured.metrics["spanflow.runs.active"]
    assert (metric["unit"], metric["kind"]) == ("{run}", "Sum")


@pytest.mark.parametrize("name", KEYS)
def test_attributes_of_metrics_are_of_low_cardinality(measured: Measured, name: str) -> None:
    assert {key for point in measured.metrics[name]["points"] for key in point["attributes"]} == KEYS[name]


def test_the_buckets_are_those_of_the_conventions(measured: Measured) -> None:
    workflow = measured.metrics["gen_ai.invoke_workflow.duration"]["points"][0]
    tool = measured.metrics["gen_ai.execute_tool.duration"]["points"][0]
    assert workflow["bounds"] == [1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200]
    assert tool["bounds"] == pytest.approx([0.01 * 2**power for power in range(14)])


@pytest.mark.parametrize("name", ["gen_ai.execute_tool.duration", "gen_ai.invoke_workflow.duration"])
def test_every_span_is_measured_and_by_its_own_duration(measured: Measured, name: str) -> None:
    points, spans = measured.metrics[name]["points"], measured.named(DURATIONS[name])
    assert sum(point["count"] for point in points) == len(spans)
    assert sum(point["sum"] for point in points) == pytest.approx(sum(span["seconds"] for span in spans))


def test_every_attempt_of_a_step_is_measured_by_the_duration_of_its_span(measured: Measured) -> None:
    ids = {span["attributes"]["spanflow.step.id"] for span in measured.named("step ")}
    for id in ids:
        points = [
            point
            for point in measured.metrics["spanflow.step.duration"]["points"]
            if point["attributes"]["spanflow.step.id"] == id
        ]
        spans = measured.named(f"step {id}")
        assert sum(point["count"] for point in points) == len(spans), id
        assert sum(point["sum"] for point in points) == pytest.approx(sum(span["seconds"] for span in spans)), id


def test_nothing_but_steps_is_measured_as_a_step(measured: Measured) -> None:
    measured_ids = {
        point["attributes"]["spanflow.step.id"] for point in measured.metrics["spanflow.step.duration"]["points"]
    }
    assert measured_ids == {span["attributes"]["spanflow.step.id"] for span in measured.named("step ")}


def test_a_failure_is_measured_by_its_error_type(measured: Measured) -> None:
    kind = "tests.tracing_contract.scenario.OutOfStock"
    failed = {"error.type": kind}
    assert measured.count("gen_ai.invoke_workflow.duration", {"gen_ai.workflow.name": "failing"} | failed) == 1
    assert measured.count("gen_ai.invoke_workflow.duration", {"gen_ai.workflow.name": "caught"}) == 1
    assert measured.count("spanflow.step.duration", {"spanflow.step.id": "flaky"} | failed) == 1
    assert measured.count("spanflow.step.duration", {"spanflow.step.id": "flaky"}) == 1
    assert measured.count("spanflow.step.duration", {"spanflow.step.id": "careless"} | failed) == 1
    assert measured.count("spanflow.step.duration", {"spanflow.step.id": "careful"}) == 1
    weigh = {"gen_ai.tool.name": "weigh", "gen_ai.tool.type": "function"}
    assert measured.count("gen_ai.execute_tool.duration", weigh | failed) == 2
    assert measured.count("gen_ai.execute_tool.duration", weigh) == 1


@pytest.mark.parametrize("name", DURATIONS)
def test_exemplars_lead_to_the_spans_they_measure(measured: Measured, name: str) -> None:
    by_id = {(span["trace"], span["span"]): span for span in measured.named(DURATIONS[name])}
    exemplars = [each for point in measured.metrics[name]["points"] for each in point["exemplars"]]
    assert len(exemplars) >= len(measured.metrics[name]["points"])
    for each in exemplars:
        span = by_id[each["trace"], each["span"]]
        assert each["value"] == pytest.approx(span["seconds"], abs=1e-9), span["name"]


def test_a_run_is_active_while_it_executes(measured: Measured) -> None:
    assert measured.within["look"] == {"everything": 0, "caught": 1}
    assert measured.within["last_forever"] == {"everything": 0, "caught": 0, "failing": 0, "canceled": 1}


@pytest.mark.parametrize(
    "ending", ["success", "caught", "failing", "canceled", "suspended", "canceled while suspended", "bailed"]
)
def test_no_run_is_active_after_its_end(measured: Measured, ending: str) -> None:
    assert set(measured.after[ending].values()) == {0}
