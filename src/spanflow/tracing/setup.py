"""`configure_tracing`: the SDK and its exporters from the standard ``OTEL_*`` variables, in one call."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TextIO

from opentelemetry import metrics, trace

from spanflow.errors import SpanflowError
from spanflow.tracing import environment, leaving
from spanflow.tracing.content import set_capture
from spanflow.tracing.environment import PROTOCOLS, Destination, Protocol, listed
from spanflow.tracing.variables import leave_out_malformed

if TYPE_CHECKING:  # the SDK is imported only when tracing is configured
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

    from spanflow.tracing.export_queue import ExportQueue

_logger = logging.getLogger("spanflow")

_FOR_SPANS = 0.8  # of the time for a shutdown: the last metrics, with what was dropped, go out after the last spans
_HOPELESS = 1.0  # s for the last metrics where the back end did not take the last spans
_LONGEST_EXIT = 30.0  # s that the exit of the process waits for a back end which keeps taking spans


def configure_tracing(
    *,
    service_name: str | None = None,
    console: bool | TextIO = False,
    capture_content: bool | None = None,
    exporter: "SpanExporter | None" = None,
    protocol: Protocol | None = None,
    endpoint: str | None = None,
    logs: bool | None = None,
) -> "TracingSetup":
    """Set up tracing for this process, once, from the standard ``OTEL_*`` variables and what is given here.

    Without arguments and variables, spans and metrics go by OTLP to the standard endpoint on this machine. If the
    application has a tracer provider already, that one is used and nothing is configured but ``console``.

    Args:
        service_name: ``service.name``; else ``OTEL_SERVICE_NAME``, else the name of the program.
        console: print the tree of each finished run, to stderr or the given stream. Then OTLP needs to be asked for, by
            an endpoint or by ``OTEL_TRACES_EXPORTER=otlp``. ``OTEL_TRACES_EXPORTER=console`` means the same tree.
        capture_content: whether inputs and outputs are recorded; None leaves it to
            ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT``.
        exporter: where spans go instead of OTLP.
        protocol: of OTLP; else ``OTEL_EXPORTER_OTLP_PROTOCOL``, else gRPC for an endpoint with port 4317 and
            HTTP for any other.
        endpoint: base URL of the OTLP receiver; else ``OTEL_EXPORTER_OTLP_ENDPOINT``. It does not overrule
            ``OTEL_TRACES_EXPORTER=none``.
        logs: send what the program logs by OTLP, too, with trace, span, run and step on each record, from the levels
            on that its loggers have. None leaves it to ``OTEL_LOGS_EXPORTER=otlp``; without either, logs stay at home.
            Call ``logging.basicConfig()`` before: it does nothing where there is a handler already.

    Spans wait for their export in a queue of 65,536 (``OTEL_BSP_MAX_QUEUE_SIZE``). When an eighth of it is taken, runs
    begin no more steps until there is room, as long as the back end takes anything; one that takes nothing for five
    seconds is no longer waited for. What is queued is exported when the process exits, or is terminated by SIGTERM
    where the application does not handle that: then a back end that fails is given up after about a second, one that
    does not answer after five. An application's own provider keeps its own ways.

    Every span that is lost is counted once in the metric ``spanflow.spans.dropped``, by its reason, and once in a line
    of the log: when the back end takes spans again, else when tracing is shut down. The ``finish`` event of a run
    counts those of its own that are lost by then. Where the back end refuses spans, the end of a run waits until it is
    known what becomes of its own, for five seconds at most. Otherwise it does not wait: what is queued then may still
    arrive, minutes later where the back end was away, and no count could be final.

    A variable that cannot be meant is left out, of ``os.environ`` as well since the SDK reads that, with one warning
    that says what is used instead.

    Raises:
        SpanflowError: an argument that cannot be meant; nothing is configured then.
    """
    _check_endpoint(endpoint)
    _check_exporter(exporter)
    if protocol is not None and protocol not in PROTOCOLS:
        raise SpanflowError(f"protocol={protocol!r} is not supported. Use {listed(tuple(PROTOCOLS))}.")
    existing = trace.get_tracer_provider()
    problems: list[str] = []
    if isinstance(existing, trace.ProxyTracerProvider):
        leave_out_malformed(problems)
    if environment.is_disabled():
        setup = TracingSetup(existing, configured=False)
        problems.append("OTEL_SDK_DISABLED=true: nothing is traced. Unset it to have traces.")
    elif isinstance(existing, trace.ProxyTracerProvider):  # the API's stand-in: none was set
        environment.check_sampler(problems)
        wanted = _wanted(console, exporter, protocol, endpoint, problems)
        log_destination = _log_destination(logs, protocol, endpoint, problems)
        setup = _configure(service_name, wanted, log_destination, problems)
    else:
        setup = _use(existing, console, ignored=exporter is not None or endpoint is not None or logs is True)
    for problem in dict.fromkeys(problems):
        _logger.warning("configure_tracing: %s", problem)
    if capture_content is not None:
        set_capture(capture_content)
    return setup


class TracingSetup:
    """What `configure_tracing` set up. As a context manager it shuts down at the end.

    Attributes:
        provider: the tracer provider in use.
        configured: whether it was set up by this call; False where the application had one already, or where
            ``OTEL_SDK_DISABLED`` is true. Then `shutdown` leaves it alone.
    """

    def __init__(
        self,
        provider: trace.TracerProvider,
        *,
        configured: bool,
        beside: Sequence[Any] = (),
        queues: "Sequence[ExportQueue]" = (),
    ) -> None:
        self.provider = provider
        self.configured = configured
        self._providers = (provider, *beside)  # of spans, metrics and logs
        self._queues = queues
        self._flushing: threading.Thread | None = None

    def __repr__(self) -> str:
        origin = "configured by this call" if self.configured else "of the application, left as it was"
        return f"<TracingSetup: {type(self.provider).__name__}, {origin}>"

    def flush(self, timeout: float = 5.0) -> bool:
        """Export all spans that have ended. Return whether that was done within ``timeout`` seconds.

        With a provider of `configure_tracing`, True also tells that the back end took them; with one of the
        application, the SDK keeps that to itself (and to its log).
        """
        deadline = time.monotonic() + timeout
        if self._flushing is not None and not _ended_by(self._flushing, deadline):
            return False  # one that hangs is enough
        results: list[bool] = []
        self._flushing = _in_background(lambda: results.append(self._flush(timeout)))
        return _ended_by(self._flushing, deadline) and results == [True]

    def shutdown(self, timeout: float = 10.0) -> None:
        """Export what is left and stop, waiting no longer than ``timeout`` seconds. Spans that end later are lost.

        A back end that takes nothing is not waited for as long: one that fails about a second, one that does not answer
        five. What it has not taken by then is lost, and counted.
        """
        if not self.configured:
            return
        deadline = time.monotonic() + timeout
        taken = [queue.close(timeout * _FOR_SPANS) for queue in self._queues]
        left = deadline - time.monotonic() if all(taken) else min(deadline - time.monotonic(), _HOPELESS)
        _ended_by(_in_background(self._shutdown), time.monotonic() + left)
        leaving.forget(self.leave)

    def leave(self) -> None:
        """Export what is left as the process ends, for as long as it is taken."""
        self.shutdown(_LONGEST_EXIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _flush(self, timeout: float) -> bool:
        done = True
        for provider in self._providers:
            force_flush: Callable[..., bool] | None = getattr(provider, "force_flush", None)
            if force_flush is not None:
                done = force_flush(timeout_millis=int(timeout * 1000)) and done
        return done

    def _shutdown(self) -> None:
        for provider in self._providers:
            shutdown: Callable[[], None] | None = getattr(provider, "shutdown", None)
            if shutdown is not None:
                shutdown()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Where spans and metrics are to go; a destination stands for OTLP."""

    console: bool | TextIO
    exporter: "SpanExporter | None"
    spans: Destination | None = None
    metrics: Destination | None = None


