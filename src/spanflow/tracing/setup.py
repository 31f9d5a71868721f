"""`configure_tracing`: the SDK and its exporters from the standard ``OTEL_*`` variables, in one call."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO
from urllib.parse import urlsplit

from opentelemetry import metrics, trace

from spanflow.errors import SpanflowError
from spanflow.tracing.content import set_capture

if TYPE_CHECKING:  # the SDK is imported only when tracing is configured
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

_logger = logging.getLogger(__name__)

Protocol = Literal["grpc", "http/protobuf"]

_PROTOCOLS: dict[str, Protocol] = {"grpc": "grpc", "http/protobuf": "http/protobuf"}
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_GRPC_PORT = 4317  # by OTLP's convention; 4318 is HTTP


def configure_tracing(
    *,
    service_name: str | None = None,
    console: bool | TextIO = False,
    capture_content: bool | None = None,
    exporter: "SpanExporter | None" = None,
    protocol: Protocol | None = None,
    endpoint: str | None = None,
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

    Raises:
        SpanflowError: a value, here or in the environment, that cannot be meant; nothing is configured then.
    """
    _check_endpoint(endpoint)
    _check_exporter(exporter)
    if protocol is not None:
        _known_protocol("protocol", protocol)
    existing = trace.get_tracer_provider()
    if _is_disabled():
        setup = TracingSetup(existing, configured=False)
    elif isinstance(existing, trace.ProxyTracerProvider):  # the API's stand-in: none was set
        setup = _configure(service_name, _wanted(console, exporter, protocol, endpoint))
    else:
        setup = _use(existing, console, ignored=exporter is not None or endpoint is not None)
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

    def __init__(self, provider: trace.TracerProvider, *, configured: bool, meter_provider: Any = None) -> None:
        self.provider = provider
        self.configured = configured
        self._meter_provider = meter_provider
        self._flushing: threading.Thread | None = None

    def __repr__(self) -> str:
        origin = "configured by this call" if self.configured else "of the application, left as it was"
        return f"<TracingSetup: {type(self.provider).__name__}, {origin}>"

    def flush(self, timeout: float = 5.0) -> bool:
        """Export all spans that have ended. Return whether that was done within ``timeout`` seconds.

        True does not tell that the receiver took them: the SDK keeps that to itself (and to its log).
        """
        deadline = time.monotonic() + timeout
        if self._flushing is not None and not _ended_by(self._flushing, deadline):
            return False  # one that hangs is enough
        results: list[bool] = []
        self._flushing = _in_background(lambda: results.append(self._flush(timeout)))
        return _ended_by(self._flushing, deadline) and results == [True]

    def shutdown(self, timeout: float = 10.0) -> None:
        """Export what is left and stop, waiting no longer than ``timeout`` seconds. Spans that end later are lost."""
        if self.configured:
            _ended_by(_in_background(self._shutdown), time.monotonic() + timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _flush(self, timeout: float) -> bool:
        done = True
        for provider in (self.provider, self._meter_provider):
            force_flush: Callable[..., bool] | None = getattr(provider, "force_flush", None)
            if force_flush is not None:
                done = force_flush(timeout_millis=int(timeout * 1000)) and done
        return done

    def _shutdown(self) -> None:
        for provider in (self.provider, self._meter_provider):
            shutdown: Callable[[], None] | None = getattr(provider, "shutdown", None)
            if shutdown is not None:
                shutdown()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Where spans and metrics are to go; a protocol stands for OTLP."""

    console: bool | TextIO
    exporter: "SpanExporter | None"
    endpoint: str | None
    spans: Protocol | None
    metrics: Protocol | None


def _wanted(
    console: bool | TextIO, exporter: "SpanExporter | None", protocol: Protocol | None, endpoint: str | None
) -> _Wanted:
    named = _names("OTEL_TRACES_EXPORTER", ("otlp", "console", "none"))
    if console is False:
        console = "console" in named
    if exporter is not None:
        return _Wanted(console, exporter, endpoint, spans=None, metrics=None)
    asked_for = endpoint is not None or protocol is not None or any(os.environ.get(name) for name in _ENDPOINTS)
    if "otlp" not in named and (named or (console is not False and not asked_for)):
        return _Wanted(console, exporter, endpoint, spans=None, metrics=None)
    with_metrics = "none" not in _names("OTEL_METRICS_EXPORTER", ("otlp", "none"))
    return _Wanted(
        console,
        exporter,
        endpoint,
        spans=protocol or _protocol_of("TRACES", endpoint),
        metrics=protocol or _protocol_of("METRICS", endpoint) if with_metrics else None,
    )


def _configure(service_name: str | None, wanted: _Wanted) -> TracingSetup:
    from spanflow.tracing import provider as sdk  # here, since it imports the SDK

    processors: list[SpanProcessor] = []
    if wanted.exporter is not None:
        processors.append(sdk.batches(wanted.exporter))
    if wanted.spans is not None:
        processors.append(sdk.batches(sdk.otlp_span_exporter(wanted.spans, wanted.endpoint)))
    if wanted.console is not False:
        processors.append(_console(wanted.console))
    provider = sdk.make_tracer_provider(service_name, processors)
    trace.set_tracer_provider(provider)
    meter_provider = None
    if wanted.metrics is not None and not _has_meter_provider():
        meter_provider = sdk.make_meter_provider(provider, sdk.otlp_metric_exporter(wanted.metrics, wanted.endpoint))
        metrics.set_meter_provider(meter_provider)
    return TracingSetup(provider, configured=True, meter_provider=meter_provider)


def _use(provider: trace.TracerProvider, console: bool | TextIO, *, ignored: bool) -> TracingSetup:
    """Take the provider that is there; all it may get is the console, and that only once."""
    add: Callable[[SpanProcessor], None] | None = getattr(provider, "add_span_processor", None)
    if console is not False and add is not None and not _has_console(provider):
        add(_console(console))
    if ignored:
        _logger.warning(
            "configure_tracing: there is a tracer provider already, so the given exporter or endpoint is not used. "
            "Add it to that provider, or call configure_tracing() before the provider is set."
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


def _is_disabled() -> bool:
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _names(variable: str, known: Sequence[str]) -> Sequence[str]:
    names = [name.strip().lower() for name in os.environ.get(variable, "").split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise SpanflowError(
                f"{variable}={os.environ[variable]!r}: {name!r} is not known here. Use {_listed(known)}, or set a "
                f"provider with that exporter before configure_tracing() is called: then it is used."
            )
    return names


def _protocol_of(signal: str, endpoint: str | None) -> Protocol:
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if name := os.environ.get(variable):
            return _known_protocol(variable, name)
    target = endpoint or os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or os.environ.get(_ENDPOINTS[1]) or ""
    return "grpc" if _port(target) == _GRPC_PORT else "http/protobuf"


def _known_protocol(source: str, name: str) -> Protocol:
    if name not in _PROTOCOLS:
        raise SpanflowError(f"{source}={name!r} is not supported. Use {_listed(tuple(_PROTOCOLS))}.")
    return _PROTOCOLS[name]


def _port(url: str) -> int | None:
    try:
        return urlsplit(url if "//" in url else f"//{url}").port
    except ValueError:  # the exporter will say what is wrong with it
        return None


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


def _listed(names: Sequence[str]) -> str:
    *first, last = (f"'{name}'" for name in names)
    return f"{', '.join(first)} or {last}"


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
