"""Take telemetry to where it belongs, and say once, in words for people, why it does not get there.

The OTLP exporters log each failed request, again and again, try for ten seconds on their own, and return no cause.
Here their lines are heard instead of printed, what they try again is left to who has the queue, and the first
failure of a kind becomes one line with its cause and what to change.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from spanflow.tracing import metrics
from spanflow.tracing.diagnosis import A_PAGE, diagnose, explain_refusal
from spanflow.tracing.environment import Destination, Signal
from spanflow.tracing.hearing import LONGEST_PAUSE, Verdict, hearing, judge
from spanflow.tracing.wire import Finding

_logger = logging.getLogger("spanflow")

_SILENCE = Finding(False, "it does not answer in time", "Give it more room, or raise OTEL_EXPORTER_OTLP_TIMEOUT.")
_WHAT: Mapping[Signal, str] = {"TRACES": "Spans", "METRICS": "Metrics", "LOGS": "Log records"}
_SAID_AGAIN = 600.0  # s after which a cause that was said is said again


class Delivery(Protocol):
    """Where batches go. Called on one thread; does not raise."""

    def deliver(self, batch: Sequence[ReadableSpan]) -> Verdict: ...

    def complain_of_silence(self) -> None:
        """Say that a batch is given up that waits for an answer. Called on another thread."""
        ...

    def close(self) -> None:
        """Let go of connections; called when the last batch was delivered or given up."""
        ...


class ToExporter:
    """Delivers to an exporter of the application, which keeps its own counsel about trying again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self.exporter = exporter

    def deliver(self, batch: Sequence[ReadableSpan]) -> Verdict:
        try:
            failed = self.exporter.export(batch) is SpanExportResult.FAILURE
        except Exception as error:
            metrics.warn_once("The span exporter raised; what it was given is lost: %r", error)
            failed = True
        return Verdict("refused" if failed else "sent")

    def complain_of_silence(self) -> None:
        _logger.warning("The span exporter %r takes too long; what it was given is dropped.", self.exporter)

    def close(self) -> None:
        metrics.guarded(self.exporter.shutdown)


class OtlpSpans:
    """Delivers spans by OTLP."""

    def __init__(self, make: Callable[[], SpanExporter], destination: Destination) -> None:
        self.line = _Line(make, destination)

    def deliver(self, batch: Sequence[ReadableSpan]) -> Verdict:
        return self.line.call(
            lambda exporter: exporter.export(batch) is not SpanExportResult.FAILURE, alone=len(batch) == 1
        )

    def complain_of_silence(self) -> None:
        self.line.complain_of_silence()

    def close(self) -> None:
        self.line.close()


class OtlpMetrics(MetricExporter):
    """Exports metrics by OTLP; the reader asks again with the next interval anyhow."""

    def __init__(self, make: Callable[[], MetricExporter], destination: Destination, like: MetricExporter) -> None:
        """Prefer the temporality and aggregation that an exporter ``like`` this one read from the environment."""
        preferring: Any = like
        super().__init__(preferring._preferred_temporality, preferring._preferred_aggregation)
        self.line = _Line(make, destination)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        verdict = self.line.call(
            lambda exporter: exporter.export(metrics_data, timeout_millis) is not MetricExportResult.FAILURE
        )
        return MetricExportResult.SUCCESS if verdict.kind == "sent" else MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self.line.close()


class OtlpLogs(LogRecordExporter):
    """Exports log records by OTLP. What does not get through at once is lost: a log is no journal."""

    def __init__(self, make: Callable[[], LogRecordExporter], destination: Destination) -> None:
        self.line = _Line(make, destination)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        verdict = self.line.call(lambda exporter: exporter.export(batch) is not LogRecordExportResult.FAILURE)
        return LogRecordExportResult.SUCCESS if verdict.kind == "sent" else LogRecordExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 10_000) -> bool:
        return True

    def shutdown(self) -> None:
        self.line.close()


class _Line:
    """An OTLP exporter of this very process, and what it says of its failures.

    It is made when it is first needed, and again after a fork: a gRPC channel does not outlive one. And again after a
    failure, since an exporter is kept from trying on its own only by its shutdown.
    """

    def __init__(self, make: Callable[[], Any], destination: Destination) -> None:
        self._make = make
        self._destination = destination
        self._made: tuple[int, Any] | None = None
        self._explained: tuple[str, str] | None = None
        self._closed = False

    def call(self, export: Callable[[Any], bool], *, alone: bool = True) -> Verdict:
        """Return what became of it, and say what is wrong; of what is too large only where that stands ``alone``."""
        began = time.monotonic()
        with hearing(self._leave) as heard:
            try:
                exporter = self._exporter()
            except Exception as error:
                advice = "Correct the variable OTEL_EXPORTER_OTLP_* that it is about."
                self._complain(Finding(False, f"no exporter can be made ({type(error).__name__}: {error})", advice))
                return Verdict("later", LONGEST_PAUSE)
            try:
                if export(exporter):
                    self._explained = None
                    return Verdict("sent")
                verdict, said = judge(heard, time.monotonic() - began)
            except Exception as error:  # what cannot be encoded
                verdict, said = Verdict("too_large"), f"{type(error).__name__}: {error}"
        self._leave()
        if (verdict.kind != "too_large" or alone) and self._explained != (verdict.kind, said):
            self._explained = verdict.kind, said
            self._explain(verdict, said)
        return verdict

    def complain_of_silence(self) -> None:
        self._complain(_SILENCE)

    def close(self) -> None:
        self._closed = True  # what a request that is cut off says now is no cause
        self._leave()

    def _exporter(self) -> Any:
        if self._made is None or self._made[0] != os.getpid():
            self._made = (os.getpid(), self._make())
        return self._made[1]

    def _leave(self) -> None:
        """Shut the exporter down: one that waits to try again returns at once."""
        made, self._made = self._made, None
        if made is not None and made[0] == os.getpid():
            with hearing():
                metrics.guarded(made[1].shutdown)

    def _explain(self, verdict: Verdict, said: str) -> None:
        if said.endswith(A_PAGE):
            said = A_PAGE
        status = A_PAGE if said == A_PAGE else said.partition(" ")[0].strip(":")
        to = self._destination
        answered = Finding(False, f"it answers {said}", explain_refusal(status, to))
        if verdict.kind == "too_large" and not status.isdecimal() and status != "RESOURCE_EXHAUSTED":
            self._complain(Finding(False, f"one cannot be encoded ({said})"))
        elif said and status != "UNAVAILABLE":  # gRPC's word for whatever is wrong with the connection, too
            self._complain(answered)
        else:
            found = diagnose(to)
            if found.ok and not said:
                advice = "Mind what else the exporter goes by, e.g. a proxy or REQUESTS_CA_BUNDLE."
                found = Finding(False, verdict.words, advice) if verdict.words else _SILENCE
            self._complain(answered if said and (found.ok or f"answers {status}" in found.cause) else found)

    def _complain(self, finding: Finding) -> None:
        to = self._destination
        cause = finding.cause.replace(f"/v1/{to.signal.lower()}", "")  # one cause, whichever signal meets it
        kind = (to.endpoint.partition("/v1/")[0], cause)
        now = time.monotonic()
        if not self._closed and now - _said.get(kind, -_SAID_AGAIN) >= _SAID_AGAIN:
            _said[kind] = now
            _logger.warning("%s do not get through to %s: %s", _WHAT[to.signal], to.shown, finding)


_said: dict[tuple[str, str], float] = {}