def _wanted(
    console: bool | TextIO,
    exporter: "SpanExporter | None",
    protocol: Protocol | None,
    endpoint: str | None,
    problems: list[str],
) -> _Wanted:
    named = environment.exporter_names("TRACES", ("otlp", "console", "none"), problems)
    if console is False:
        console = "console" in (named or ())
    if exporter is not None:
        return _Wanted(console, exporter)
    asked_for = endpoint is not None or protocol is not None or environment.has_own_endpoint("TRACES")
    by_otlp = "otlp" in named if named is not None else console is False or asked_for
    if not by_otlp:
        return _Wanted(console, exporter)

    def destination(signal: environment.Signal) -> Destination:
        chosen = protocol or environment.protocol_of(signal, endpoint)
        return environment.destination_of(signal, chosen, endpoint, problems)

    with_metrics = environment.exporter_names("METRICS", ("otlp", "none"), problems) in (None, ["otlp"])
    return _Wanted(console, exporter, destination("TRACES"), destination("METRICS") if with_metrics else None)


def _log_destination(
    logs: bool | None, protocol: Protocol | None, endpoint: str | None, problems: list[str]
) -> Destination | None:
    """Return where logs are to go; None where they were not asked for."""
    named = environment.exporter_names("LOGS", ("otlp", "none"), problems)
    if not ("otlp" in (named or ()) if logs is None else logs):
        return None
    chosen = protocol or environment.protocol_of("LOGS", endpoint)
    return environment.destination_of("LOGS", chosen, endpoint, problems)


