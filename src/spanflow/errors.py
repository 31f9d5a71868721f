"""The exceptions of spanflow.

Every error says what happened with the real value and name, what was expected, and what to do.
Facts are attributes as well as text.

    SpanflowError
    ├── DefinitionError        a step, tool or workflow that cannot work; raised while it is built
    ├── InvalidInput           a value that does not fit the input, state, event or resume model
    ├── InvalidOutput          a step or tool returned what its annotation does not allow
    ├── StoreError             a store cannot be opened, read or written
    ├── RunNotFound            no such run in this store
    ├── RunConflict            the run is not in a state in which this call makes sense
    │   ├── NotSuspended       resume of a run or step that does not wait for an answer
    │   └── NotRecorded        time_travel to a step that the run has no record of
    ├── UnknownEvent           the workflow waits for no event of this name
    ├── StepTimeout            an attempt took longer than the step's ``timeout``
    ├── EventTimeout           the awaited event did not come in time
    ├── NoBranchMatched        no condition held and the branch has no ``default``
    ├── LoopLimit              a loop wanted more than ``max_iterations``
    ├── StepNotCompleted       ``ctx.result_of`` of a step that has no result (yet)
    ├── RunInterrupted         this process stopped executing a run that another can continue
    ├── ProcessLost            an attempt or tool call whose process died; in spans and events only
    ├── OutsideRun             something that only a step can do was called elsewhere
    └── RunUnsuccessful        ``WorkflowResult.unwrap()`` of a run that did not succeed
        ├── RunFailed
        ├── RunSuspended
        └── RunCanceled
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any


class SpanflowError(Exception):
    """Base of all errors that spanflow raises on its own account."""


class DefinitionError(SpanflowError):
    """A step, tool or workflow cannot work as written. Raised while it is built, never in a run."""


class InvalidInput(SpanflowError):
    """A value handed in does not fit its model. ``path`` names the step, where it was a step's input."""

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class InvalidOutput(SpanflowError):
    """A step, tool, map or condition returned what its declared type does not allow."""


class StoreError(SpanflowError):
    """A store cannot be opened, read or written. ``store`` says which: its file or address."""

    def __init__(self, message: str, *, store: str) -> None:
        super().__init__(message)
        self.store = store


class RunNotFound(SpanflowError):
    """The store holds no run of this id."""

    def __init__(self, run_id: str) -> None:
        if re.fullmatch("[0-9a-f]{32}", str(run_id)):
            advice = "That looks like a trace id: find_runs(trace_id=...) and `spanflow runs --trace` tell its run."
        else:
            advice = "Check the id, and that the runtime opened the store the run was started on."
        super().__init__(f"There is no run {run_id!r} in this store. {advice}")
        self.run_id = run_id


class RunConflict(SpanflowError):
    """The run is not in a state in which this call makes sense, e.g. a second ``start``."""

    def __init__(self, message: str, *, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class NotSuspended(RunConflict):
    """The run or step does not wait for an answer. ``suspended`` lists the paths that do."""

    def __init__(self, message: str, *, run_id: str, suspended: Sequence[str] = ()) -> None:
        super().__init__(message, run_id=run_id)
        self.suspended = tuple(suspended)


class NotRecorded(RunConflict):
    """The run has no record of the step, or several. ``recorded`` lists the paths that can be travelled to."""

    def __init__(self, message: str, *, run_id: str, recorded: Sequence[str] = ()) -> None:
        super().__init__(message, run_id=run_id)
        self.recorded = tuple(recorded)


class RunInterrupted(SpanflowError):
    """This process stopped executing a run before its end, e.g. because it shuts down. Its journal is kept."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"Run {run_id!r} was interrupted here before its end. It is kept: continue it with runtime.recover()."
        )
        self.run_id = run_id


class ProcessLost(SpanflowError):
    """The process died while this was running. Never raised: it marks the span and the event of what was lost."""

    error_type = "spanflow.process_lost"


class UnknownEvent(SpanflowError):
    """``send_event`` with a name that no ``wait_for_event`` of the workflow waits for."""

    def __init__(self, name: str, *, workflow_id: str, known: Sequence[str]) -> None:
        expected = ", ".join(repr(each) for each in known) or "no events at all"
        super().__init__(f"Workflow {workflow_id!r} never waits for an event named {name!r}. It waits for {expected}.")
        self.name = name
        self.known = tuple(known)


class StepTimeout(SpanflowError):
    """An attempt of a step took longer than its ``timeout`` (s)."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__(
            f"Step {path!r} was stopped after {timeout:g} s. Make it faster, or raise @step(timeout={timeout:g})."
        )
        self.path = path
        self.timeout = timeout


class EventTimeout(SpanflowError):
    """An awaited event did not come within ``timeout`` seconds."""

    def __init__(self, name: str, path: str, timeout: float) -> None:
        super().__init__(
            f"No event {name!r} came within {timeout:g} s at {path!r}."
            " Send it with run.send_event(), or raise the timeout of wait_for_event()."
        )
        self.name = name
        self.path = path
        self.timeout = timeout


class NoBranchMatched(SpanflowError):
    """No condition of a branch held, and it has no ``default``."""

    def __init__(self, path: str, arms: Sequence[str]) -> None:
        super().__init__(
            f"No condition of branch {path!r} held (arms: {', '.join(arms)})."
            " Widen a condition, or give the branch a default: .branch(..., default=step)."
        )
        self.path = path
        self.arms = tuple(arms)


class LoopLimit(SpanflowError):
    """A loop's condition asked for more than ``max_iterations`` iterations."""

    def __init__(self, path: str, max_iterations: int) -> None:
        super().__init__(
            f"Loop {path!r} wanted to go on after {max_iterations} iterations."
            f" Check its condition, or raise max_iterations={max_iterations}."
        )
        self.path = path
        self.max_iterations = max_iterations


class StepNotCompleted(SpanflowError):
    """``ctx.result_of`` of a step that has not run, or has not succeeded."""

    def __init__(self, step: str, asked_by: str) -> None:
        super().__init__(
            f"{asked_by!r} asked for the result of {step!r}, which has not completed in this run."
            " Check the id and the order of the steps, or give result_of() a default."
        )
        self.step = step


class OutsideRun(SpanflowError):
    """Something that only a step of a run can do was called elsewhere."""


class RunUnsuccessful(SpanflowError):
    """``unwrap()`` of a run that has no result. ``status`` says why."""

    status: str

    def __init__(self, message: str, *, run_id: str, trace_id: str | None) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.trace_id = trace_id


class RunFailed(RunUnsuccessful):
    """The run failed. The step's own exception, where it is at hand, is ``__cause__``; ``path`` names the step."""

    status = "failed"

    def __init__(self, message: str, *, run_id: str, trace_id: str | None, path: str) -> None:
        super().__init__(message, run_id=run_id, trace_id=trace_id)
        self.path = path


class RunSuspended(RunUnsuccessful):
    """The run waits for an answer. ``suspended`` maps each waiting path to its payload."""

    status = "suspended"

    def __init__(self, message: str, *, run_id: str, trace_id: str | None, suspended: Mapping[str, Any]) -> None:
        super().__init__(message, run_id=run_id, trace_id=trace_id)
        self.suspended = dict(suspended)


class RunCanceled(RunUnsuccessful):
    """The run was canceled, by ``run.cancel()`` or by ``ctx.abort()``."""

    status = "canceled"
