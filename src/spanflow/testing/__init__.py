"""Test workflows by their traces, and without waiting: for users' tests as for spanflow's own.

In pytest the fixtures ``traces`` and ``metrics`` are there as soon as spanflow is installed; elsewhere use
``capture_traces()`` and ``capture_metrics()``. A ``FakeClock`` makes sleeps, delays and timeouts instant, and
``step_context()`` is what a single step is called with.

Example:
    >>> import asyncio
    >>> from spanflow import Retry, StepContext, Workflow, step
    >>> from spanflow.testing import FakeClock, capture_traces
    >>> @step(retry=Retry(max_attempts=2, delay=3600))
    ... async def charge(amount: int, ctx: StepContext) -> int:
    ...     if ctx.attempt == 1:
    ...         raise ConnectionError("no answer")
    ...     return amount
    >>> billing = Workflow("billing", input=int).sleep(30 * 24 * 3600).then(charge)
    >>> async def main() -> int:
    ...     run = await billing.create_run(clock=FakeClock())
    ...     return (await run.start(5)).unwrap()
    >>> with capture_traces() as traces:
    ...     asyncio.run(main())
    5
    >>> traces.assert_complete()
    >>> print(traces.tree())
    invoke_workflow billing
    ├── run.started
    ├── sleep
    ├── step charge  ERROR ConnectionError: no answer
    ├── wait charge
    └── step charge  [attempt 2]
"""

from spanflow.testing.capture import capture_traces
from spanflow.testing.clock import FakeClock
from spanflow.testing.metering import Measured, Metrics, capture_metrics
from spanflow.testing.steps import Aborted, Bailed, FakeStepContext, Suspended, step_context
from spanflow.testing.traces import Traces

__all__ = [
    "Aborted",
    "Bailed",
    "FakeClock",
    "FakeStepContext",
    "Measured",
    "Metrics",
    "Suspended",
    "Traces",
    "capture_metrics",
    "capture_traces",
    "step_context",
]
