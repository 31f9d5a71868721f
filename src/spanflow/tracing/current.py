"""Which step runs here, for what is told about it from below, such as a log record."""

from contextvars import ContextVar
from typing import Any

running_step: ContextVar[Any] = ContextVar("spanflow_current_step", default=None)
"""The `StepContext` of the step whose code is running, None outside of one."""
