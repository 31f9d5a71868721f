import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator

import grpc
import httpx
import pytest
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import Link, SpanKind, format_span_id, format_trace_id

from tests.otlp_receiver import OtlpReceiver, WireProtocol

PROTOCOLS: tuple[WireProtocol, ...] = ("grpc", "http/protobuf")


@pytest.fixture(params=PROTOCOLS)
def receiver(request: pytest.FixtureRequest) -> Iterator[OtlpReceiver]:
    with OtlpReceiver(request.param) as receiver:
        yield receiver


def span_exporter(receiver: OtlpReceiver, *, compressed: bool) -> SpanExporter:
    if receiver.protocol == "grpc":
        compression = grpc.Compression.Gzip if compressed else grpc.Compression.NoCompression
        return GrpcSpanExporter(endpoint=receiver.endpoint, insecure=True, compression=compression)
    compression = Compression.Gzip if compressed else Compression.NoCompression
    return HttpSpanExporter(endpoint=f"{receiver.endpoint}/v1/traces", compression=compression)


def metric_exporter(receiver: OtlpReceiver) -> MetricExporter:
    if receiver.protocol == "grpc":
        return GrpcMetricExporter(endpoint=receiver.endpoint, insecure=True)
    return HttpMetricExporter(endpoint=f"{receiver.endpoint}/v1/metrics")


def tracing_to(receiver: OtlpReceiver, *, compressed: bool = False) -> TracerProvider:
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(span_exporter(receiver, compressed=compressed)))
    return provider


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_a_span_arrives_with_its_ids_times_and_attributes(receiver: OtlpReceiver, *, compressed: bool) -> None:
    provider = tracing_to(receiver, compressed=compressed)
    tracer = provider.get_tracer("shop.orders")
    with tracer.start_as_current_span("order", start_time=1_000) as parent:
        attributes = {"text": "ä", "count": 3, "share": 0.5, "paid": True, "tags": ["a", "b"]}
        child = tracer.start_span("charge", kind=SpanKind.CLIENT, attributes=attributes, start_time=2_000)
        child.end(3_000)
    provider.shutdown()

    first, second = receiver.wait_for(lambda spans: len(spans) == 2)

    assert first.name == "charge"
    assert first.kind == "CLIENT"
    assert first.trace_id == second.trace_id == format_trace_id(parent.get_span_context().trace_id)
    assert first.span_id == format_span_id(child.get_span_context().span_id)
    assert first.parent_span_id == second.span_id == format_span_id(parent.get_span_context().span_id)
    assert second.parent_span_id is None
    assert (first.start_ns, first.end_ns, second.start_ns) == (2_000, 3_000, 1_000)
    assert first.attributes == attributes
    assert first.resource["service.name"] == "shop"
    assert first.scope == "shop.orders"
    assert first.status == "UNSET"


def test_a_failure_arrives_with_its_status_and_exception(receiver: OtlpReceiver) -> None:
    provider = tracing_to(receiver)
    with pytest.raises(ValueError, match="no stock"), provider.get_tracer("shop").start_as_current_span("order"):
        raise ValueError("no stock")
    provider.shutdown()

    [span] = receiver.wait_for(lambda spans: len(spans) == 1)

    assert span.status == "ERROR"
    assert span.status_message == "ValueError: no stock"
    [event] = span.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "ValueError"
    assert span.start_ns <= event.time_ns <= span.end_ns


def test_a_link_arrives(receiver: OtlpReceiver) -> None:
    provider = tracing_to(receiver)
    tracer = provider.get_tracer("shop")
    cause = tracer.start_span("cause")
    tracer.start_span("effect", links=[Link(cause.get_span_context(), {"why": "resumed"})]).end()
    provider.shutdown()

    [span] = receiver.wait_for(lambda spans: len(spans) == 1)

    [link] = span.links
    assert link.trace_id == format_trace_id(cause.get_span_context().trace_id)
    assert link.span_id == format_span_id(cause.get_span_context().span_id)
    assert link.attributes == {"why": "resumed"}


