"""Content capture: inputs and outputs as bounded JSON without secrets, and the switch that turns it on.

Nothing is captured unless asked for, by `configure_tracing(capture_content=True)` or by the environment variable
``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` of OpenTelemetry's conventions for generative AI.
"""

import logging
import os
from functools import lru_cache

from spanflow.redaction import REDACTED, Redacted, is_redacted, marked_keys
from spanflow.tracing.reading import read
from spanflow.tracing.shortening import Branch, fit, measure, quote

__all__ = ["Redacted", "capture", "capture_enabled", "capture_from_environment", "set_capture"]

_logger = logging.getLogger(__name__)

_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_MEANINGS = {
    "span_only": True, "span_and_event": True, "true": True, "1": True,
    "no_content": False, "event_only": False, "false": False, "0": False, "": False,
}  # fmt: skip

_chosen: bool | None = None
"""What `configure_tracing` was told. The only state of this package: like the tracer provider that is set up in the
same call it belongs to the process, and a run has no other way to learn of it."""


def set_capture(enabled: bool | None) -> None:
    """Decide for this process whether content is captured; None leaves it to the environment."""
    global _chosen
    _chosen = enabled


def capture_enabled() -> bool:
    """Tell whether inputs and outputs are to be recorded now. Read it once for each run."""
    return capture_from_environment() if _chosen is None else _chosen


def capture_from_environment() -> bool:
    """Read ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT``; True where it asks for content on spans."""
    return _meaning(os.environ.get(_VARIABLE, ""))


@lru_cache(maxsize=16)  # also keeps the warning to one for each value
def _meaning(text: str) -> bool:
    meaning = _MEANINGS.get(text.strip().lower())
    if meaning is None:
        _logger.warning(
            "%s=%r is not known: no content is captured. Use SPAN_ONLY to record it on spans, or NO_CONTENT.",
            _VARIABLE,
            text,
        )
    return bool(meaning)


def capture(value: object, *, limit: int = 8192, annotation: object = None) -> str:
    """Write any value as compact JSON of at most ``limit`` bytes (64 or more), without its secrets. Never raises.

    Secrets are redacted by the name of their key, by type (`SecretStr`) and by the marker `Redacted`. ``annotation`` is
    the declared type of the value, or the function whose arguments it maps: where typed dicts and parameters carry
    their marks. What is too long is cut inside the structure (``"abc…[+1234 chars]"``, ``"…+20 more"``), and only as
    much of the value is looked at as can be shown.
    """
    try:
        if annotation is not None and is_redacted(annotation):
            return quote(REDACTED)
        node = read(value, limit, marked_keys(annotation) if annotation is not None else frozenset())
        if isinstance(node, Branch):
            measure(node)
        return fit(node, limit)
    except Exception:  # e.g. no stack left; a hole in a trace is better than a failed run
        return quote("<unreadable>")
