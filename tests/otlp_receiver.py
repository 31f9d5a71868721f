"""An OTLP receiver for tests: what a back end would get over the wire, decoded without spanflow and without the SDK."""

import gzip
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import Exemplar, Metric, ResourceMetrics
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

WireProtocol: TypeAlias = Literal["grpc", "http/protobuf"]  # as in OTEL_EXPORTER_OTLP_PROTOCOL
AttributeValue: TypeAlias = "str | bool | int | float | bytes | list[AttributeValue] | dict[str, AttributeValue] | None"
Attributes: TypeAlias = Mapping[str, AttributeValue]

_CERTIFICATE = Path(__file__).parent / "tls" / "certificate.pem"
_KEY = Path(__file__).parent / "tls" / "key.pem"  # of nothing but these tests


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    name: str
    time_ns: int
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class ReceivedLink:
    trace_id: str
    span_id: str
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span as it came: ids in hex, times in ns since the epoch, ``status`` and ``kind`` by their short names."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    status: str
    status_message: str
    events: tuple[ReceivedEvent, ...]
    links: tuple[ReceivedLink, ...]
    resource: Attributes
    scope: str


@dataclass(frozen=True, slots=True)
class ReceivedPoint:
    """One data point of a metric; for a histogram ``value`` is the sum. ``exemplars`` are (trace id, span id)."""

    attributes: Attributes
    value: float
    count: int
    exemplars: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ReceivedMetric:
    name: str
    unit: str
    kind: str
    points: tuple[ReceivedPoint, ...]
    resource: Attributes
    scope: str


@dataclass(frozen=True, slots=True)
class ReceivedLog:
    trace_id: str | None
    span_id: str | None
    time_ns: int
    severity: str
    body: AttributeValue
    attributes: Attributes
    resource: Attributes
    scope: str


