"""The SDK's providers as `configure_tracing` sets them up. Imported only by that call: importing it costs the SDK."""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import HOST_NAME, PROCESS_PID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from spanflow.tracing.delivery import Delivery, OtlpLogs, OtlpMetrics, OtlpSpans
from spanflow.tracing.delivery import ToExporter as ToExporter
from spanflow.tracing.environment import Destination, Problems, positive
from spanflow.tracing.export_queue import ExportQueue
from spanflow.tracing.hearing import hearing

_MAX_QUEUE_SIZE = 65_536  # spans; the SDK's 2048 loses half of a fan-out
_MAX_EXPORT_BATCH_SIZE = 2_048  # spans
_SCHEDULE_DELAY = 1_000  # ms


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


def make_logger_provider(provider: TracerProvider, exporter: LogRecordExporter) -> LoggerProvider:
    """Make a logger provider that describes the same resource; ``OTEL_BLRP_*`` say how it batches."""
    logger_provider = LoggerProvider(provider.resource, shutdown_on_exit=False)
    logger_provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    return logger_provider


def queue_to(delivery: Delivery, problems: Problems) -> ExportQueue:
    """Queue spans on their way to a delivery, as ``OTEL_BSP_*`` says, else so that a large fan-out finds room."""
    size = positive("OTEL_BSP_MAX_QUEUE_SIZE", _MAX_QUEUE_SIZE, problems)
    fitting = min(_MAX_EXPORT_BATCH_SIZE, size)
    batch_size = positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", fitting, problems)
    if batch_size > size:
        problems.append(
            f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE={batch_size} is more than the queue holds "
            f"(OTEL_BSP_MAX_QUEUE_SIZE={size}), and {fitting} is used. Raise the one or lower the other."
        )
        batch_size = fitting
    delay = positive("OTEL_BSP_SCHEDULE_DELAY", _SCHEDULE_DELAY, problems)
    return ExportQueue(delivery, size, batch_size, delay / 1000)


def otlp_spans(destination: Destination) -> OtlpSpans:
    """Deliver spans by OTLP; whatever is not said here the exporter reads from ``OTEL_EXPORTER_OTLP_*``.

    What it needs is imported at once: the first spans of a short program go out when it is too late for that.
    """
    if destination.protocol == "grpc":
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else its core prints each failed handshake
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return OtlpSpans(lambda: GrpcExporter(destination.endpoint), destination)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return OtlpSpans(lambda: HttpExporter(destination.endpoint), destination)


def otlp_metrics(destination: Destination) -> MetricExporter:
    """Export metrics by OTLP."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter

    with hearing():
        like = HttpExporter(destination.endpoint)  # it opens no connection, and reads what gRPC's would
    if destination.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter

        return OtlpMetrics(lambda: GrpcExporter(destination.endpoint), destination, like)
    return OtlpMetrics(lambda: HttpExporter(destination.endpoint), destination, like)


def otlp_logs(destination: Destination) -> LogRecordExporter:
    """Export log records by OTLP."""
    if destination.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcExporter

        return OtlpLogs(lambda: GrpcExporter(destination.endpoint), destination)
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpExporter

    return OtlpLogs(lambda: HttpExporter(destination.endpoint), destination)


def resource_of(service_name: str | None) -> Resource:
    described = Resource({HOST_NAME: socket.gethostname(), PROCESS_PID: os.getpid()}).merge(Resource.create())
    named = service_name
    if named is None and str(described.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        named = _program_name()
    return described if named is None else described.merge(Resource({SERVICE_NAME: named}))


def _program_name() -> str:
    program = Path(sys.argv[0] if sys.argv else "")
    name = program.parent.name if program.stem == "__main__" else program.stem
    return name if name not in ("", "-c", "-m", "-") else "python"
