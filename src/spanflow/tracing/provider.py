"""The SDK's providers as `configure_tracing` sets them up. Imported only by that call: importing it costs the SDK."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import HOST_NAME, PROCESS_PID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from spanflow.errors import SpanflowError

Protocol = Literal["grpc", "http/protobuf"]

_MAX_QUEUE_SIZE = 65_536  # spans; the SDK's 2048 loses half of a fan-out
_MAX_EXPORT_BATCH_SIZE = 2_048  # spans
_SCHEDULE_DELAY = 1_000  # ms


def make_tracer_provider(service_name: str | None, processors: Sequence[SpanProcessor]) -> TracerProvider:
    """Make a tracer provider; sampler and limits come from ``OTEL_TRACES_SAMPLER`` and its like."""
    provider = TracerProvider(resource=_resource(service_name))
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


def make_meter_provider(provider: TracerProvider, exporter: MetricExporter) -> MeterProvider:
    """Make a meter provider that describes the same resource; ``OTEL_METRIC_EXPORT_INTERVAL`` is its interval."""
    return MeterProvider([PeriodicExportingMetricReader(exporter)], resource=provider.resource)


def batches(exporter: SpanExporter) -> BatchSpanProcessor:
    """Export in batches, with a queue that holds a large fan-out unless ``OTEL_BSP_*`` says otherwise."""
    queue_size = _positive("OTEL_BSP_MAX_QUEUE_SIZE", _MAX_QUEUE_SIZE)
    batch_size = _positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(_MAX_EXPORT_BATCH_SIZE, queue_size))
    if batch_size > queue_size:
        raise SpanflowError(
            f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE={batch_size} is more than the queue holds "
            f"(OTEL_BSP_MAX_QUEUE_SIZE={queue_size}). Raise the one or lower the other."
        )
    delay = _positive("OTEL_BSP_SCHEDULE_DELAY", _SCHEDULE_DELAY)
    return BatchSpanProcessor(exporter, queue_size, delay, batch_size)


def otlp_span_exporter(protocol: Protocol, endpoint: str | None) -> SpanExporter:
    """Make the OTLP exporter for spans; whatever is not given it reads from ``OTEL_EXPORTER_OTLP_*``."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(_with_path(endpoint, "/v1/traces"))


def otlp_metric_exporter(protocol: Protocol, endpoint: str | None) -> MetricExporter:
    """Make the OTLP exporter for metrics."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter

        return GrpcExporter(endpoint)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter

    return HttpExporter(_with_path(endpoint, "/v1/metrics"))


def _with_path(endpoint: str | None, path: str) -> str | None:
    """Complete a base URL, as the exporters do for ``OTEL_EXPORTER_OTLP_ENDPOINT`` but not for their argument."""
    if endpoint is None or endpoint.endswith(path):
        return endpoint
    return endpoint.rstrip("/") + path


def _resource(service_name: str | None) -> Resource:
    described = Resource({HOST_NAME: socket.gethostname(), PROCESS_PID: os.getpid()}).merge(Resource.create())
    named = service_name
    if named is None and str(described.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        named = _program_name()
    return described if named is None else described.merge(Resource({SERVICE_NAME: named}))


def _program_name() -> str:
    program = Path(sys.argv[0] if sys.argv else "")
    name = program.parent.name if program.stem == "__main__" else program.stem
    return name if name not in ("", "-c", "-m", "-") else "python"


def _positive(variable: str, default: int) -> int:
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) == 0:
        raise SpanflowError(f"{variable}={text!r} must be a positive whole number. Leave it out for {default}.")
    return int(text)
