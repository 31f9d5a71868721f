"""Telemetry that misbehaves: what an application may have set up, and no run may notice."""

import threading
from collections.abc import Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.metrics import (
    Histogram,
    Meter,
    MeterProvider,
    NoOpHistogram,
    NoOpMeter,
    NoOpUpDownCounter,
    UpDownCounter,
)
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, NoOpTracerProvider, SpanKind, Tracer, TracerProvider, TraceState
from opentelemetry.util.types import Attributes


class Broken(Exception):
    """What everything in this module raises."""


class BrokenAtStart(SpanProcessor):
    """Raises for spans whose name begins with ``prefix``."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if span.name.startswith(self.prefix):
            raise Broken("on_start")


class BrokenAtEnd(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        raise Broken("on_end")


class BrokenExporter(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise Broken("export")


class HangingExporter(SpanExporter):
    """Takes spans and never comes back."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        threading.Event().wait()
        raise AssertionError("not reached")


class BrokenSampler(Sampler):
    """Raises for spans whose name begins with ``prefix``, and takes all others."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if name.startswith(self.prefix):
            raise Broken("should_sample")
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes, links)

    def get_description(self) -> str:
        return "broken"


class RecordingSampler(Sampler):
    """Takes every span, and keeps the attributes that it was asked with."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.asked.append((name, dict(attributes or {})))
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)

    def get_description(self) -> str:
        return "recording"


class BrokenProvider(TracerProvider):
    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Tracer:
        if instrumenting_module_name == "spanflow":
            raise Broken("get_tracer")
        return NoOpTracerProvider().get_tracer(instrumenting_module_name)


class _BrokenHistogram(NoOpHistogram):
    def record(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        raise Broken("record")


class _BrokenUpDownCounter(NoOpUpDownCounter):
    def add(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        raise Broken("add")


class _BrokenMeter(NoOpMeter):
    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> Histogram:
        return _BrokenHistogram(name)

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> UpDownCounter:
        return _BrokenUpDownCounter(name)


class BrokenMeterProvider(MeterProvider):
    """Its instruments raise."""

    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Meter:
        return _BrokenMeter(name)
