"""spanflow: workflows whose every run is one complete OpenTelemetry trace."""

from typing import TYPE_CHECKING, Any

from spanflow.calls import ToolResult
from spanflow.context import StepContext
from spanflow.errors import (
    DefinitionError,
    EventTimeout,
    InvalidInput,
    InvalidOutput,
    LoopLimit,
    NoBranchMatched,
    NotRecorded,
    NotSuspended,
    OutsideRun,
    RunCanceled,
    RunConflict,
    RunFailed,
    RunInterrupted,
    RunNotFound,
    RunSuspended,
    RunUnsuccessful,
    SpanflowError,
    StepNotCompleted,
    StepTimeout,
    StoreError,
    UnknownEvent,
)
from spanflow.events import Event, StepError
from spanflow.logs import TraceContextFilter
from spanflow.outcome import Err, Ok
from spanflow.redaction import Redacted
from spanflow.result import WorkflowResult
from spanflow.retry import Retry
from spanflow.run import Run, RunStream
from spanflow.runtime import Runtime
from spanflow.state import RunState, StepResult
from spanflow.step import Step, step
from spanflow.stores.memory import MemoryStore
from spanflow.stores.sqlite import SQLiteStore
from spanflow.tool import Tool, tool
from spanflow.tracing.options import TracingContext, TracingOptions
from spanflow.tracing.setup import configure_tracing
from spanflow.workflow import Workflow

if TYPE_CHECKING:  # psycopg is an extra
    from spanflow.stores.postgres import PostgresStore as PostgresStore
else:

    def __getattr__(name: str) -> Any:
        """Import PostgresStore when it is asked for. It is not in ``__all__``: a ``*`` asks for nothing by name."""
        if name == "PostgresStore":
            from spanflow.stores.postgres import PostgresStore

            return PostgresStore
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DefinitionError",
    "Err",
    "Event",
    "EventTimeout",
    "InvalidInput",
    "InvalidOutput",
    "LoopLimit",
    "MemoryStore",
    "NoBranchMatched",
    "NotRecorded",
    "NotSuspended",
    "Ok",
    "OutsideRun",
    "Redacted",
    "Retry",
    "Run",
    "RunCanceled",
    "RunConflict",
    "RunFailed",
    "RunInterrupted",
    "RunNotFound",
    "RunState",
    "RunStream",
    "RunSuspended",
    "RunUnsuccessful",
    "Runtime",
    "SQLiteStore",
    "SpanflowError",
    "Step",
    "StepContext",
    "StepError",
    "StepNotCompleted",
    "StepResult",
    "StepTimeout",
    "StoreError",
    "Tool",
    "ToolResult",
    "TraceContextFilter",
    "TracingContext",
    "TracingOptions",
    "UnknownEvent",
    "Workflow",
    "WorkflowResult",
    "configure_tracing",
    "step",
    "tool",
]