def _configure(
    service_name: str | None, wanted: _Wanted, logs: Destination | None, problems: list[str]
) -> TracingSetup:
    from spanflow.tracing import provider as sdk  # here, since it imports the SDK

    queues: list[ExportQueue] = []
    if wanted.exporter is not None:
        queues.append(sdk.queue_to(sdk.ToExporter(wanted.exporter), problems))
    if wanted.spans is not None:
        queues.append(sdk.queue_to(sdk.otlp_spans(wanted.spans), problems))
    shown = [] if wanted.console is False else [_console(wanted.console)]
    provider = sdk.make_tracer_provider(service_name, [*queues, *shown])
    trace.set_tracer_provider(provider)
    beside: list[Any] = []
    if wanted.metrics is not None and not _has_meter_provider():
        meter_provider = sdk.make_meter_provider(provider, sdk.otlp_metrics(wanted.metrics))
        metrics.set_meter_provider(meter_provider)
        beside.append(meter_provider)
    if logs is not None:
        from spanflow.tracing.log_records import LogExport  # here, since few ask for it

        beside.append(LogExport(sdk.make_logger_provider(provider, sdk.otlp_logs(logs), problems)))
    setup = TracingSetup(provider, configured=True, beside=beside, queues=queues)
    leaving.call_before_leaving(setup.leave)
    for queue in queues:
        queue.on_start_in_process(lambda: leaving.call_before_worker_ends(setup.leave))
    return setup


def _use(provider: trace.TracerProvider, console: bool | TextIO, *, ignored: bool) -> TracingSetup:
    """Take the provider that is there; all it may get is the console, and that only once."""
    add: Callable[[SpanProcessor], None] | None = getattr(provider, "add_span_processor", None)
    if console is not False and add is not None and not _has_console(provider):
        add(_console(console))
    if ignored:
        _logger.warning(
            "configure_tracing: there is a tracer provider already, so the given exporter, endpoint or logs are not "
            "used. Add them to that provider, or call configure_tracing() before the provider is set."
        )
    return TracingSetup(provider, configured=False)


def _console(stream: bool | TextIO) -> "SpanProcessor":
    from spanflow.tracing.console import ConsoleTreeProcessor  # here, since it imports the SDK

    return ConsoleTreeProcessor(None if isinstance(stream, bool) else stream)


def _has_console(provider: trace.TracerProvider) -> bool:
    processors = getattr(getattr(provider, "_active_span_processor", None), "_span_processors", ())
    return any(type(processor).__name__ == "ConsoleTreeProcessor" for processor in processors)


def _has_meter_provider() -> bool:
    return type(metrics.get_meter_provider()).__name__ != "_ProxyMeterProvider"  # the API's stand-in, not exported


def _check_endpoint(endpoint: str | None) -> None:
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise SpanflowError(
            f"endpoint={endpoint!r} must begin with 'http://' (plain text) or 'https://' (TLS), "
            f"e.g. 'http://localhost:4318'."
        )


def _check_exporter(exporter: object) -> None:
    if exporter is not None and not callable(getattr(exporter, "export", None)):
        raise SpanflowError(
            f"exporter={exporter!r} has no method `export`: a SpanExporter of the OpenTelemetry SDK was expected."
        )


def _in_background(work: Callable[[], object]) -> threading.Thread:
    """Run what may hang on a thread that nobody has to wait for: the SDK's own timeouts are not kept."""

    def guarded() -> None:
        try:
            work()
        except Exception:
            _logger.warning("Flushing or stopping telemetry raised.", exc_info=True)

    thread = threading.Thread(target=guarded, name="spanflow-telemetry", daemon=True)
    thread.start()
    return thread


def _ended_by(thread: threading.Thread, deadline: float) -> bool:
    thread.join(max(0.0, deadline - time.monotonic()))
    return not thread.is_alive()
