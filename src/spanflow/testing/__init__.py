"""Test workflows by their traces, and without waiting: for users' tests as for spanflow's own."""

from spanflow.testing.capture import capture_traces
from spanflow.testing.clock import FakeClock
from spanflow.testing.steps import Aborted, Bailed, FakeStepContext, Suspended, step_context
from spanflow.testing.traces import Traces

__all__ = [
    "Aborted",
    "Bailed",
    "FakeClock",
    "FakeStepContext",
    "Suspended",
    "Traces",
    "capture_traces",
    "step_context",
]