def free_port() -> int:
    """Return a port of 127.0.0.1 where nothing listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port


class OtlpReceiver:
    """Receive traces, metrics and logs on a free port of 127.0.0.1, over one of the two protocols.

    with OtlpReceiver("grpc") as receiver:
        ...                                  # export to receiver.endpoint
        spans = receiver.wait_for(lambda spans: len(spans) == 3)

    With ``tls`` it presents ``tests/tls/certificate.pem``, which is its own authority. It can misbehave, from now on or
    again no longer: ``refuses`` is the status that it answers with, ``delay`` the seconds it takes for that, and
    ``largest`` the bytes above which a message is too large.
    """

    def __init__(self, protocol: WireProtocol = "grpc", *, port: int = 0, tls: bool = False) -> None:
        self.protocol: WireProtocol = protocol
        self.refuses: int | grpc.StatusCode | None = None
        self.delay = 0.0
        self.largest: int | None = None
        self.requests = 0
        self._port = port
        self._tls = tls
        self.resource_spans: list[ResourceSpans] = []
        self.resource_metrics: list[ResourceMetrics] = []
        self.resource_logs: list[ResourceLogs] = []
        self._arrived = threading.Condition()
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        kind = _GrpcServer if self.protocol == "grpc" else _HttpServer
        self._server = kind(self._take, self._port, self._tls)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.stop()

    @property
    def endpoint(self) -> str:
        """The base URL, as ``OTEL_EXPORTER_OTLP_ENDPOINT`` wants it: HTTP exporters add ``/v1/traces`` to it."""
        if self._server is None:
            raise RuntimeError("The receiver has no port yet: enter it with `with OtlpReceiver(...) as receiver`.")
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._server.port}"

    @property
    def port(self) -> int:
        assert self._server is not None
        return self._server.port

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point a stock exporter at this receiver."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol}

    def spans(self) -> list[ReceivedSpan]:
        """All spans so far, in order of arrival."""
        with self._arrived:
            return [span for group in self.resource_spans for span in _spans_of(group)]

    def count(self) -> int:
        """How many spans came so far; cheaper than to look at each."""
        with self._arrived:
            return sum(len(scope.spans) for group in self.resource_spans for scope in group.scope_spans)

    def metrics(self) -> list[ReceivedMetric]:
        """All metrics so far, one entry per export."""
        with self._arrived:
            return [metric for group in self.resource_metrics for metric in _metrics_of(group)]

    def logs(self) -> list[ReceivedLog]:
        """All log records so far, in order of arrival."""
        with self._arrived:
            return [record for group in self.resource_logs for record in _logs_of(group)]

    def wait_for(self, predicate: Callable[[list[ReceivedSpan]], bool], timeout: float = 100.0) -> list[ReceivedSpan]:
        """Return the spans as soon as ``predicate`` holds for them; raise ``TimeoutError`` after ``timeout`` s."""
        deadline = time.monotonic() + timeout
        with self._arrived:
            while not predicate(spans := self.spans()):
                if not self._arrived.wait(deadline - time.monotonic()):
                    names = ", ".join(span.name for span in spans) or "none"
                    raise TimeoutError(f"Not the spans waited for within {timeout} s. Received {len(spans)}: {names}.")
        return spans

    def wait_for_requests(self, number: int, timeout: float = 100.0) -> None:
        """Return when so many requests came, refused ones included."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: self.requests >= number, timeout):
                raise TimeoutError(f"{self.requests} requests came within {timeout} s, {number} were waited for.")

    def _take(self, request: Message) -> None:
        with self._arrived:
            self.requests += 1
            self._arrived.notify_all()
        if self.delay:
            time.sleep(self.delay)
        if self.refuses is not None:
            raise _Refused(self.refuses)
        if self.largest is not None and request.ByteSize() > self.largest:
            raise _Refused(413 if self.protocol != "grpc" else grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max")
        with self._arrived:
            match request:
                case ExportTraceServiceRequest():
                    self.resource_spans.extend(request.resource_spans)
                case ExportMetricsServiceRequest():
                    self.resource_metrics.extend(request.resource_metrics)
                case ExportLogsServiceRequest():
                    self.resource_logs.extend(request.resource_logs)
                case _:
                    raise TypeError(f"Not an OTLP request: {type(request).__name__}.")
            self._arrived.notify_all()


# ---------------------------------------------------------------- the two protocols


@dataclass(frozen=True, slots=True)
class _Signal:
    service: str
    path: str
    request: type[Message]
    response: type[Message]


_SIGNALS = (
    _Signal(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        "/v1/traces",
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    ),
    _Signal(
        "opentelemetry.proto.collector.metrics.v1.MetricsService",
        "/v1/metrics",
        ExportMetricsServiceRequest,
        ExportMetricsServiceResponse,
    ),
    _Signal(
        "opentelemetry.proto.collector.logs.v1.LogsService",
        "/v1/logs",
        ExportLogsServiceRequest,
        ExportLogsServiceResponse,
    ),
)

_Take: TypeAlias = Callable[[Message], None]


class _Server(Protocol):
    port: int

    def stop(self) -> None: ...


class _Refused(Exception):
    """The receiver was told to answer with this status."""

    def __init__(self, status: int | grpc.StatusCode, details: str = "refused by the test") -> None:
        super().__init__(status)
        self.status = status
        self.details = details


class _GrpcServer:
    def __init__(self, take: _Take, port: int, tls: bool) -> None:
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="otlp-grpc")
        # An exporter batches by number of spans, not by bytes: take what gRPC's own 4 MiB would refuse.
        self._server = grpc.server(self._pool, options=[("grpc.max_receive_message_length", 64 * 2**20)])
        self._server.add_generic_rpc_handlers([_grpc_handler(signal, take) for signal in _SIGNALS])
        address = f"127.0.0.1:{port}"
        if tls:
            pair = (_KEY.read_bytes(), _CERTIFICATE.read_bytes())
            self.port = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            self.port = self._server.add_insecure_port(address)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=None).wait()
        self._pool.shutdown()


