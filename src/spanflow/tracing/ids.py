"""Span ids that follow from where a span stands, so that every process computes the same ones.

The API has no argument for a span's own id; the SDK asks its ``id_generator``. ``adopt`` wraps the generator and
the sampler of *our* tracer, never the application's: a pinned id or decision is taken once, then theirs apply again.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import blake2b
from importlib import import_module
from typing import Any

from opentelemetry.trace import Tracer, get_current_span


class SpanIds:
    """Derives the span ids of one run."""

    __slots__ = ("_seed",)

    def __init__(self, run_id: str) -> None:
        self._seed = blake2b(f"{run_id}\n".encode(), digest_size=8)

    def derive(self, path: str, attempt: int) -> int:
        """Return the 64-bit id of the span of an attempt of a path; never 0, which is invalid."""
        digest = self._seed.copy()
        digest.update(f"{path}\n{attempt}".encode())
        return int.from_bytes(digest.digest(), "big") or 1


def derive_span_id(run_id: str, path: str, attempt: int) -> int:
    """Return the id of a span of a run, where there is only one to derive."""
    return SpanIds(run_id).derive(path, attempt)


class _Pins(threading.local):
    span_id: int | None = None
    trace_id: int | None = None
    sampled: bool = False


_pins = _Pins()


class _PinnedIds:
    """An ``IdGenerator`` that hands out a pinned id first. Stands in by shape: the SDK is not imported."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def generate_span_id(self) -> int:
        pinned = _pins.span_id
        if pinned is None:
            span_id: int = self._inner.generate_span_id()
            return span_id
        _pins.span_id = None
        return pinned

    def generate_trace_id(self) -> int:
        pinned = _pins.trace_id
        if pinned is None:
            trace_id: int = self._inner.generate_trace_id()
            return trace_id
        _pins.trace_id = None
        return pinned

    def is_trace_id_random(self) -> bool:
        return bool(self._inner.is_trace_id_random())


class _PinnedSampler:
    """A ``Sampler`` that keeps to the decision a run was started with when its root is made again."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def should_sample(
        self,
        parent_context: Any,
        trace_id: int,
        name: str,
        kind: Any = None,
        attributes: Any = None,
        links: Any = None,
    ) -> Any:
        if _pins.sampled:
            sampling: Any = import_module("opentelemetry.sdk.trace.sampling")
            above = get_current_span(parent_context).get_span_context()
            return sampling.SamplingResult(sampling.Decision.RECORD_AND_SAMPLE, attributes, above.trace_state)
        try:
            return self._inner.should_sample(parent_context, trace_id, name, kind, attributes, links)
        except BaseException:
            _pins.span_id = None  # it was meant for the span that now never starts
            raise

    def get_description(self) -> str:
        return str(self._inner.get_description())


def adopt(tracer: Tracer) -> bool:
    """Make a tracer take pinned ids. Return False where it is not the SDK's and picks its own."""
    inner: Any = tracer
    if not (hasattr(inner, "id_generator") and hasattr(inner, "sampler")):
        return False
    if not isinstance(inner.id_generator, _PinnedIds):
        inner.id_generator = _PinnedIds(inner.id_generator)
        inner.sampler = _PinnedSampler(inner.sampler)
    return True


def pin_span(span_id: int) -> None:
    """Give the next span of this thread this id."""
    _pins.span_id = span_id


@contextmanager
def pinned_trace(trace_id: int | None, *, sampled: bool = False) -> Generator[None, None, None]:
    """Start spans in the body in this trace (where they have no parent), with this decision."""
    _pins.trace_id, _pins.sampled = trace_id, sampled
    try:
        yield
    finally:
        _pins.trace_id, _pins.sampled, _pins.span_id = None, False, None


def follows_parent(sampler: Any) -> bool:
    """Tell whether a sampler says that it keeps the children of sampled local spans, as the SDK's default does."""
    return "localParentSampled:AlwaysOnSampler" in _described(sampler)


def keeps_roots(sampler: Any) -> bool:
    """Tell whether a sampler says that it keeps all spans without a parent, as the SDK's default does."""
    return _is_sdks(getattr(sampler, "_root", None)) and "{root:AlwaysOnSampler," in _described(sampler)


def _described(sampler: Any) -> str:
    """Return what a ``ParentBased`` of the SDK says of itself; of any other nothing is known."""
    if not _is_sdks(sampler):
        return ""
    try:
        description = str(sampler.get_description())
    except Exception:  # a sampler of the application's own; it will be asked
        return ""
    return description if description.startswith("ParentBased{") else ""


def _is_sdks(sampler: Any) -> bool:
    return type(sampler).__module__ == "opentelemetry.sdk.trace.sampling"  # a subclass inherits what it says of itself
