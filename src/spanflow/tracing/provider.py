"""The SDK's providers as `configure_tracing` sets them up. Imported only by that call: importing it costs the SDK."""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import HOST_NAME, PROCESS_PID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from spanflow.tracing.delivery import Delivery, OtlpLogs, OtlpMetrics, OtlpSpans
from spanflow.tracing.delivery import ToExporter as ToExporter
from spanflow.tracing.diagnosis import A_PAGE
from spanflow.tracing.environment import Destination, Problems, whole
from spanflow.tracing.export_queue import ExportQueue
from spanflow.tracing.hearing import hearing

_SPAN_SIZES = (65_536, 2_048)  # of the queue and of a batch; the SDK's 2048 for a queue loses half of a fan-out
_LOG_SIZES = (2_048, 512)  # the SDK's own
_SCHEDULE_DELAY = 1_000  # ms


class _Described(Resource):
    """A resource that knows its hash. The OTLP encoder asks for it with each span, and the SDK writes JSON to tell."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    def merge(self, other: Resource) -> Resource:
        return _Described(super().merge(other))


def make_tracer_provider(service_name: str | None, processors: Sequence[SpanProcessor]) -> TracerProvider:
    """Make a tracer provider; sampler and limits come from ``OTEL_TRACES_SAMPLER`` and its like."""
    provider = TracerProvider(resource=resource_of(service_name), shutdown_on_exit=False)  # that hangs; see `leaving`
    for processor in processors:
        provider.add_span_processor(processor)
    update: Callable[[Resource], None] | None = getattr(provider, "_update_resource", None)
    if update is not None and hasattr(os, "register_at_fork"):  # the SDK renews the id of the instance, but not this
        os.register_at_fork(after_in_child=lambda: update(Resource({PROCESS_PID: os.getpid()})))
    return provider


def make_meter_provider(provider: TracerProvider, exporter: MetricExporter) -> MeterProvider:
    """Make a meter provider that describes the same resource; ``OTEL_METRIC_EXPORT_INTERVAL`` is its interval."""
    return MeterProvider([PeriodicExportingMetricReader(exporter)], provider.resource, shutdown_on_exit=False)


def make_logger_provider(provider: TracerProvider, exporter: LogRecordExporter, problems: Problems) -> LoggerProvider:
    """Make a logger provider that describes the same resource; ``OTEL_BLRP_*`` say how it batches."""
    logger_provider = LoggerProvider(provider.resource, shutdown_on_exit=False)
    size, batch_size = _sizes("OTEL_BLRP", *_LOG_SIZES, problems)
    processor = BatchLogRecordProcessor(exporter, max_queue_size=size, max_export_batch_size=batch_size)
    logger_provider.add_log_record_processor(processor)
    return logger_provider


def queue_to(delivery: Delivery, problems: Problems) -> ExportQueue:
    """Queue spans on their way to a delivery, as ``OTEL_BSP_*`` says, else so that a large fan-out finds room."""
    size, batch_size = _sizes("OTEL_BSP", *_SPAN_SIZES, problems)
    return ExportQueue(delivery, size, batch_size, whole("OTEL_BSP_SCHEDULE_DELAY", _SCHEDULE_DELAY) / 1000)


def _sizes(kind: str, size: int, batch_size: int, problems: Problems) -> tuple[int, int]:
    """Return how many a queue holds and a batch has, where the environment may say otherwise."""
    size = whole(f"{kind}_MAX_QUEUE_SIZE", size)
    fitting = min(batch_size, size)
    batch_size = whole(f"{kind}_MAX_EXPORT_BATCH_SIZE", fitting)
    if batch_size <= size:
        return size, batch_size
    problems.append(
        f"{kind}_MAX_EXPORT_BATCH_SIZE={batch_size} is more than the queue holds "
        f"({kind}_MAX_QUEUE_SIZE={size}), and {fitting} is used. Raise the one or lower the other."
    )
    return size, fitting


def otlp_spans(destination: Destination) -> OtlpSpans:
    """Deliver spans by OTLP; what a destination does not say the exporter reads from ``OTEL_EXPORTER_OTLP_*``.

    What it needs is imported at once: the first spans of a short program go out when it is too late for that.
    """
    if destination.protocol == "grpc":
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else its core prints each failed handshake
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return OtlpSpans(lambda: GrpcExporter(**_by_grpc(destination)), destination)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return OtlpSpans(lambda: HttpExporter(**_by_http(destination)), destination)


def otlp_metrics(destination: Destination) -> MetricExporter:
    """Export metrics by OTLP."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter

    with hearing():
        own = {"session": _session()}  # else it looks for one that the environment names, and raises
        like = HttpExporter(**_by_http(destination) | own)  # it opens no connection, and reads what gRPC's would
    if destination.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter

        return OtlpMetrics(lambda: GrpcExporter(**_by_grpc(destination)), destination, like)
    return OtlpMetrics(lambda: HttpExporter(**_by_http(destination)), destination, like)


def otlp_logs(destination: Destination) -> LogRecordExporter:
    """Export log records by OTLP."""
    if destination.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcExporter

        return OtlpLogs(lambda: GrpcExporter(**_by_grpc(destination)), destination)
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpExporter

    return OtlpLogs(lambda: HttpExporter(**_by_http(destination)), destination)


def _by_grpc(destination: Destination) -> dict[str, Any]:
    """Return the arguments of an exporter. Each of gRPC's takes variables apart in a way that raises for some."""
    from grpc import Compression  # here, since it is heavy

    return {
        "endpoint": destination.endpoint,
        "insecure": destination.endpoint.startswith("http://") or None,
        "headers": dict(destination.headers),
        "compression": Compression.Gzip if destination.compression == "gzip" else Compression.NoCompression,
    }


def _by_http(destination: Destination) -> dict[str, Any]:
    from opentelemetry.exporter.otlp.proto.http import Compression

    prefix = "OTEL_PYTHON_EXPORTER_OTLP_HTTP"
    named = any(os.environ.get(f"{prefix}_{of}CREDENTIAL_PROVIDER") for of in ("", f"{destination.signal}_"))
    return {
        "endpoint": destination.endpoint,
        "headers": dict(destination.headers),
        "compression": Compression(destination.compression),
        "session": None if named else _session(),
    }


def _session() -> Any:
    """Return a session that refuses web pages: one comes with 200 OK, too, and what was sent is lost in it."""
    session: Any = import_module("requests").Session()  # there, since the exporter needs it
    session.hooks["response"].append(_refuse_page)
    return session


def _refuse_page(response: Any, *_: object, **__: object) -> None:
    if response.ok and "html" in response.headers.get("Content-Type", ""):
        response.status_code, response.reason = 404, A_PAGE


def resource_of(service_name: str | None) -> Resource:
    described = Resource({HOST_NAME: socket.gethostname(), PROCESS_PID: os.getpid()}).merge(Resource.create())
    named = service_name
    if named is None and str(described.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        named = _program_name()
    return _Described(described if named is None else described.merge(Resource({SERVICE_NAME: named})))


def _program_name() -> str:
    program = Path(sys.argv[0] if sys.argv else "")
    name = program.parent.name if program.stem == "__main__" else program.stem
    return name if name not in ("", "-c", "-m", "-") else "python"
