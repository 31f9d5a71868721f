"""Close what a run leaves open when it ends while a step still waits: no orphan span, no step without a result."""

from collections.abc import Sequence
from typing import Any, Protocol

from spanflow.events import StepFinish, StepResultEvent
from spanflow.journal import Journal
from spanflow.state import RunState, StepResult
from spanflow.tracing import names
from spanflow.tracing.roots import RootScope
from spanflow.tracing.spans import Scope


class Ending(Protocol):
    """What closing needs of the stretch that ends."""

    state: RunState
    journal: Journal
    root: RootScope


def close_open(run: Ending, at: int, under: Sequence[str] = ("",)) -> None:
    """End waiting steps ``under`` these paths as canceled, then the frames around them, the innermost first."""
    left = [
        step
        for step in run.state.steps.values()
        if step.status in ("suspended", "running")
        and any(not path or step.path == path or _encloses(path, step.path) for path in under)
    ]
    for step in sorted(left, key=lambda step: len(step.path), reverse=True):
        if step.status == "suspended" and step.suspended_at is not None:
            _end_wait(run, step, at)
        else:
            _end_frame(run, step, at)


def _end_wait(run: Ending, step: StepResult, at: int) -> None:
    attributes = {
        names.STEP_ID: step.id,
        names.STEP_PATH: step.path,
        names.WAIT_REASON: "suspension",
        names.STEP_STATUS: "canceled",
    }
    number = len(step.answers) + 1
    scope = _around(run, step.path)
    span_id = scope.interval(f"wait {step.id}", f"{step.path}/wait", number, attributes, step.suspended_at or at, at)
    _record(run, step, span_id, at)


def _end_frame(run: Ending, step: StepResult, at: int) -> None:
    scope = _frame_scope(run, step)
    scope.revive()
    inside = [other for path, other in run.state.steps.items() if _encloses(step.path, path)]
    scope.note(
        {
            names.SUCCEEDED: sum(other.status == "success" for other in inside),
            names.FAILED: sum(other.status == "failed" for other in inside),
            names.STEP_STATUS: "canceled",
        }
    )
    scope.end(at)
    _record(run, step, scope.span_id, at)


def _around(run: Ending, path: str) -> Scope:
    """Return the scope of the frame that a path stands in."""
    frames = [step for step in run.state.steps.values() if _encloses(step.path, path)]
    return _frame_scope(run, max(frames, key=lambda step: len(step.path))) if frames else run.root


def _frame_scope(run: Ending, frame: StepResult) -> Scope:
    is_foreach = f"{frame.path}[0]" in run.state.steps
    name = f"foreach {frame.id}" if is_foreach else f"invoke_workflow {frame.id}"
    attributes: dict[str, Any] = {names.STEP_ID: frame.id, names.STEP_PATH: frame.path}
    if not is_foreach:
        attributes |= {names.OPERATION: "invoke_workflow", names.WORKFLOW_NAME: frame.id}
    return _around(run, frame.path).reopened(name, frame.path, attributes, frame.started_at)


def _encloses(frame: str, path: str) -> bool:
    return path.startswith((f"{frame}/", f"{frame}["))


def _record(run: Ending, step: StepResult, span_id: int | None, at: int) -> None:
    run.journal.record(StepResultEvent, {"id": step.id, "status": "canceled"}, step.path, span_id, at)
    finish = {"id": step.id, "attempt": step.attempt, "duration": (at - step.started_at) / 1e9}
    run.journal.record(StepFinish, finish, step.path, span_id, at)
