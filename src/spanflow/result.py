"""What a run came to."""

from dataclasses import dataclass
from typing import Any, Generic

from typing_extensions import TypeVar

from spanflow.errors import RunCanceled, RunFailed, RunSuspended, SpanflowError
from spanflow.events import RunStatus, StepError
from spanflow.schema import Schema
from spanflow.state import RunState, StepResult

T_co = TypeVar("T_co", covariant=True, default=Any)


@dataclass(frozen=True, slots=True)
class WorkflowResult(Generic[T_co]):
    """A view of a run's state.

    Attributes:
        status: ``success``, ``failed``, ``suspended`` or ``canceled``; ``running`` while it is not over.
        result: the output, where the status is ``success``; else None. ``unwrap()`` has no such None.
        error: path, type, message and traceback of the failure, or the reason of ``ctx.abort``;
            ``error.exception`` is the exception itself, where this process has it.
        suspended: path → payload of each step that waits for an answer.
        steps: path → what is known of the step.
        state: the workflow's state, as an instance of its model where it has one.
        trace_id: 32 hex digits; None where no tracer provider is configured. Where each stretch has a trace of its
            own, that of the latest.

    Example:
        >>> import asyncio
        >>> from spanflow import Workflow, step
        >>> @step
        ... async def invert(value: int) -> float:
        ...     return 1 / value
        >>> async def main() -> None:
        ...     run = await Workflow("inverse", input=int).then(invert).create_run()
        ...     result = await run.start(0)
        ...     print(result.status, result.error.type, result.error.path)
        ...     result.unwrap()
        >>> asyncio.run(main())
        Traceback (most recent call last):
        spanflow.errors.RunFailed: Run ... failed at 'invert': ZeroDivisionError: division by zero
    """

    run_id: str
    trace_id: str | None
    status: RunStatus
    result: T_co
    error: StepError | None
    suspended: dict[str, Any]
    steps: dict[str, StepResult]
    state: Any

    def unwrap(self) -> T_co:
        """Return the result of a run that succeeded.

        Raises:
            RunFailed: a step failed; its exception is ``__cause__``.
            RunSuspended: a step waits for an answer.
            RunCanceled: the run was canceled.
        """
        run_id, trace_id = self.run_id, self.trace_id
        if self.status == "success":
            return self.result
        if self.status == "failed" and self.error is not None:
            where = f" at {self.error.path!r}" if self.error.path else ""
            message = f"Run {run_id} failed{where}: {self.error.type}: {self.error.message}"
            failed = RunFailed(message, run_id=run_id, trace_id=trace_id, path=self.error.path)
            raise failed from self.error.exception
        if self.status == "suspended":
            paths = ", ".join(map(repr, self.suspended))
            message = f"Run {run_id} waits for an answer at {paths}. Give it with run.resume(answer)."
            raise RunSuspended(message, run_id=run_id, trace_id=trace_id, suspended=self.suspended)
        if self.status == "canceled":
            why = f" by {self.error.path!r}: {self.error.message}" if self.error is not None else ""
            raise RunCanceled(f"Run {run_id} was canceled{why or '.'}", run_id=run_id, trace_id=trace_id)
        raise SpanflowError(f"Run {run_id} is still running. Await run.wait() first.")


def result_of(state: RunState, output: Schema[Any] | None, state_schema: Schema[Any] | None) -> WorkflowResult[Any]:
    """Return the view of a state. ``output`` gives the result its type back, where it was read from JSON."""
    result = state.result if output is None or state.status != "success" else output.restore(state.result)
    values = state.values.get("", {})
    return WorkflowResult(
        run_id=state.run_id,
        trace_id=state.trace_id,
        status=state.status,
        result=result,
        error=state.error,
        suspended=state.suspended,
        steps=dict(state.steps),
        state=values if state_schema is None else state_schema.validate(values),
    )
