"""Close what a run leaves open when it ends while steps still wait: no orphan span, no step without a result."""

from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

from spanflow.entries import Entry
from spanflow.errors import ProcessLost
from spanflow.events import StepError, StepFinish, StepResultEvent, StepRetry, StepStatus, ToolResultEvent
from spanflow.journal import Journal
from spanflow.plan import ForeachNode, Plan, SleepNode, WaitNode, WorkflowNode, arm_at, node_at
from spanflow.state import PROCESS_LOST, RunState, StepResult, parent_path
from spanflow.tracing import names
from spanflow.tracing.roots import RootScope
from spanflow.tracing.spans import Scope

_Tally = Counter[tuple[str, StepStatus]]
"""How many steps inside a frame, by its path, have come to a status."""


class Ending(Protocol):
    """What closing needs of the stretch that ends."""

    state: RunState
    journal: Journal
    root: RootScope

    @property
    def plan(self) -> Plan: ...


def close_open(run: Ending, at: int, under: AbstractSet[str] = frozenset({""})) -> None:
    """End waiting steps ``under`` these paths as canceled, then the frames around them, the innermost first."""
    _close(run, at, [step for step in run.state.open_steps.values() if any(path in under for path in _line(step.path))])


def close_inside(run: Ending, at: int, frame: str) -> None:
    """End what still waits inside a frame that is about to end."""
    inside = [step for step in run.state.open_steps.values() if step.path.startswith((f"{frame}/", f"{frame}["))]
    _close(run, at, inside)


def _close(run: Ending, at: int, left: Sequence[StepResult]) -> None:
    tally = _tally(run.state) if left else _Tally()
    for step in sorted(left, key=lambda step: len(step.path), reverse=True):
        if step.status == "suspended" and step.suspended_at is not None:
            _end_suspension(run, step, step.suspended_at, at)
        elif step.status == "waiting":
            _end_wait(run, step, at)
        else:
            span_id = _end_span(run, step, at, "canceled", tally)
            _record(run, step, span_id, at)


def _end_suspension(run: Ending, step: StepResult, since: int, at: int) -> None:
    attributes = {names.STEP_ID: step.id, names.STEP_PATH: step.path, names.WAIT_REASON: "suspension"}
    number, end = len(step.answers), step.resumed_at
    if step.path in run.state.waiting or end is None:
        attributes[names.STEP_STATUS] = "canceled"
        number, end = number + 1, at
    scope = _around(run, step.path)
    span_id = scope.interval(f"wait {step.id}", f"{step.path}/wait", number, attributes, since, end)
    _record(run, step, span_id, at)


def _end_wait(run: Ending, step: StepResult, at: int) -> None:
    """End a sleep, a wait for an event, or a step between two attempts, where no process is left that waits."""
    scope, node, path = _around(run, step.path), node_at(run.plan, step.path), step.path
    attributes = {names.STEP_ID: step.id, names.STEP_PATH: path, names.STEP_STATUS: "canceled"}
    match node:
        case SleepNode():
            attributes[names.WAIT_REASON] = "sleep"
            span_id = scope.interval("sleep", path, 1, attributes, step.started_at, at)
        case WaitNode():
            attributes |= {names.WAIT_REASON: "event", names.EVENT_NAME: node.event}
            span_id = scope.interval(f"wait {step.id}", path, 1, attributes, step.started_at, at)
        case _ if step.until is not None:
            attributes[names.WAIT_REASON] = "retry"
            since = step.ended_at or at
            span_id = scope.interval(f"wait {step.id}", f"{path}/retry", step.attempt, attributes, since, at)
        case _:  # its attempt was lost with its process, and has its span
            span_id = scope.span_id_of(path, step.attempt)
    _record(run, step, span_id, at)


def _end_span(run: Ending, frame: StepResult, at: int, status: str, tally: _Tally) -> int | None:
    """End the span of a frame, and return its id."""
    scope = _frame_scope(run, frame)
    scope.revive()
    counts = {names.SUCCEEDED: tally[frame.path, "success"], names.FAILED: tally[frame.path, "failed"]}
    scope.note({**counts, names.STEP_STATUS: status})
    scope.end(at)
    return scope.span_id


def end_frames(run: Ending, at: int) -> None:
    """End the spans of the frames around what waits, the innermost first. They begin anew in the next trace."""
    around = [step for step in run.state.open_steps.values() if step.status == "running"]
    tally = _tally(run.state)
    for step in sorted(around, key=lambda step: len(step.path), reverse=True):
        _end_span(run, step, at, "suspended", tally)


