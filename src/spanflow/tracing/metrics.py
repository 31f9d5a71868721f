"""The metrics of runs, steps and tool calls.

The instruments are OpenTelemetry's own proxies: they do nothing until the application sets a meter provider.
Bucket advice follows the GenAI semantic conventions; a value equals the duration of its span.
"""

import logging
from collections.abc import Callable
from typing import Any

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram

from spanflow.tracing import names
from spanflow.tracing.variables import leave_out_unknown_providers

_log = logging.getLogger("spanflow")
_problems: list[str] = []
leave_out_unknown_providers(_problems)  # else the next line may raise, and with it `import spanflow`
for _problem in _problems:
    _log.warning("%s", _problem)
_meter = metrics.get_meter(names.SCOPE)
_SHORT = [0.01 * 2**n for n in range(14)]

workflow_duration = _meter.create_histogram(
    names.WORKFLOW_DURATION,
    unit="s",
    description="Duration of a workflow run, waiting included",
    explicit_bucket_boundaries_advisory=[1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200],
)
tool_duration = _meter.create_histogram(
    names.TOOL_DURATION,
    unit="s",
    description="Duration of a tool call",
    explicit_bucket_boundaries_advisory=_SHORT,
)
step_duration = _meter.create_histogram(
    names.STEP_DURATION,
    unit="s",
    description="Duration of an attempt of a step",
    explicit_bucket_boundaries_advisory=_SHORT,
)
runs_active = _meter.create_up_down_counter(
    names.RUNS_ACTIVE, unit="{run}", description="Runs that this process is executing"
)

spans_dropped = _meter.create_counter(
    names.SPANS_DROPPED, unit="{span}", description="Spans that ended and did not reach the back end"
)


def are_collected() -> bool:
    """Tell whether the application has set a meter provider: the API's stand-ins have nothing behind them yet."""
    return getattr(runs_active, "_real_instrument", runs_active) is not None


def record(histogram: Histogram, seconds: float, attributes: dict[str, Any], context: Context) -> None:
    """Record a duration with the span of ``context`` as its exemplar. An instrument that raises is logged, not felt."""
    guarded(lambda: histogram.record(seconds, attributes, context))


def count_active(change: int, workflow_id: str) -> None:
    guarded(lambda: runs_active.add(change, {names.WORKFLOW_NAME: workflow_id}))


def count_dropped(number: int, reason: str) -> None:
    guarded(lambda: spans_dropped.add(number, {names.DROP_REASON: reason}))


_warned: set[str] = set()


def guarded(call: Callable[[], object]) -> None:
    """Do something of the application's telemetry; a failure there never reaches the run."""
    try:
        call()
    except Exception as error:
        warn_once("A span processor, exporter or instrument raised; the run goes on without it: %r", error)


def warn_once(message: str, error: BaseException) -> None:
    """Log a kind of failure once per process and error type: a broken exporter fails on every span."""
    kind = f"{message}{type(error).__name__}"
    if kind not in _warned:
        _warned.add(kind)
        _log.warning(message, error, exc_info=error)