def _grpc_handler(signal: _Signal, take: _Take) -> grpc.GenericRpcHandler:
    def export(request: Message, context: grpc.ServicerContext) -> Message:
        try:
            take(request)
        except _Refused as refusal:
            context.abort(cast("grpc.StatusCode", refusal.status), refusal.details)
        return signal.response()

    method = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=signal.request.FromString,
        response_serializer=signal.response.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(signal.service, {"Export": method})


class _Threads(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up, or that do not speak TLS where it is spoken."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType]


class _HttpServer:
    def __init__(self, take: _Take, port: int, tls: bool) -> None:
        self._server = _Threads(("127.0.0.1", port), _http_handler(take))
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(_CERTIFICATE, _KEY)
            self._server.socket = context.wrap_socket(
                self._server.socket,
                server_side=True,
                do_handshake_on_connect=False,  # that is done by its thread
            )
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="otlp-http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _http_handler(take: _Take) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):  # HTTP/1.0, its default: a connection ends with its request
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            signal = next((signal for signal in _SIGNALS if signal.path == self.path), None)
            if signal is None:
                return self.send_error(404)
            if self.headers.get_content_type() != "application/x-protobuf":
                return self.send_error(415)
            try:
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                take(signal.request.FromString(body))
            except _Refused as refusal:
                return self.send_error(cast("int", refusal.status))
            except (DecodeError, OSError, EOFError) as error:
                return self.send_error(400, explain=str(error))
            answer = signal.response().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Keep test output quiet."""

    return Handler


# ---------------------------------------------------------------- decoding


def _spans_of(group: ResourceSpans) -> Iterable[ReceivedSpan]:
    resource = _attributes(group.resource.attributes)
    for scope in group.scope_spans:
        for span in scope.spans:
            yield _span(span, resource, scope.scope.name)


def _span(span: Span, resource: Attributes, scope: str) -> ReceivedSpan:
    return ReceivedSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex() or None,
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        status=Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        status_message=span.status.message,
        events=tuple(ReceivedEvent(e.name, e.time_unix_nano, _attributes(e.attributes)) for e in span.events),
        links=tuple(ReceivedLink(k.trace_id.hex(), k.span_id.hex(), _attributes(k.attributes)) for k in span.links),
        resource=resource,
        scope=scope,
    )


def _metrics_of(group: ResourceMetrics) -> Iterable[ReceivedMetric]:
    resource = _attributes(group.resource.attributes)
    for scope in group.scope_metrics:
        for metric in scope.metrics:
            kind = metric.WhichOneof("data") or "none"
            points = tuple(_points(metric))
            yield ReceivedMetric(metric.name, metric.unit, kind, points, resource, scope.scope.name)


def _points(metric: Metric) -> Iterable[ReceivedPoint]:
    for point in (*metric.sum.data_points, *metric.gauge.data_points):
        value = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
        yield ReceivedPoint(_attributes(point.attributes), value, 1, _exemplars(point.exemplars))
    for point in (*metric.histogram.data_points, *metric.exponential_histogram.data_points):
        yield ReceivedPoint(_attributes(point.attributes), point.sum, point.count, _exemplars(point.exemplars))


def _exemplars(exemplars: Iterable[Exemplar]) -> tuple[tuple[str, str], ...]:
    return tuple((exemplar.trace_id.hex(), exemplar.span_id.hex()) for exemplar in exemplars)


def _logs_of(group: ResourceLogs) -> Iterable[ReceivedLog]:
    resource = _attributes(group.resource.attributes)
    for scope in group.scope_logs:
        for record in scope.log_records:
            yield _log(record, resource, scope.scope.name)


def _log(record: LogRecord, resource: Attributes, scope: str) -> ReceivedLog:
    return ReceivedLog(
        trace_id=record.trace_id.hex() or None,
        span_id=record.span_id.hex() or None,
        time_ns=record.time_unix_nano,
        severity=record.severity_text,
        body=_value(record.body),
        attributes=_attributes(record.attributes),
        resource=resource,
        scope=scope,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, AttributeValue]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> AttributeValue:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "bytes_value":
            return value.bytes_value
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case _:
            return None
