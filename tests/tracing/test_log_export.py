"""What a program logs goes by OTLP where that is asked for, and each record says of which trace, run and step it is."""

from collections.abc import Mapping

import pytest

from tests.otlp_receiver import OtlpReceiver, ReceivedLog, WireProtocol
from tests.tracing_contract.processes import in_process

SCRIPT = """
import logging
from opentelemetry import trace
from spanflow import TracingOptions, Workflow, configure_tracing, step, tool

log = logging.getLogger("shop.orders")

@tool
async def weigh(item: int) -> int:
    "Weigh an item."
    log.warning("weighing %d", item, extra={"shelf": "A3", "api_key": "hunter2", "place": {"row": 4}})
    return item

@step
async def check(value: int) -> int:
    with trace.get_tracer("user").start_as_current_span("mine"):
        log.warning("inside mine")
    try:
        raise LookupError("no kiwi")
    except LookupError:
        log.exception("it failed")
    log.info("too quiet")
    return await weigh(item=value)

async def main():
    run = await Workflow("shop", input=int).then(check).create_run(run_id="run-1")
    return (await run.start(7)).trace_id

with configure_tracing({arguments}) as setup:
    trace_id = asyncio.run(main())
    log.error("outside")
log.error("after the end")
show(trace_id=trace_id, handlers=[type(each).__name__ for each in logging.getLogger().handlers])
"""


def records(receiver: OtlpReceiver) -> Mapping[str, ReceivedLog]:
    return {str(record.body): record for record in receiver.logs()}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_records_say_which_trace_span_run_and_step_they_are_of(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        variables = {**receiver.environment, "OTEL_LOGS_EXPORTER": "otlp", "OTEL_SERVICE_NAME": "shop"}
        ended = in_process(SCRIPT.replace("{arguments}", ""), **variables)
    found, spans = records(receiver), {span.name: span for span in receiver.spans()}
    assert found.keys() == {"inside mine", "it failed", "weighing 7", "outside"}
    for body, span in (("inside mine", "mine"), ("it failed", "step check"), ("weighing 7", "execute_tool weigh")):
        record = found[body]
        assert (record.trace_id, record.span_id) == (ended.facts["trace_id"], spans[span].span_id)
        wanted = {"spanflow.run.id": "run-1", "spanflow.step.id": "check", "spanflow.step.path": "check"}
        assert wanted.items() <= record.attributes.items()
        assert (record.scope, record.resource["service.name"]) == ("shop.orders", "shop")
    assert (found["outside"].trace_id, found["outside"].severity) == (None, "ERROR")
    assert not [key for key in found["outside"].attributes if key.startswith("spanflow.")]


def test_records_keep_their_level_their_place_their_exception_and_what_was_added() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        in_process(SCRIPT.replace("{arguments}", "logs=True"), **receiver.environment)
    found = records(receiver)
    weighing, failed = found["weighing 7"], found["it failed"]
    assert weighing.severity == "WARN"
    assert weighing.attributes["code.function.name"] == "weigh"
    assert {key: weighing.attributes[key] for key in ("shelf", "api_key", "place")} == {
        "shelf": "A3",
        "api_key": "[redacted]",
        "place": "{'row': 4}",
    }
    assert (failed.attributes["exception.type"], failed.attributes["exception.message"]) == ("LookupError", "no kiwi")
    assert str(failed.attributes["exception.stacktrace"]).endswith("LookupError: no kiwi\n")


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [("", {}), ("logs=False", {"OTEL_LOGS_EXPORTER": "otlp"}), ("", {"OTEL_LOGS_EXPORTER": "none"})],
)
def test_logs_stay_at_home_unless_they_are_asked_for(arguments: str, variables: Mapping[str, str]) -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        ended = in_process(SCRIPT.replace("{arguments}", arguments), **receiver.environment, **variables)
    assert receiver.spans() != []
    assert receiver.logs() == []
    assert ended.facts["handlers"] == []


def test_a_program_that_set_up_no_logging_still_prints_what_python_prints() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        ended = in_process(SCRIPT.replace("{arguments}", "logs=True"), **receiver.environment)
    printed = [line for line in ended.stderr.splitlines() if line in ("inside mine", "weighing 7", "outside")]
    assert printed == ["inside mine", "weighing 7", "outside"]
    assert ended.stderr.splitlines()[-1] == "after the end"
    assert ended.facts["handlers"] == []


def test_a_program_that_set_up_logging_prints_as_before_and_once() -> None:
    script = 'import logging; logging.basicConfig(format="%(levelname)s: %(message)s")\n' + SCRIPT
    with OtlpReceiver("http/protobuf") as receiver:
        ended = in_process(script.replace("{arguments}", "logs=True"), **receiver.environment)
    assert ended.stderr.splitlines().count("WARNING: weighing 7") == 1
    assert "weighing 7" in records(receiver)


def test_a_receiver_that_is_not_there_is_said_once_and_costs_no_run() -> None:
    script = SCRIPT.replace("{arguments}", "logs=True, endpoint='http://127.0.0.1:9'").replace(
        "async def main():", "logging.getLogger().setLevel(logging.DEBUG)\n\nasync def main():"
    )
    ended = in_process(script, OTEL_TRACES_EXPORTER="none", OTEL_BLRP_SCHEDULE_DELAY="10")
    assert ended.facts["trace_id"] is not None
    assert len([line for line in ended.stderr.splitlines() if "Log records do not get through" in line]) == 1


def test_debug_records_of_the_export_itself_are_not_exported() -> None:
    script = SCRIPT.replace("{arguments}", "logs=True").replace(
        "async def main():", "logging.getLogger().setLevel(logging.DEBUG)\n\nasync def main():"
    )
    with OtlpReceiver("http/protobuf") as receiver:
        in_process(script, **receiver.environment, OTEL_BLRP_SCHEDULE_DELAY="10")
    scopes = {record.scope.partition(".")[0] for record in receiver.logs()}
    assert "shop" in scopes
    assert scopes <= {"shop", "asyncio"}
