"""Look at all that decides whether a trace shows up, in the order in which it is decided, and say what to change.

The SDK is imported only when something is looked at.
"""

import logging
import os
import platform
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace

from spanflow.tracing import names
from spanflow.tracing.diagnosis import Protocol, diagnose
from spanflow.tracing.environment import (
    Destination,
    check_sampler,
    destination_of,
    exporter_names,
    has_own_endpoint,
    is_disabled,
    listed,
    positive,
    protocol_of,
)

_PACKAGES = ("spanflow", "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp")
_SAMPLERS = ("always_on", "always_off", "parentbased_always_on", "parentbased_always_off")
_RATIO_SAMPLERS = ("traceidratio", "parentbased_traceidratio")
_SMALL_QUEUE = 2048  # spans: a wide run is slowed down by less
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 1  # of the flags of a traceparent


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        ok: False where it keeps traces from showing up, None where it is only worth knowing.
        said: what was found, with the real values.
        advice: what to change, where it is not ok.
    """

    name: str
    ok: bool | None
    said: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a test span."""

    check: Check
    trace_id: str


class Checkup:
    """What the ``OTEL_*`` variables of this process come to.

    Args:
        endpoint: base URL of an OTLP receiver, instead of what the variables say.
        protocol: of OTLP, instead of what the variables say.
        traceparent: a W3C header of a request; whether a run that it leads to would be sampled.
        timeout: s to wait for each answer of the receiver.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        protocol: Protocol | None = None,
        traceparent: str | None = None,
        timeout: float = 2.0,
    ) -> None:
        self._endpoint = endpoint
        self._traceparent = traceparent
        self._timeout = timeout
        self._cause = ""
        self._problems: list[str] = []
        chosen = protocol or protocol_of("TRACES", endpoint, self._problems)
        self._protocol_problems = list(self._problems)
        self.destination: Destination = destination_of("TRACES", chosen, endpoint, self._problems)
        self._header_problems = self._problems[len(self._protocol_problems) :]

    def examine(self) -> Iterator[Check]:
        """Look at one thing after the other; the last one asks the receiver, without sending it a span."""
        yield _versions()
        yield _sdk()
        yield _provider()
        yield from self._exporter()
        yield from _sampling()
        if self._traceparent is not None:
            yield _parent(self._traceparent)
        yield _service()
        yield from _queue()
        yield self._address()
        yield from (Check("protocol", False, problem) for problem in self._protocol_problems)
        yield from self._headers()
        yield self._receiver()

    def send(self) -> Sent:
        """Send one span, sampled or not, and tell whether the receiver took it."""
        if is_disabled():
            return Sent(Check("test span", False, "was not sent, since the SDK is disabled."), "")
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        from spanflow.tracing.provider import otlp_spans, resource_of

        kept = InMemorySpanExporter()
        provider = TracerProvider(sampler=ALWAYS_ON, resource=resource_of(None), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(kept))
        span = provider.get_tracer(names.SCOPE).start_span("spanflow doctor")
        span.end()
        trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        delivery = otlp_spans(self.destination)
        with _heard("spanflow") as said:
            taken = delivery.deliver(kept.get_finished_spans()).kind == "sent"
            delivery.close()
        if taken:
            return Sent(Check("test span", True, f"was accepted: trace {trace_id}"), trace_id)
        if self._cause and any(self._cause in line for line in said):
            return Sent(Check("test span", False, "was not accepted, for that reason."), trace_id)
        why = " ".join(said) or f"{self.destination.endpoint} did not take it."
        return Sent(Check("test span", False, f"was not accepted: {why}"), trace_id)

    def _exporter(self) -> Iterator[Check]:
        problems: list[str] = []
        named = exporter_names("TRACES", ("otlp", "console", "none"), problems)
        given = os.environ.get("OTEL_TRACES_EXPORTER", "")
        yield from (Check("exporter", False, problem) for problem in problems)
        if named is None or "otlp" in named:
            how = "OTEL_TRACES_EXPORTER is not set, so configure_tracing() uses it" if named is None else given
            yield Check("exporter", True, f"otlp ({how})")
        elif not problems:
            advice = "Set OTEL_TRACES_EXPORTER=otlp, or unset it."
            yield Check("exporter", False, f"OTEL_TRACES_EXPORTER={given}: no span leaves the process.", advice)

    def _address(self) -> Check:
        to = self.destination
        said = f"{to.endpoint} by {to.protocol}"
        own = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        if to.protocol == "http/protobuf" and own and not self._endpoint and urlsplit(own).path in ("", "/"):
            return Check(
                "endpoint",
                False,
                f"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT={own} is used as it stands, without the path of the signal.",
                f"Write {own.rstrip('/')}/v1/traces, or set OTEL_EXPORTER_OTLP_ENDPOINT={own} instead.",
            )
        if not self._endpoint and not has_own_endpoint("TRACES"):
            said += " (the default: OTEL_EXPORTER_OTLP_ENDPOINT is not set)"
        return Check("endpoint", True, said)

    def _headers(self) -> Iterator[Check]:
        yield from (Check("headers", False, problem) for problem in self._header_problems)
        if self.destination.headers:
            yield Check("headers", True, f"{', '.join(self.destination.headers)} (values not shown)")

    def _receiver(self) -> Check:
        to = self.destination
        found = diagnose(to.endpoint, to.protocol, to.headers, self._timeout)
        self._cause = "" if found.ok else found.cause
        return Check("receiver", found.ok, f"{found.cause}.", found.advice)


# ---------------------------------------------------------------- what is looked at


def _versions() -> Check:
    found = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    return Check("versions", None, f"Python {platform.python_version()}, {found}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _sdk() -> Check:
    if is_disabled():
        return Check("sdk", False, "OTEL_SDK_DISABLED=true: nothing is traced.", "Unset it.")
    return Check("sdk", True, "not disabled")


def _provider() -> Check:
    named = os.environ.get("OTEL_PYTHON_TRACER_PROVIDER")
    if named and named != "sdk_tracer_provider":
        said = f"OTEL_PYTHON_TRACER_PROVIDER={named}: that one is used, and configure_tracing() leaves it as it is"
        return Check("provider", None, said)
    found = trace.get_tracer_provider()
    if isinstance(found, trace.ProxyTracerProvider):
        said = "none is set in this process: configure_tracing() sets up the SDK's, as said below"
        return Check("provider", True, said)
    name = f"{type(found).__module__}.{type(found).__qualname__}, of the application"
    active: Any = getattr(found, "_active_span_processor", None)
    processors: Sequence[Any] | None = getattr(active, "_span_processors", None)
    if processors is None:
        return Check("provider", None, f"{name}; what is said below is of the variables, which it may not heed")
    if not processors:
        return Check("provider", False, f"{name}, has no span processor: no span leaves it.", "Add one, or set none.")
    through = ", ".join(type(getattr(each, "span_exporter", each)).__name__ for each in processors)
    return Check("provider", None, f"{name}, with {through}; what is said below is of the variables")


def _sampling() -> Iterator[Check]:
    problems: list[str] = []
    check_sampler(problems)
    given = os.environ.get("OTEL_TRACES_SAMPLER", "").strip()
    argument = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    if problems:
        yield from (Check("sampling", False, problem) for problem in problems)
    elif given and given.lower() not in (*_SAMPLERS, *_RATIO_SAMPLERS):
        said = f"OTEL_TRACES_SAMPLER={given!r} is not known, and parentbased_always_on is used."
        yield Check("sampling", False, said, f"Use {listed((*_SAMPLERS, *_RATIO_SAMPLERS))}.")
    elif given.lower() in _RATIO_SAMPLERS:
        yield _ratio(given, argument)
    else:
        yield Check("sampling", True, given or "parentbased_always_on (the default)")


def _ratio(given: str, argument: str) -> Check:
    try:
        ratio = float(argument)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        said = f"OTEL_TRACES_SAMPLER_ARG={argument!r} is no ratio, and {given} keeps all."
        return Check("sampling", False, said, "Write a number from 0 to 1.")
    if ratio == 1:
        return Check("sampling", True, f"{given} of 1: all")
    return Check("sampling", None, f"{given} keeps {ratio:.4g} of all traces: the one you miss may be among the others")


def _parent(traceparent: str) -> Check:
    """Ask the sampler of this environment about a run below that parent."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import Decision
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    found = _TRACEPARENT.fullmatch(traceparent.strip())
    if found is None or not found[1].strip("0") or not found[2].strip("0"):
        said = f"traceparent {traceparent!r} is malformed: it is ignored, and the run begins a trace of its own."
        return Check("traceparent", False, said, "It looks like 00-<32 hex digits>-<16 hex digits>-01.")
    trace_id, flags = int(found[1], 16), TraceFlags(int(found[3], 16))
    above = NonRecordingSpan(SpanContext(trace_id, int(found[2], 16), True, flags))
    sampler = TracerProvider(shutdown_on_exit=False).sampler
    decision = sampler.should_sample(set_span_in_context(above), trace_id, "invoke_workflow").decision
    if decision is Decision.RECORD_AND_SAMPLE:
        return Check("traceparent", True, f"a run below it is sampled, by {sampler.get_description()}")
    why = "its flags say that its trace is not sampled" if not flags & _SAMPLED else "the sampler leaves it out"
    advice = "Have the caller sample it (flags 01), or set OTEL_TRACES_SAMPLER=always_on here."
    return Check("traceparent", False, f"a run below it is not sampled: {why}.", advice)


def _service() -> Check:
    from spanflow.tracing.provider import resource_of

    found = str(resource_of(None).attributes.get("service.name", ""))
    if os.environ.get("OTEL_SERVICE_NAME") or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        return Check("service", True, f"{found}: look for traces under this name")
    said = f"OTEL_SERVICE_NAME is not set: traces are under the name of the program (of this one: {found})"
    return Check("service", None, f"{said}, or as configure_tracing(service_name=...) says")


def _queue() -> Iterator[Check]:
    problems: list[str] = []
    size = positive("OTEL_BSP_MAX_QUEUE_SIZE", _SMALL_QUEUE, problems)
    yield from (Check("queue", False, problem) for problem in problems)
    if size < _SMALL_QUEUE:
        yield Check("queue", None, f"OTEL_BSP_MAX_QUEUE_SIZE={size}: wide runs are slowed down for it")


@contextmanager
def _heard(logger_name: str) -> Generator[Sequence[str]]:
    """Take what a logger says, instead of having it printed."""
    said: list[str] = []
    handler = _Taking(said.append)
    logger = logging.getLogger(logger_name)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


class _Taking(logging.Handler):
    def __init__(self, take: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        self._take(record.getMessage())
