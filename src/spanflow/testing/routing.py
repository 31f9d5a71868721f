"""Hand each span to the test it belongs to. Imported only where spans are captured: it imports the SDK."""

import threading
from typing import ClassVar
from weakref import WeakKeyDictionary

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from spanflow.errors import SpanflowError
from spanflow.testing.recording import Recording, key_of
from spanflow.tracing import names


class Router(SpanProcessor):
    """Gives a span to the recording its parent belongs to, else to the one that was opened last.

    So what a run does after its test is over is lost with that test: it never appears in the next one, even if both
    share a trace because a plugin opened a span around the whole session.
    """

    never_blocks: ClassVar[bool] = True

    def __init__(self) -> None:
        self._open: list[Recording] = []
        self._owners: WeakKeyDictionary[trace.Span, Recording | None] = WeakKeyDictionary()
        self._lock = threading.RLock()  # the garbage collector may end a span while it is held

    def open(self) -> Recording:
        recording = Recording()
        with self._lock:
            self._open.append(recording)
        return recording

    def close(self, recording: Recording) -> None:
        with self._lock:
            recording.closed = True
            self._open.remove(recording)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        above = trace.get_current_span(parent_context)
        with self._lock:
            owner = self._owner(span, above)
            if owner is not None and not owner.closed:
                owner.start(key_of(span.context), span.name)

    def on_end(self, span: ReadableSpan) -> None:
        key = key_of(span.context)
        with self._lock:
            for recording in self._open:
                if key in recording.order:
                    recording.end(span)

    def shutdown(self) -> None:
        """Do nothing: the application may shut its provider down and still be tested."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def _owner(self, span: Span, above: trace.Span) -> Recording | None:
        """Find whose a starting span is, and remember it for its children."""
        last = self._open[-1] if self._open else None
        if above in self._owners or _is_ours(above):  # a run that began while nobody was recording is nobody's
            owner = self._owners[span] = self._owners.get(above)
        elif last is not None:  # no parent, a remote one, one from before, or a run that is taken up again
            owner = self._owners[span] = last
            if isinstance(above, ReadableSpan):
                owner.outside.add(key_of(above.context))
        else:
            owner = None
        return owner


def _is_ours(span: trace.Span) -> bool:
    """Tell whether a span was made by spanflow, and in this process."""
    scope = span.instrumentation_scope if isinstance(span, ReadableSpan) else None
    return scope is not None and scope.name == names.SCOPE


_router = Router()
_installed_on: list[trace.TracerProvider] = []


def installed_router() -> Router:
    """Return the router, after adding it to the application's tracer provider or setting one for tests.

    Raises:
        SpanflowError: the process has a provider that is not the SDK's, or the SDK is disabled.
    """
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.get_empty(), shutdown_on_exit=False)
        trace.set_tracer_provider(provider)
    if provider not in _installed_on:
        if not isinstance(provider, TracerProvider):
            raise SpanflowError(
                f"Spans cannot be captured: the tracer provider of this process is {provider!r}, not the SDK's."
                " Set none for tests, or an opentelemetry.sdk.trace.TracerProvider."
            )
        provider.add_span_processor(_router)
        _installed_on.append(provider)
    if isinstance(provider.get_tracer(names.SCOPE), trace.NoOpTracer):
        raise SpanflowError("Spans cannot be captured: the SDK is disabled. Unset OTEL_SDK_DISABLED for tests.")
    return _router
