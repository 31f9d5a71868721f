"""Each thing that keeps traces from showing up is found by itself, with what to change."""

import os
from collections.abc import Mapping

import pytest

from spanflow.tracing.checkup import Check, Checkup
from spanflow.tracing.environment import Protocol
from tests.otlp_receiver import OtlpReceiver, free_port

TRACEPARENT = "00-8c0467ea03716c1256ab2a7713c726a0-00f067aa0ba902b7-"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def found(name: str, checks: list[Check]) -> Check:
    """The check of this name that matters most: what is wrong, where something is."""
    of_name = [check for check in checks if check.name == name]
    assert of_name, [check.name for check in checks]
    return next((check for check in of_name if check.ok is False), of_name[0])


@pytest.mark.parametrize(
    ("variables", "name", "ok", "said"),
    [
        ({}, "sdk", True, "not disabled"),
        ({"OTEL_SDK_DISABLED": "true"}, "sdk", False, "OTEL_SDK_DISABLED=true: nothing is traced."),
        ({}, "exporter", True, "OTEL_TRACES_EXPORTER is not set"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "exporter", False, "OTEL_TRACES_EXPORTER=none: no span leaves the process."),
        ({"OTEL_TRACES_EXPORTER": "console"}, "exporter", False, "no span leaves the process."),
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "exporter", False, "'jaeger' is not known here"),
        ({"OTEL_TRACES_EXPORTER": "otlp,console"}, "exporter", True, "otlp"),
        ({}, "sampling", True, "parentbased_always_on (the default)"),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "sampling", False, "no trace is sampled"),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "variables", False, "OTEL_TRACES_SAMPLER='sometimes' must be"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
            "sampling",
            False,
            "no trace is sampled",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
            "sampling",
            None,
            "keeps 0.25 of all traces",
        ),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, "sampling", True, "traceidratio"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "most"},
            "variables",
            False,
            "OTEL_TRACES_SAMPLER_ARG='most' must be a number from 0 to 1; 1 (all) is used.",
        ),
        ({"OTEL_SERVICE_NAME": "shop"}, "service", True, "shop: look for traces under this name"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop"}, "service", True, "shop"),
        ({}, "service", None, "OTEL_SERVICE_NAME is not set"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "many"}, "variables", False, "OTEL_BSP_MAX_QUEUE_SIZE='many'"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "10"}, "queue", None, "wide runs are slowed down"),
        ({}, "endpoint", True, "http://localhost:4318/v1/traces by http/protobuf (the default"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "endpoint", True, "http://localhost:4317 by grpc"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "variables", False, "'http/json' must be"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:9999"},
            "endpoint",
            False,
            "is used as it stands, without a path",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1"}, "receiver", False, "is no URL"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:hush@localhost:9"},
            "endpoint",
            True,
            "http://localhost:9/v1/traces",
        ),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "api-key"}, "variables", False, "item 1 of 1 is no header"),
        (
            {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=hush,tenant=a"},
            "headers",
            True,
            "api-key, tenant (values not shown)",
        ),
        ({"OTEL_PYTHON_TRACER_PROVIDER": "mine"}, "provider", None, "OTEL_PYTHON_TRACER_PROVIDER=mine"),
        ({}, "versions", None, "opentelemetry-sdk 1."),
    ],
    ids=str,
)
def test_a_variable_is_judged(
    monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], name: str, ok: bool | None, said: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    check = found(name, list(Checkup(timeout=0.2).examine()))
    assert check.ok is ok
    assert said in check.said
    assert "hush" not in check.said


@pytest.mark.parametrize(
    ("header", "sampler", "ok", "said"),
    [
        (f"{TRACEPARENT}01", "", True, "a run below it is sampled"),
        (f"{TRACEPARENT}00", "", False, "its flags say that its trace is not sampled"),
        (f"{TRACEPARENT}00", "always_on", True, "a run below it is sampled"),
        (f"{TRACEPARENT}01", "always_off", False, "the sampler leaves it out"),
        ("00-xyz-1-01", "", False, "is malformed"),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", "", False, "is malformed"),
    ],
)
def test_a_traceparent_is_judged_by_the_sampler(
    monkeypatch: pytest.MonkeyPatch, header: str, sampler: str, ok: bool, said: str
) -> None:
    if sampler:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    check = found("traceparent", list(Checkup(traceparent=header, timeout=0.2).examine()))
    assert check.ok is ok
    assert said in check.said


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_test_span_is_sent_also_where_nothing_is_sampled(monkeypatch: pytest.MonkeyPatch, protocol: Protocol) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with OtlpReceiver(protocol) as receiver:
        checkup = Checkup(receiver.endpoint, protocol)
        assert found("receiver", list(checkup.examine())).ok is True
        sent = checkup.send()
        (span,) = receiver.spans()
    assert sent.check.ok is True
    assert (span.name, span.trace_id) == ("spanflow doctor", sent.trace_id)
    assert sent.trace_id in sent.check.said


def test_a_test_span_that_is_not_taken_says_why_and_prints_nothing(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    sent = Checkup(f"http://127.0.0.1:{port}").send()
    assert sent.check.ok is False
    assert f"nothing listens on 127.0.0.1:{port}" in sent.check.said
    assert caplog.records == []


def test_nothing_is_sent_by_an_sdk_that_is_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with OtlpReceiver("http/protobuf") as receiver:
        sent = Checkup(receiver.endpoint).send()
        assert receiver.spans() == []
    assert sent.check.ok is False