def test_metrics_arrive_with_their_exemplars(receiver: OtlpReceiver) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("shop")
    reader = PeriodicExportingMetricReader(metric_exporter(receiver))
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("shop")
    with tracer.start_as_current_span("order") as span:
        meter.create_histogram("order.duration", unit="s").record(0.25, {"outcome": "ok"})
        meter.create_up_down_counter("orders.active").add(2)
    provider.shutdown()

    metrics = {metric.name: metric for metric in receiver.metrics()}

    duration = metrics["order.duration"]
    assert (duration.kind, duration.unit, duration.scope) == ("histogram", "s", "shop")
    [point] = duration.points
    assert (point.value, point.count, point.attributes) == (0.25, 1, {"outcome": "ok"})
    context = span.get_span_context()
    assert point.exemplars == ((format_trace_id(context.trace_id), format_span_id(context.span_id)),)
    [point] = metrics["orders.active"].points
    assert point.value == 2


def logs_request() -> bytes:
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add()
    record.trace_id = bytes(range(16))
    record.severity_text = "INFO"
    record.body.string_value = "paid"
    value = record.attributes.add(key="order").value.kvlist_value.values.add(key="id").value
    value.int_value = 7
    return request.SerializeToString()


PROTOBUF = {"Content-Type": "application/x-protobuf"}


def test_logs_arrive() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        httpx.post(f"{receiver.endpoint}/v1/logs", content=logs_request(), headers=PROTOBUF).raise_for_status()

    [record] = receiver.logs()
    assert record.trace_id == "000102030405060708090a0b0c0d0e0f"
    assert record.span_id is None
    assert (record.severity, record.body, record.attributes) == ("INFO", "paid", {"order": {"id": 7}})


@pytest.mark.parametrize(
    ("path", "headers", "content", "status"),
    [
        ("/v1/nothing", PROTOBUF, b"", 404),
        ("/v1/logs", {"Content-Type": "application/json"}, b"{}", 415),
        ("/v1/logs", PROTOBUF, b"\xff\xff", 400),
        ("/v1/logs", PROTOBUF | {"Content-Encoding": "gzip"}, logs_request(), 400),
        ("/v1/logs", PROTOBUF | {"Content-Encoding": "gzip"}, gzip.compress(logs_request())[:-9], 400),
    ],
    ids=["unknown path", "json", "not protobuf", "not gzip", "cut gzip"],
)
def test_what_is_not_otlp_is_refused(path: str, headers: dict[str, str], content: bytes, status: int) -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        assert httpx.post(receiver.endpoint + path, content=content, headers=headers).status_code == status
        assert receiver.logs() == []


def test_waiting_in_vain_says_what_came(receiver: OtlpReceiver) -> None:
    provider = tracing_to(receiver)
    provider.get_tracer("shop").start_span("order").end()
    provider.shutdown()

    with pytest.raises(TimeoutError, match=r"Received 1: order\."):
        receiver.wait_for(lambda spans: len(spans) == 2, timeout=0.05)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_its_threads_end_with_it(protocol: WireProtocol) -> None:
    before = set(threading.enumerate())
    with OtlpReceiver(protocol) as receiver:
        provider = tracing_to(receiver)
        provider.get_tracer("shop").start_span("order").end()
        provider.shutdown()
        receiver.wait_for(lambda spans: len(spans) == 1)

    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("otlp-")]
    assert left == []


def test_it_is_independent_of_what_it_checks(pytestconfig: pytest.Config) -> None:
    command = [sys.executable, "-c", "import sys, tests.otlp_receiver; print(*sys.modules)"]
    loaded = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True).stdout
    assert [name for name in loaded.split() if name.startswith(("spanflow", "opentelemetry.sdk"))] == []
