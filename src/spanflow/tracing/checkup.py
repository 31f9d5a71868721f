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
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from opentelemetry import trace

from spanflow.tracing import names
from spanflow.tracing.diagnosis import diagnose
from spanflow.tracing.environment import (
    RATIO_SAMPLERS,
    Destination,
    Protocol,
    check_sampler,
    destination_of,
    exporter_names,
    has_own_endpoint,
    is_disabled,
    protocol_of,
    whole,
)
from spanflow.tracing.variables import leave_out_malformed

_PACKAGES = ("spanflow", "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp")
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
        self._protocol: Protocol | None = protocol
        self._cause = ""
        self._problems: list[str] = []
        leave_out_malformed(self._problems)

    @cached_property
    def destination(self) -> Destination:
        """Where spans go. Looked at when it is first asked for: an application may set variables itself."""
        chosen = self._protocol or protocol_of("TRACES", self._endpoint)
        return destination_of("TRACES", chosen, self._endpoint, self._problems)

    def examine(self) -> Iterator[Check]:
        """Look at one thing after the other; the last one asks the receiver, without sending it a span."""
        yield _versions()
        leave_out_malformed(self._problems)  # an application may have set some meanwhile
        to = self.destination
        yield from (Check("variables", False, problem) for problem in self._problems)
        yield _sdk()
        yield _provider()
        yield from self._exporter()
        yield from _sampling()
        if self._traceparent is not None:
            yield _parent(self._traceparent)
        yield _service()
        size = whole("OTEL_BSP_MAX_QUEUE_SIZE", _SMALL_QUEUE)
        if size < _SMALL_QUEUE:
            yield Check("queue", None, f"OTEL_BSP_MAX_QUEUE_SIZE={size}: wide runs are slowed down for it")
        yield self._address()
        if to.headers:
            yield Check("headers", True, f"{', '.join(to.headers)} (values not shown)")
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
        why = " ".join(said) or f"{self.destination.shown} did not take it."
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
        said = f"{to.shown} by {to.protocol}"
        if to.has_no_path:
            said = f"{to.shown}, as OTEL_EXPORTER_OTLP_TRACES_ENDPOINT has it, is used as it stands, without a path."
            base = to.shown.rstrip("/")
            return Check("endpoint", False, said, f"Write {base}/v1/traces, or set OTEL_EXPORTER_OTLP_ENDPOINT={base}.")
        if not self._endpoint and not has_own_endpoint("TRACES"):
            said += " (the default: OTEL_EXPORTER_OTLP_ENDPOINT is not set)"
        return Check("endpoint", True, said)

    def _receiver(self) -> Check:
        to = self.destination
        found = diagnose(to, self._timeout)
        self._cause = "" if found.ok else found.cause.rpartition(" answers ")[2]
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
    given = os.environ.get("OTEL_TRACES_SAMPLER", "")
    if problems:
        yield from (Check("sampling", False, problem) for problem in problems)
    elif given in RATIO_SAMPLERS and (ratio := float(os.environ["OTEL_TRACES_SAMPLER_ARG"])) < 1:
        said = f"{given} keeps {ratio:.4g} of all traces: the one you miss may be among the others"
        yield Check("sampling", None, said)
    else:
        yield Check("sampling", True, given or "parentbased_always_on (the default)")


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