def _tally(state: RunState) -> _Tally:
    return Counter((parent_path(path), step.status) for path, step in state.steps.items())


def close_lost(run: Ending, at: int) -> None:
    """Close the tool calls and attempts of a process that died, so that what they exported has its parent.

    They end as errors of type ``spanflow.process_lost`` when they are found to be lost. Nobody knows when the process
    died; so they enclose all that it exported, and the time until somebody took over has a name.
    """
    for call_id, entry in list(run.state.open_calls.items()):
        _lose_call(run, call_id, entry, at)
    for step in list(run.state.open_steps.values()):
        if step.status == "running" and not _is_frame(run, step.path):
            _lose_attempt(run, step, at)


def _lose_call(run: Ending, call_id: str, entry: Entry, at: int) -> None:
    name = entry.payload["tool_name"]
    attributes = {
        names.OPERATION: "execute_tool",
        names.TOOL_NAME: name,
        names.TOOL_TYPE: "function",
        names.TOOL_CALL_ID: call_id,
    }
    error = ProcessLost(f"The process died while tool {name!r} was running.")
    step = run.state.steps.get(entry.path)
    scope = _around(run, entry.path)
    if step is not None:
        scope = scope.reopened(f"step {step.id}", step.path, {}, step.attempt_at, attempt=step.attempt)
    start, end = entry.timestamp, max(at, entry.timestamp + 1)  # of no length: a "negative duration" for Jaeger
    scope.interval(f"execute_tool {name}", "", 0, attributes, start, end, error, span_id=entry.span_id)
    problem = StepError(path=entry.path, type=PROCESS_LOST, message=str(error))
    payload = {"tool_call_id": call_id, "tool_name": name, "error": problem}
    run.journal.record(ToolResultEvent, payload, entry.path, entry.span_id, at)


def _lose_attempt(run: Ending, step: StepResult, at: int) -> None:
    path, number = step.path, step.attempt
    attributes = _attributes(run, step) | {names.STEP_ATTEMPT: number}
    error = ProcessLost(f"The process died in attempt {number} of step {path!r}.")
    start, end = step.attempt_at, max(at, step.attempt_at + 1)
    span_id = _around(run, path).interval(f"step {step.id}", path, number, attributes, start, end, error)
    problem = StepError(path=path, type=PROCESS_LOST, message=str(error))
    payload = {"id": step.id, "attempt": number, "error": problem, "delay": 0.0}
    run.journal.record(StepRetry, payload, path, span_id, at)


def _around(run: Ending, path: str) -> Scope:
    """Return the scope of the frame that a path stands in."""
    frame = run.state.steps.get(parent_path(path))
    return run.root if frame is None else _frame_scope(run, frame)


def _frame_scope(run: Ending, frame: StepResult) -> Scope:
    is_foreach = isinstance(node_at(run.plan, frame.path), ForeachNode)
    name = f"foreach {frame.id}" if is_foreach else f"invoke_workflow {frame.id}"
    attributes = _attributes(run, frame)
    if not is_foreach:
        attributes |= {names.OPERATION: "invoke_workflow", names.WORKFLOW_NAME: frame.id}
    return _around(run, frame.path).reopened(name, frame.path, attributes, frame.started_at)


def _attributes(run: Ending, step: StepResult) -> dict[str, Any]:
    """Return the attributes that the span of a step was started with."""
    found: dict[str, Any] = {names.STEP_ID: step.id, names.STEP_PATH: step.path}
    segment = step.path.rpartition("/")[2]
    if segment.endswith("]"):
        found[names.FOREACH_INDEX] = int(segment[segment.rfind("[") + 1 : -1])
    elif "#" in segment:
        found[names.LOOP_ITERATION] = int(segment.rpartition("#")[2])
    else:
        arm = arm_at(run.plan, step.path)
        if arm is not None:
            found[names.BRANCH_ARM] = arm
    return found


def _is_frame(run: Ending, path: str) -> bool:
    return isinstance(node_at(run.plan, path), ForeachNode | WorkflowNode)


def _line(path: str) -> Iterator[str]:
    """Return a path and those of the frames around it, up to the run's."""
    while path:
        yield path
        path = parent_path(path)
    yield path


def _record(run: Ending, step: StepResult, span_id: int | None, at: int) -> None:
    run.journal.record(StepResultEvent, {"id": step.id, "status": "canceled"}, step.path, span_id, at)
    finish = {"id": step.id, "attempt": step.attempt, "duration": (at - step.started_at) / 1e9}
    run.journal.record(StepFinish, finish, step.path, span_id, at)
