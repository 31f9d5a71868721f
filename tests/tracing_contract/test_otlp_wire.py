"""What a back end receives over the wire is the run: its spans and the events of its stream tell one story."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.otlp_receiver import OtlpReceiver, ReceivedSpan, WireProtocol
from tests.tracing_contract.processes import in_process

SCRIPT = """
from opentelemetry import trace
from spanflow import configure_tracing
from tests.tracing_contract.scenario import everything, run_everything

async def main():
    web = trace.get_tracer("web")
    run = await everything.create_run(run_id="order-1")
    with web.start_as_current_span("POST /orders"):
        events, result = await run_everything(run)
    return events, result

with configure_tracing() as setup:
    events, result = asyncio.run(main())
    assert setup.flush(20)
    show(events=[json.loads(event.model_dump_json()) for event in events], trace_id=result.trace_id)
"""

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wire:
    """One run, as its stream told it and as it came over the wire."""

    events: Sequence[Event]
    spans: Sequence[ReceivedSpan]
    trace_id: str

    def span(self, event: Event) -> ReceivedSpan:
        """Return the one span that an event names."""
        (found,) = [span for span in self.spans if span.span_id == event["span_id"]]
        return found

    def of_type(self, *types: str) -> list[Event]:
        found = [event for event in self.events if event["type"] in types]
        assert found
        return found

    @property
    def ours(self) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.scope == "spanflow"]

    def named(self, name: str) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReceivedSpan:
        (found,) = self.named(name)
        return found


def _wire(protocol: WireProtocol) -> Wire:
    with OtlpReceiver(protocol) as receiver:
        ended = in_process(SCRIPT, OTEL_SERVICE_NAME="shop", **receiver.environment)
        assert ended.stderr == ""
        return Wire(ended.facts["events"], receiver.spans(), ended.facts["trace_id"])


@pytest.fixture(scope="module", params=["grpc", "http/protobuf"])
def wire(request: pytest.FixtureRequest) -> Wire:
    return _wire(request.param)


def test_the_run_is_one_trace_with_one_root_and_no_orphan(wire: Wire) -> None:
    request = wire.one("POST /orders")
    assert request.parent_span_id is None
    assert {span.trace_id for span in wire.spans} == {wire.trace_id}
    ids = [span.span_id for span in wire.spans]
    assert len(set(ids)) == len(ids)
    assert [span.name for span in wire.spans if span.parent_span_id not in ids] == ["POST /orders"]
    assert wire.one("invoke_workflow everything").parent_span_id == request.span_id


def test_every_event_names_a_span_that_arrived(wire: Wire) -> None:
    assert {event["trace_id"] for event in wire.events} == {wire.trace_id}
    arrived = {span.span_id for span in wire.ours}
    assert [event for event in wire.events if event["span_id"] not in arrived] == []


def test_every_span_but_waits_and_the_marker_is_told_by_events(wire: Wire) -> None:
    told = {event["span_id"] for event in wire.events}
    untold = Counter(span.name for span in wire.ours if span.span_id not in told)
    assert untold == {"run.started": 1, "wait flaky": 1, "wait approve": 1}


def test_a_run_starts_and_ends_when_its_first_and_last_events_say(wire: Wire) -> None:
    first, *_ = wire.of_type("start")
    *_, last = wire.of_type("finish")
    root = wire.span(first)
    assert wire.span(last) == root == wire.one("invoke_workflow everything")
    assert (root.start_ns, root.end_ns) == (first["timestamp"], last["timestamp"])


def test_spans_start_when_their_start_events_say(wire: Wire) -> None:
    for event in wire.of_type("step-start", "tool-call", "step-waiting"):
        assert wire.span(event).start_ns == event["timestamp"], event


def test_spans_end_when_their_last_events_say(wire: Wire) -> None:
    for event in wire.of_type("step-result", "step-finish", "step-retry", "step-suspended", "tool-result"):
        assert wire.span(event).end_ns == event["timestamp"], event


def test_durations_in_events_are_those_of_the_spans(wire: Wire) -> None:
    for event in wire.of_type("step-finish"):
        span = wire.span(event)
        assert event["payload"]["duration"] == pytest.approx((span.end_ns - span.start_ns) / 1e9, abs=1e-9), event


def test_spans_lie_within_their_parents(wire: Wire) -> None:
    by_id = {span.span_id: span for span in wire.spans}
    for span in wire.ours:
        above = by_id[span.parent_span_id or ""]
        assert above.start_ns <= span.start_ns <= span.end_ns <= above.end_ns, span.name


def test_steps_stand_below_what_their_path_says(wire: Wire) -> None:
    root = wire.one("invoke_workflow everything")
    frames = {"": root} | {
        str(span.attributes["spanflow.step.path"]): span
        for span in wire.ours
        if span.name in ("foreach quote", "invoke_workflow delivery")
    }
    for event in wire.of_type("step-start", "step-waiting"):
        path: str = event["path"]
        above = path.rpartition("/")[0] if "/" in path else path.partition("[")[0] if "[" in path else ""
        assert wire.span(event).parent_span_id == frames[above].span_id, path


def test_tool_calls_stand_below_the_step_that_calls(wire: Wire) -> None:
    steps = {event["path"]: wire.span(event) for event in wire.of_type("step-start")}
    for event in wire.of_type("tool-call"):
        assert wire.span(event).parent_span_id == steps[event["path"]].span_id


def test_step_attributes_are_those_of_the_events(wire: Wire) -> None:
    for event in wire.of_type("step-start"):
        payload, attributes = event["payload"], wire.span(event).attributes
        assert attributes["spanflow.step.id"] == payload["id"]
        assert attributes["spanflow.step.path"] == event["path"]
        assert attributes.get("spanflow.foreach.index") == payload.get("foreach_index")
        assert attributes.get("spanflow.loop.iteration") == payload.get("loop_iteration")
        if wire.span(event).name.startswith("step "):
            assert attributes["spanflow.step.attempt"] == payload["attempt"]
            assert wire.span(event).name == f"step {payload['id']}"


def test_tool_attributes_are_those_of_the_events(wire: Wire) -> None:
    for event in wire.of_type("tool-call"):
        payload, span = event["payload"], wire.span(event)
        assert span.name == f"execute_tool {payload['tool_name']}"
        assert span.attributes["gen_ai.tool.name"] == payload["tool_name"]
        assert span.attributes["gen_ai.tool.call.id"] == payload["tool_call_id"]


def test_the_root_and_its_marker_carry_the_metadata(wire: Wire) -> None:
    wanted = {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "everything",
        "spanflow.run.id": "order-1",
        "user.id": "u-42",
        "session.id": "s-7",
        "feature_flag.ranker": "v2",
    }
    root, marker = wire.one("invoke_workflow everything"), wire.one("run.started")
    assert root.attributes == wanted | {"spanflow.run.status": "success"}
    assert marker.attributes == wanted
    assert marker.parent_span_id == root.span_id
    assert marker.end_ns - marker.start_ns == 1  # what Jaeger takes without a warning


def test_the_only_error_is_the_attempt_that_failed(wire: Wire) -> None:
    assert {span.status for span in wire.ours} == {"UNSET", "ERROR"}
    (failed,) = [span for span in wire.ours if span.status == "ERROR"]
    assert (failed.name, failed.attributes["spanflow.step.attempt"]) == ("step flaky", 1)
    assert failed.attributes["error.type"] == "tests.tracing_contract.scenario.OutOfStock"
    (exception,) = failed.events
    assert exception.name == "exception"
    assert exception.attributes["exception.type"] == "tests.tracing_contract.scenario.OutOfStock"
    assert exception.attributes["exception.message"] == "the shelf is empty"
    assert [span.name for span in wire.ours if span.events] == ["step flaky"]


def test_the_wait_for_the_answer_is_linked_to_who_answered(wire: Wire) -> None:
    wait = wire.one("wait approve")
    assert [(link.trace_id, link.span_id) for link in wait.links] == [(wire.trace_id, wire.one("POST /orders").span_id)]
    suspended, (_, resumed) = wire.of_type("step-suspended")[0], wire.of_type("start")
    assert (wait.start_ns, wait.end_ns) == (suspended["timestamp"], resumed["timestamp"])


def test_the_finish_counts_the_spans_that_arrived(wire: Wire) -> None:
    *_, last = wire.of_type("finish")
    counts = last["payload"]["counts"]
    assert counts["spans"] == len(wire.ours)
    assert counts["spans_dropped"] == 0
    assert counts["tool_calls"] == len([span for span in wire.ours if span.name.startswith("execute_tool ")])
    assert counts["retries"] == len(wire.named("wait flaky"))


def test_all_spans_are_internal_and_of_one_scope(wire: Wire) -> None:
    assert {span.kind for span in wire.ours} == {"INTERNAL"}
    assert {str(span.resource["service.name"]) for span in wire.spans} == {"shop"}
    assert len(wire.ours) == len(wire.spans) - 1


def test_span_ids_are_the_same_in_every_process_for_the_same_run() -> None:
    first, second = _wire("http/protobuf"), _wire("http/protobuf")
    assert first.trace_id != second.trace_id
    assert {span.span_id for span in first.ours} == {span.span_id for span in second.ours}
