"""One run of everything: Jaeger has it as the process had it, to the last link, and finds it by time."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from opentelemetry.trace import SpanKind

from tests.jaeger.programs import Collector, eventually
from tests.jaeger.search import FoundTrace, Search
from tests.tracing_contract.processes import in_process

SCRIPT = """
from opentelemetry import trace
from spanflow import configure_tracing
from spanflow.testing import capture_traces
from tests.tracing_contract.scenario import everything, run_everything

async def main():
    run = await everything.create_run(run_id="order-1")
    with trace.get_tracer("web").start_as_current_span("POST /orders", kind=trace.SpanKind.SERVER):
        return (await run_everything(run))[1]

with configure_tracing(capture_content=True) as setup, capture_traces() as traces:
    show(trace_id=asyncio.run(main()).trace_id, tree=traces.tree())
"""
ATTRIBUTES_OF_A_STEP = {"spanflow.step.id", "spanflow.step.path", "spanflow.step.attempt"}


@dataclass(frozen=True, slots=True)
class Seen:
    """The run as Jaeger has it, and the tree that its own process drew."""

    service: str
    trace: FoundTrace
    trace_id: str
    tree: str


@pytest.fixture(scope="module")
def seen(collector: Collector, search: Search) -> Seen:
    service = f"orders-{uuid4().hex[:8]}"
    facts = in_process(SCRIPT, OTEL_SERVICE_NAME=service, **collector.environment).facts
    trace_id, tree = facts["trace_id"], facts["tree"]
    eventually(lambda: len(search.trace(trace_id, raw=True).spans) == len(tree.splitlines()))
    return Seen(service, search.trace(trace_id), trace_id, tree)


def test_jaeger_has_the_tree_that_the_test_kit_draws(seen: Seen) -> None:
    assert seen.trace.tree() == seen.tree


def test_jaeger_has_nothing_to_warn_of(seen: Seen) -> None:
    assert seen.trace.problems() == []


def test_the_wait_for_an_answer_is_linked_to_who_gave_it(seen: Seen) -> None:
    request = seen.trace.one("POST /orders")
    assert [link.context.span_id for link in seen.trace.one("wait approve").links] == [request.context.span_id]
    assert [span.name for span in seen.trace.spans if span.links] == ["wait approve"]


def test_kinds_and_status_are_kept(seen: Seen) -> None:
    kinds = {span.name: SpanKind(span.kind - 1) for span in seen.trace.spans}
    assert kinds.pop("POST /orders") is SpanKind.SERVER
    assert set(kinds.values()) == {SpanKind.INTERNAL}
    assert [span.name for span in seen.trace.spans if not span.status.is_unset] == ["step flaky"]


def test_payloads_are_json_which_the_page_shows_as_trees(seen: Seen) -> None:
    root = seen.trace.one("invoke_workflow everything").attributes
    assert json.loads(root["spanflow.run.input"]) == {"items": ["pen", "book", "lamp"]}
    payloads = [
        value
        for span in seen.trace.spans
        for key, value in span.attributes.items()
        if key.endswith((".input", ".output", ".arguments", ".result"))
    ]
    assert len(payloads) > 20
    for payload in payloads:
        json.loads(payload)


def test_a_step_says_what_and_where_it_is_and_no_more(seen: Seen) -> None:
    steps = [span for span in seen.trace.spans if span.name.startswith("step ")]
    for span in steps:
        assert span.attributes.keys() >= ATTRIBUTES_OF_A_STEP
        assert len(span.attributes) <= 10
        assert not [key for key in span.attributes if key.startswith("gen_ai.")]


@pytest.mark.parametrize(
    ("seconds", "found"), [((-60, 60), True), ((-120, -60), False), ((60, 120), False)], ids=["then", "before", "after"]
)
def test_a_run_is_found_by_the_time_it_started(
    seconds: tuple[int, int], found: bool, seen: Seen, search: Search
) -> None:
    started = datetime.fromtimestamp(seen.trace.one("invoke_workflow everything").start_time / 1e9, UTC)
    earliest, latest = ((started + timedelta(seconds=each)).isoformat().replace("+00:00", "Z") for each in seconds)
    assert search.find(seen.service, between=(earliest, latest)) == ({seen.trace_id} if found else set())
