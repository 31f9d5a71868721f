"""What cannot be meant in an ``OTEL_*`` variable is said once, with what is used instead, and loses nothing."""

import os
import re
from collections.abc import Mapping

import pytest

from spanflow.tracing.variables import leave_out_malformed
from tests.otlp_receiver import OtlpReceiver, WireProtocol
from tests.tracing_contract.processes import in_process

SIGNALS = ("", "TRACES_", "METRICS_", "LOGS_")
NUMBERS = [
    *(f"OTEL_EXPORTER_OTLP_{of}TIMEOUT" for of in SIGNALS),
    *("OTEL_METRIC_EXPORT_INTERVAL", "OTEL_METRIC_EXPORT_TIMEOUT"),
]
SIZES = [
    f"OTEL_{kind}_{name}"
    for kind in ("BSP", "BLRP")
    for name in ("MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE", "SCHEDULE_DELAY", "EXPORT_TIMEOUT")
]
LIMITS = ["OTEL_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT", "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT"]
NAMES = [
    "OTEL_SDK_DISABLED",
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED",
    "OTEL_TRACES_SAMPLER",
    "OTEL_METRICS_EXEMPLAR_FILTER",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
    *(f"OTEL_EXPORTER_OTLP_{of}{name}" for of in SIGNALS for name in ("COMPRESSION", "INSECURE", "PROTOCOL")),
]
LISTS = [
    *("OTEL_RESOURCE_ATTRIBUTES", "OTEL_PROPAGATORS", "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"),
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES",
]
HEADERS = [f"OTEL_EXPORTER_OTLP_{of}HEADERS" for of in SIGNALS]
ALL = [*NUMBERS, *SIZES, *LIMITS, *NAMES, *LISTS, *HEADERS]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


