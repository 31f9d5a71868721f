"""Where spans come from: the application's tracer provider, looked at once and remembered."""

from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Tracer, TracerProvider

from spanflow.tracing import metrics, names
from spanflow.tracing.backpressure import BOUNDLESS, ExportRoom
from spanflow.tracing.flushing import Flusher
from spanflow.tracing.ids import adopt, follows_parent, keeps_roots
from spanflow.tracing.starting import StartChild, StartRoot, starters


class Source:
    """A tracer provider as a run needs it. Getting a tracer anew costs more than a span, so it is kept."""

    __slots__ = (
        "_blocks_for",
        "_ends_inline",
        "_flusher",
        "_room",
        "pins",
        "provider",
        "start_child",
        "start_root",
        "tracer",
    )

    def __init__(self, provider: TracerProvider, tracer: Tracer) -> None:
        self.provider = provider
        self.tracer = tracer
        sampler: Any = getattr(tracer, "sampler", None)
        known = starters(tracer, sampler) if follows_parent(sampler) or keeps_roots(sampler) else None
        self.start_child: StartChild | None = known.child if known and follows_parent(sampler) else None
        self.start_root: StartRoot | None = known.root if known and keeps_roots(sampler) else None
        self.pins = adopt(tracer)
        self._blocks_for: object = self
        self._ends_inline = False
        self._room: ExportRoom = BOUNDLESS
        self._flusher = Flusher(provider)

    def export_soon(self) -> None:
        """Have what has ended exported without waiting for the rest of its batch. Returns at once."""
        self._flusher.flush_soon()

    @property
    def ends_inline(self) -> bool:
        """Whether spans may be ended on the event loop: all processors are known to return at once.

        The SDK's batch processor only queues. Any other may export on the spot, and an exporter may hang; one that
        does not says so with ``never_blocks = True``.
        """
        self._look()
        return self._ends_inline

    @property
    def room(self) -> ExportRoom:
        """The queue that spans go to, where `configure_tracing` has set it up; else one that is never full."""
        self._look()
        return self._room

    def _look(self) -> None:
        active: Any = getattr(self.provider, "_active_span_processor", None)
        processors: tuple[Any, ...] | None = getattr(active, "_span_processors", None)
        if processors is not self._blocks_for:  # the SDK replaces the tuple when a processor is added
            self._blocks_for = processors
            self._ends_inline = processors is not None and all(
                getattr(each, "never_blocks", False) or type(each).__name__ == "BatchSpanProcessor"
                for each in processors
            )
            self._room = next((each for each in processors or () if hasattr(each, "crowded")), BOUNDLESS)


_known: list[Source] = []


def current_source() -> Source | None:
    """Return where spans come from; None where no tracer provider is configured, or the SDK is disabled."""
    provider = trace.get_tracer_provider()
    if _known and _known[0].provider is provider:
        return _known[0]
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    try:
        tracer = provider.get_tracer(names.SCOPE)
        if isinstance(tracer, trace.NoOpTracer):
            return None
        _known[:] = [Source(provider, tracer)]
    except Exception as error:
        metrics.warn_once("The tracer provider raised; the run goes on untraced: %r", error)
        return None
    return _known[0]
