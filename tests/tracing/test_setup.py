"""`configure_tracing` does what the standard variables say, once, and leaves an application's provider alone."""

import json
import os
import re
import subprocess
import sys
from textwrap import dedent
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource

from spanflow.errors import SpanflowError
from spanflow.tracing.provider import resource_of
from spanflow.tracing.setup import configure_tracing
from tests.otlp_receiver import OtlpReceiver, WireProtocol

PRELUDE = """
import io, json, os, sys, threading, time
from opentelemetry import metrics, trace
from spanflow.errors import SpanflowError
from spanflow.tracing.content import capture_enabled
from spanflow.tracing.setup import configure_tracing

def show(**facts):
    print(json.dumps(facts))

def processors():
    return [type(each).__name__ for each in trace.get_tracer_provider()._active_span_processor._span_processors]

def resource():
    return dict(trace.get_tracer_provider().resource.attributes)

def one_run(tracer=None):
    tracer = tracer or trace.get_tracer("spanflow")
    tracer.start_span("invoke_workflow qa").end()
"""
QUEUE, CONSOLE = "ExportQueue", "ConsoleTreeProcessor"


def in_process(script: str, **environment: str) -> tuple[dict[str, Any], str]:
    """Run a script in a process of its own, since providers are global. Return what it showed, and its stderr."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    kept["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + dedent(script)],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return (json.loads(lines[-1]) if lines else {}), done.stderr


@pytest.fixture(params=["grpc", "http/protobuf"])
def protocol(request: pytest.FixtureRequest) -> WireProtocol:
    return request.param


@pytest.mark.parametrize("by", ["variables", "arguments"])
def test_spans_and_metrics_arrive_by_otlp(protocol: WireProtocol, by: str) -> None:
    with OtlpReceiver(protocol) as receiver:
        arguments = "" if by == "variables" else f"endpoint={receiver.endpoint!r}, protocol={protocol!r}"
        variables = receiver.environment if by == "variables" else {}
        shown, stderr = in_process(
            f"""
            with configure_tracing({arguments}) as setup:
                one_run()
                metrics.get_meter("spanflow").create_counter("runs").add(1)
                show(configured=setup.configured, flushed=setup.flush())
            """,
            **variables,
            OTEL_SERVICE_NAME="shop",
        )
    assert shown == {"configured": True, "flushed": True}
    assert stderr == ""
    assert [span.name for span in receiver.spans()] == ["invoke_workflow qa"]
    assert receiver.spans()[0].resource["service.name"] == "shop"
    assert "runs" in [metric.name for metric in receiver.metrics()]


def test_no_metrics_are_sent_where_the_environment_says_none() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        in_process(
            """
            with configure_tracing():
                one_run()
                metrics.get_meter("spanflow").create_counter("runs").add(1)
            """,
            **receiver.environment,
            OTEL_METRICS_EXPORTER="none",
        )
    assert len(receiver.spans()) == 1
    assert receiver.metrics() == []


def test_spans_are_sent_at_exit_without_any_further_call() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        in_process("configure_tracing(); one_run()", **receiver.environment)
    assert len(receiver.spans()) == 1


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ("", {}, [QUEUE]),
        ("console=True", {}, [CONSOLE]),
        ("console=True", {"OTEL_TRACES_EXPORTER": "otlp"}, [QUEUE, CONSOLE]),
        ("console=True", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1"}, [QUEUE, CONSOLE]),
        ("console=True, endpoint='http://localhost:1'", {}, [QUEUE, CONSOLE]),
        ("console=True", {"OTEL_TRACES_EXPORTER": "none"}, [CONSOLE]),
        ("", {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1"}, []),
        ("", {"OTEL_TRACES_EXPORTER": "console"}, [CONSOLE]),
        ("", {"OTEL_TRACES_EXPORTER": "otlp, console"}, [QUEUE, CONSOLE]),
    ],
)
def test_spans_go_where_they_were_asked_to_go(arguments: str, environment: dict[str, str], expected: list[str]) -> None:
    shown, _ = in_process(f"configure_tracing({arguments}); show(processors=processors())", **environment)
    assert shown["processors"] == expected


def test_the_resource_names_service_host_process_and_instance() -> None:
    shown, _ = in_process(
        """
        sys.argv[0] = "/opt/app/shop.py"
        configure_tracing(console=True)
        show(pid=os.getpid(), **resource())
        """,
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
    )
    assert shown["service.name"] == "shop"
    assert shown["process.pid"] == shown["pid"]
    assert shown["host.name"]
    assert shown["service.instance.id"]
    assert shown["deployment.environment.name"] == "test"


def test_the_resource_is_the_same_key_as_one_of_the_sdk() -> None:
    for described in (resource_of("shop"), resource_of(None).merge(Resource({"process.pid": 1}))):
        plain = Resource(described.attributes, described.schema_url)
        assert (hash(described), described) == (hash(plain), plain)


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ("", {"OTEL_SERVICE_NAME": "by-variable"}, "by-variable"),
        ("", {"OTEL_RESOURCE_ATTRIBUTES": "service.name=by-attribute"}, "by-attribute"),
        ("service_name='by-argument',", {"OTEL_SERVICE_NAME": "by-variable"}, "by-argument"),
        ("", {}, "python"),
    ],
)
def test_the_service_name_is_the_most_explicit_one(arguments: str, environment: dict[str, str], expected: str) -> None:
    shown, _ = in_process(f"configure_tracing({arguments} console=True); show(**resource())", **environment)
    assert shown["service.name"] == expected


def test_a_large_fan_out_fits_the_queue_unless_the_environment_says_otherwise() -> None:
    script = """
    class Slow:
        def export(self, spans): batches.append(len(spans))
        def shutdown(self): pass
    batches = []
    configure_tracing(exporter=Slow())
    tracer = trace.get_tracer("spanflow")
    for _ in range(20_000): tracer.start_span("s").end()
    trace.get_tracer_provider().force_flush()
    show(total=sum(batches), largest=max(batches))
    """
    shown, _ = in_process(script)
    assert shown == {"total": 20_000, "largest": 2048}
    shown, _ = in_process(script, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="100")
    assert shown["largest"] == 100
    shown, _ = in_process(script, OTEL_BSP_MAX_QUEUE_SIZE="500")
    assert shown["largest"] <= 500


def test_a_given_exporter_takes_the_place_of_otlp() -> None:
    shown, _ = in_process(
        """
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        memory = InMemorySpanExporter()
        setup = configure_tracing(exporter=memory)
        one_run()
        setup.flush()
        show(names=[span.name for span in memory.get_finished_spans()], processors=processors())
        """
    )
    assert shown == {"names": ["invoke_workflow qa"], "processors": [QUEUE]}


def test_the_sampler_of_the_environment_is_used() -> None:
    shown, _ = in_process(
        """
        configure_tracing(console=True)
        show(recording=trace.get_tracer("spanflow").start_span("s").is_recording())
        """,
        OTEL_TRACES_SAMPLER="always_off",
    )
    assert shown == {"recording": False}


def test_a_disabled_sdk_stays_disabled() -> None:
    shown, stderr = in_process(
        """
        setup = configure_tracing(console=True)
        one_run()
        show(configured=setup.configured, flushed=setup.flush(), sdk="opentelemetry.sdk.trace" in sys.modules)
        """,
        OTEL_SDK_DISABLED="true",
    )
    assert shown == {"configured": False, "flushed": True, "sdk": False}
    assert stderr.splitlines() == [
        "configure_tracing: OTEL_SDK_DISABLED=true: nothing is traced. Unset it to have traces."
    ]


def test_a_provider_of_the_application_is_used_and_left_alone() -> None:
    shown, stderr = in_process(
        """
        from opentelemetry.sdk.trace import TracerProvider
        theirs = TracerProvider()
        trace.set_tracer_provider(theirs)
        with configure_tracing() as setup:
            pass
        show(same=setup.provider is theirs, configured=setup.configured, processors=processors(), text=repr(setup),
             alive=theirs._atexit_handler is not None)
        """,
        OTEL_TRACES_EXPORTER="of_another_library",
    )
    assert shown["same"] is True
    assert shown["configured"] is False
    assert shown["processors"] == []
    assert shown["alive"] is True
    assert "of the application" in shown["text"]
    assert stderr == ""


def test_the_console_can_be_added_to_a_provider_of_the_application_once() -> None:
    shown, stderr = in_process(
        """
        from opentelemetry.sdk.trace import TracerProvider
        trace.set_tracer_provider(TracerProvider())
        for _ in range(2):
            configure_tracing(console=True, endpoint="http://localhost:1")
        one_run()
        show(processors=processors())
        """
    )
    assert shown["processors"] == [CONSOLE]
    assert stderr.count("invoke_workflow qa") == 1
    assert "the given exporter, endpoint or logs are not used" in stderr


def test_a_second_call_doubles_nothing() -> None:
    shown, stderr = in_process(
        """
        first = configure_tracing(endpoint="http://localhost:1", console=True)
        second = configure_tracing(console=True)
        show(processors=processors(), first=first.configured, second=second.configured)
        """
    )
    assert shown == {"processors": [QUEUE, CONSOLE], "first": True, "second": False}
    assert stderr == ""


def test_the_console_goes_to_the_given_stream() -> None:
    shown, stderr = in_process(
        """
        stream = io.StringIO()
        configure_tracing(console=stream)
        one_run()
        show(text=stream.getvalue())
        """
    )
    assert "invoke_workflow qa" in shown["text"]
    assert stderr == ""


def test_content_capture_is_what_was_said_last() -> None:
    shown, _ = in_process(
        """
        seen = [capture_enabled()]
        for said in (True, None, False):
            configure_tracing(console=True, capture_content=said)
            seen.append(capture_enabled())
        show(seen=seen)
        """,
        OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="SPAN_ONLY",
    )
    assert shown["seen"] == [True, True, True, False]


def test_flush_and_shutdown_keep_their_timeouts_when_an_exporter_hangs() -> None:
    shown, _ = in_process(
        """
        class Hanging:
            def export(self, spans): threading.Event().wait()
            def shutdown(self): pass
        setup = configure_tracing(exporter=Hanging())
        one_run()
        before = time.monotonic()
        flushed = [setup.flush(0.05), setup.flush(0.05)]
        threads = sum(thread.name == "spanflow-telemetry" for thread in threading.enumerate())
        setup.shutdown(0.05)
        show(flushed=flushed, took=time.monotonic() - before, threads=threads)
        sys.stdout.flush()
        os._exit(0)
        """
    )
    assert shown["flushed"] == [False, False]
    assert shown["threads"] <= 1
    assert shown["took"] < 20  # else for ever


def test_importing_the_module_does_not_import_the_sdk() -> None:
    shown, _ = in_process("show(sdk=[name for name in sys.modules if name.startswith('opentelemetry.sdk')])")
    assert shown == {"sdk": []}


def test_http_does_not_import_grpc() -> None:
    shown, _ = in_process("configure_tracing(); show(grpc='grpc' in sys.modules); os._exit(sys.stdout.flush() or 0)")
    assert shown == {"grpc": False}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "http"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "http"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, "http"),
    ],
)
def test_the_protocol_is_the_one_asked_for_or_that_of_the_port(environment: dict[str, str], expected: str) -> None:
    shown, _ = in_process(
        """
        configure_tracing()
        delivery = trace.get_tracer_provider()._active_span_processor._span_processors[0]._delivery
        show(module=type(delivery.line._exporter()).__module__)
        sys.stdout.flush()
        os._exit(0)
        """,
        **environment,
        OTEL_METRICS_EXPORTER="none",
    )
    assert f".{expected}." in shown["module"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER='zipkin'.*'otlp', 'console' or 'none'"),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, "OTEL_METRICS_EXPORTER='prometheus'.*'otlp' or 'none'"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "'http/json' must be 'grpc' or 'http/protobuf'"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "tcp"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL='tcp'"),
        (
            {"OTEL_BSP_MAX_QUEUE_SIZE": "many"},
            "OTEL_BSP_MAX_QUEUE_SIZE='many' must be a whole number above 0, .*; 65536",
        ),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "5", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9"}, "Raise the one or lower the other"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "api-key=ok,geheim"}, "OTEL_EXPORTER_OTLP_HEADERS: item 2 of 2 is no header"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "api-key=schön"}, "item 1 of 1 is no header.*URL-encoded"),
    ],
)
def test_a_wrong_variable_is_named_once_with_what_to_do_and_stops_nothing(
    environment: dict[str, str], message: str
) -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        _, stderr = in_process(
            """
            with configure_tracing():
                one_run()
                metrics.get_meter("spanflow").create_counter("runs").add(1)
            """,
            **variables | environment,
        )
    (line,) = stderr.splitlines()
    assert re.search(message, line)
    assert receiver.count() == (0 if "OTEL_TRACES_EXPORTER" in environment else 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "http"}, "protocol='http' is not supported. Use 'grpc' or 'http/protobuf'"),
        ({"endpoint": "localhost:4318"}, "endpoint='localhost:4318' must begin with 'http://'"),
        ({"exporter": object()}, "has no method `export`"),
    ],
)
def test_a_wrong_argument_is_named_with_what_to_do(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpanflowError, match=message):
        configure_tracing(**arguments)