def left_out(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return what is said of variables, and what is left of them."""
    for name in ("OTEL_TRACES_SAMPLER_ARG", *variables):  # so that all is as before after the test
        monkeypatch.setenv(name, "")
    os.environ.update(variables)
    problems: list[str] = []
    leave_out_malformed(problems)
    return problems, {name: os.environ[name] for name in variables if name in os.environ}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *((name, value) for name in NUMBERS for value in ("soon", "0", "-1", "nan", "inf", "1e300", "1,5")),
        *((name, value) for name in SIZES for value in ("many", "0", "-1", "1.5", "1e3", "²", "9" * 5000)),
        *((name, value) for name in LIMITS for value in ("none", "-1", "1.5")),
        *((name, "nonsense") for name in NAMES),
    ],
)
def test_a_value_that_cannot_be_meant_is_named_with_what_is_used_instead(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    (problem,), left = left_out(monkeypatch, {variable: value})
    assert problem.startswith(f"{variable}={value!r} must be ")
    assert re.search(r"; \S.* is used\.$", problem)
    assert left == {}


@pytest.mark.parametrize("variable", [name for name in ALL if name not in LIMITS])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch, variable: str, empty: str) -> None:
    assert left_out(monkeypatch, {variable: empty}) == ([], {})


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", " 2.5 ", "2.5"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "500", "500"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "0", "0"),
        ("OTEL_TRACES_SAMPLER", " Always_On ", "always_on"),
        ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "GZIP", "gzip"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%2Cb=,tenant=x;y", "api-key=a%2Cb=,tenant=x;y"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b, c=d=e,f=", "a=b, c=d=e,f="),
        ("OTEL_PROPAGATORS", "tracecontext,baggage,,", "tracecontext,baggage"),
        ("OTEL_PROPAGATORS", "none", "none"),
    ],
)
def test_a_value_that_can_be_meant_is_kept_as_the_sdk_reads_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, read: str
) -> None:
    assert left_out(monkeypatch, {variable: value}) == ([], {variable: read})


def test_a_variable_of_a_signal_gives_way_to_that_of_all_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,), left = left_out(
        monkeypatch, {"OTEL_EXPORTER_OTLP_TIMEOUT": "3", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "soon"}
    )
    assert (
        problem == "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT='soon' must be a number of seconds above 0, up to 1e9; 3 is used."
    )
    assert left == {"OTEL_EXPORTER_OTLP_TIMEOUT": "3"}


@pytest.mark.parametrize(
    ("sampler", "argument", "problems", "used"),
    [
        ("traceidratio", "abc", 1, "1.0"),
        ("parentbased_traceidratio", "1.01", 1, "1.0"),
        ("traceidratio", "-0.1", 1, "1.0"),
        ("traceidratio", "nan", 1, "1.0"),
        ("traceidratio", "", 0, "1.0"),
        ("traceidratio", "0", 0, "0"),
        ("always_on", "abc", 0, "abc"),  # which nobody reads
    ],
)
def test_the_argument_of_a_sampler_counts_where_it_needs_one(
    monkeypatch: pytest.MonkeyPatch, sampler: str, argument: str, problems: int, used: str
) -> None:
    variables = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}
    said, left = left_out(monkeypatch, variables)
    assert (len(said), left["OTEL_TRACES_SAMPLER_ARG"]) == (problems, used)


@pytest.mark.parametrize(
    "header",
    ["geheim", "=geheim", "my key=geheim", "schlüssel=geheim", "a=ge%0Aheim", "a=ge\nheim", 'a="geheim"', ":a=geheim"],
)
def test_a_header_that_cannot_be_sent_is_named_by_its_place_alone(monkeypatch: pytest.MonkeyPatch, header: str) -> None:
    (problem,), left = left_out(monkeypatch, {"OTEL_EXPORTER_OTLP_HEADERS": f"a=b,{header},c=d"})
    assert problem.startswith("OTEL_EXPORTER_OTLP_HEADERS: item 2 of 3 is no header that can be sent, and left out.")
    assert "heim" not in problem
    assert left == {"OTEL_EXPORTER_OTLP_HEADERS": "a=b,c=d"}


@pytest.mark.parametrize("header", ["Content-Type=text/plain", "host=elsewhere"])
def test_a_header_that_is_the_exporters_own_is_left_out(monkeypatch: pytest.MonkeyPatch, header: str) -> None:
    assert left_out(monkeypatch, {"OTEL_EXPORTER_OTLP_TRACES_HEADERS": header})[1] == {}


@pytest.mark.parametrize(("variable", "good"), [("OTEL_RESOURCE_ATTRIBUTES", "a=b"), ("OTEL_PROPAGATORS", "baggage")])
def test_an_item_of_a_list_that_cannot_be_meant_is_named_and_the_others_stay(
    monkeypatch: pytest.MonkeyPatch, variable: str, good: str
) -> None:
    (problem,), left = left_out(monkeypatch, {variable: f"nonsense,{good}"})
    assert problem.startswith(f"{variable}: item 1 of 2, 'nonsense', is no ")
    assert left == {variable: good}


PROGRAM = """
import logging
from opentelemetry import metrics
from spanflow import Workflow, configure_tracing, step

@step
async def item(value: int) -> int:
    logging.getLogger("mine").warning("hello")
    return value + 1

async def main():
    return (await (await Workflow("one", input=int).then(item).create_run()).start(1)).status

with configure_tracing(logs=True) as setup:
    status = asyncio.run(main())
    flushed = setup.flush()
from opentelemetry import propagate
show(status=status, flushed=flushed, propagates=len(propagate.get_global_textmap()._propagators))
"""


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_where_every_variable_is_malformed_each_is_said_once_and_all_arrives(protocol: WireProtocol) -> None:
    kept = [name for name in ALL if name != "OTEL_EXPORTER_OTLP_PROTOCOL"]  # by which the receiver is spoken to
    with OtlpReceiver(protocol) as receiver:
        ended = in_process(PROGRAM, **dict.fromkeys(kept, "nonsense") | receiver.environment)
        assert [span.name for span in receiver.spans()] == ["step item", "invoke_workflow one"]
        assert "spanflow.step.duration" in {metric.name for metric in receiver.metrics()}
        assert "hello" in [record.body for record in receiver.logs()]
    assert ended.facts == {"status": "success", "flushed": True, "propagates": 2}
    said = [line for line in ended.stderr.splitlines() if line != "hello"]
    assert all(line.startswith("configure_tracing: OTEL_") for line in said), ended.stderr
    assert sorted(re.findall(r"^configure_tracing: (OTEL_\w+)", line)[0] for line in said) == sorted(kept)


@pytest.mark.parametrize("variable", ["OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER"])
def test_a_provider_that_is_not_installed_is_said_once_and_ours_is_used(variable: str) -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        ended = in_process(PROGRAM, **receiver.environment, **{variable: "nonsense"})
        assert receiver.count() == 2
        assert receiver.metrics() != []
    said, hello = ended.stderr.splitlines()
    assert said.startswith(f"{variable}='nonsense' names no provider that is installed here, and is left out.")
    assert hello == "hello"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_plugin_for_credentials_that_is_not_installed_stops_no_program(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        variables = {**receiver.environment, "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER": "nonsense"}
        ended = in_process(PROGRAM, **variables)
    assert ended.facts["status"] == "success"
    causes = [line for line in ended.stderr.splitlines() if "do not get through" in line]
    assert len(causes) == (0 if protocol == "grpc" else 1)
    assert all("'nonsense' not found" in line for line in causes)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("value", ["none", "gzip"])
def test_every_compression_that_both_ends_know_is_used(protocol: WireProtocol, value: str) -> None:
    with OtlpReceiver(protocol) as receiver:
        variables = {**receiver.environment, "OTEL_EXPORTER_OTLP_COMPRESSION": value}
        ended = in_process(PROGRAM, **variables)
        assert receiver.count() == 2
    assert ended.stderr.splitlines() == ["hello"]


def test_a_queue_smaller_than_a_batch_makes_smaller_batches_of_log_records_too() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        ended = in_process(PROGRAM, **receiver.environment, OTEL_BLRP_MAX_QUEUE_SIZE="10", OTEL_BSP_MAX_QUEUE_SIZE="10")
        assert (receiver.count(), len(receiver.logs())) == (2, 1)
    assert ended.stderr.splitlines() == ["hello"]


def test_an_endpoint_without_a_scheme_is_as_secure_as_the_variable_for_that_says() -> None:
    with OtlpReceiver("grpc") as receiver:
        place = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"127.0.0.1:{receiver.port}", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        in_process(PROGRAM, **place, OTEL_EXPORTER_OTLP_INSECURE="true")
        assert receiver.count() == 2
