"""The tree of a run, drawn from its journal: also of one in progress, in a process that never saw its spans."""

from collections.abc import Mapping, Sequence
from typing import Any

from spanflow.entries import Entry
from spanflow.events import (
    Finish,
    Start,
    StepError,
    StepResultEvent,
    StepRetry,
    StepStart,
    StepSuspended,
    StepWaiting,
    ToolCall,
    ToolResultEvent,
)
from spanflow.plan import ForeachNode, Plan, WorkflowNode, arm_at, node_at
from spanflow.state import parent_path
from spanflow.tracing import names
from spanflow.tracing.drawing import DrawnSpan
from spanflow.tracing.tree import render

_STOPPED = ("CancelledError", "GeneratorExit", "SuspendSignal", "BailSignal", "AbortSignal")
"""What ends a tool call that has not failed."""


def draw(plan: Plan, entries: Sequence[Entry], *, now: int, color: bool = False) -> str:
    """Draw a run as the console tree does.

    What is still open lasts until ``now`` (ns since the epoch) and says that it is running or waiting. A tool that was
    called by another tool stands beside it: the journal knows only the step.
    """
    spans = spans_of(plan, entries, now=now)
    order = {(span.context.trace_id, span.number): span.number for span in spans}
    return render(spans, color=color, order=order)


def spans_of(plan: Plan, entries: Sequence[Entry], *, now: int) -> list[DrawnSpan]:
    """Return the spans that the events of a run, from its first, stand for."""
    history = _History(plan)
    for entry in entries:
        history.apply(entry)
    history.stop(now)
    return history.spans


class _History:
    """The spans so far. ``_open`` has those that have not ended, by path; ``""`` is the run."""

    def __init__(self, plan: Plan) -> None:
        self.spans: list[DrawnSpan] = []
        self._plan = plan
        self._open: dict[str, DrawnSpan] = {}
        self._waits: set[str] = set()
        self._calls: dict[str, tuple[str, DrawnSpan]] = {}
        self._children: dict[str, list[str]] = {}
        self._is_suspended = False

    def apply(self, entry: Entry) -> None:
        kind, path, at, payload = entry.kind, entry.path, entry.timestamp, entry.payload
        if self.spans and at < self._began:  # it was taken over from another run, in whose trace it is
            return
        if kind is Start:
            self._start(payload, at)
        elif kind is StepStart:
            self._step_start(path, at, payload)
        elif kind is StepRetry:
            self._step_retry(path, at, payload)
        elif kind is StepSuspended:
            self._end(path, at, {names.STEP_STATUS: "suspended"})
            self._wait(path, f"wait {payload['id']}", at)
        elif kind is StepWaiting:
            self._wait(path, "sleep" if payload.get("event") is None else f"wait {payload['id']}", at)
        elif kind is StepResultEvent:
            self._step_result(path, at, payload)
        elif kind is ToolCall:
            span = self._add(f"execute_tool {payload['tool_name']}", self._around(path, inside=True), at, {})
            self._calls[payload["tool_call_id"]] = path, span
        elif kind is ToolResultEvent:
            self._tool_result(at, payload)
        elif kind is Finish:
            self._finish(at, payload)

    def stop(self, now: int) -> None:
        """End what is open where it stands."""
        for path, span in self._open.items():
            status = "waiting" if path in self._waits else "suspended" if self._is_suspended else "running"
            span.end(now, {names.STEP_STATUS if path else names.RUN_STATUS: status})
        for _, call in self._calls.values():
            call.end(now, {names.STEP_STATUS: "running"})

    # --- events

    @property
    def _began(self) -> int:
        return self.spans[0].start_time or 0

    def _start(self, payload: Mapping[str, Any], at: int) -> None:
        self._is_suspended = False
        if "" not in self._open:
            self._open[""] = self._add(f"invoke_workflow {payload['workflow_id']}", None, at, {})
        if payload.get("resumed") is not None:
            self._end(payload["resumed"].path, at)

    def _step_start(self, path: str, at: int, payload: Mapping[str, Any]) -> None:
        self._end(path, at)  # the wait between two attempts
        node = node_at(self._plan, path)
        kind = "invoke_workflow" if isinstance(node, WorkflowNode) else "step"
        if isinstance(node, ForeachNode):
            kind = "foreach"
        attributes: dict[str, object] = {names.STEP_ATTEMPT: payload["attempt"]}
        if payload.get("foreach_index") is not None:
            attributes[names.FOREACH_INDEX] = payload["foreach_index"]
        elif payload.get("loop_iteration") is not None:
            attributes[names.LOOP_ITERATION] = payload["loop_iteration"]
        elif (arm := arm_at(self._plan, path)) is not None:
            attributes[names.BRANCH_ARM] = arm
        self._begin(path, f"{kind} {payload['id']}", at, attributes)

    def _step_retry(self, path: str, at: int, payload: Mapping[str, Any]) -> None:
        error: StepError = payload["error"]
        span = self._open[path]
        span.fail(error.type, error.message)
        self._end(path, at)
        if payload["delay"] > 0:
            self._wait(path, f"wait {payload['id']}", at)

    def _step_result(self, path: str, at: int, payload: Mapping[str, Any]) -> None:
        status = payload["status"]
        attributes: dict[str, object] = {}
        if status in ("canceled", "bailed"):
            attributes[names.STEP_STATUS] = status
        outcomes = self._children.pop(path, [])
        if outcomes:
            attributes[names.FAILED] = outcomes.count("failed")
        span = self._open.get(path)
        if span is None:  # it was canceled as the wait before it ended
            return
        self._fail(span, payload)
        self._end(path, at, attributes)
        self._children.setdefault(parent_path(path), []).append(status)

    def _tool_result(self, at: int, payload: Mapping[str, Any]) -> None:
        _, span = self._calls.pop(payload["tool_call_id"])
        error: StepError | None = payload.get("error")
        if error is not None and error.type.rpartition(".")[2] not in _STOPPED:
            span.fail(error.type, error.message)
        span.end(at)

    def _finish(self, at: int, payload: Mapping[str, Any]) -> None:
        status = payload["status"]
        self._is_suspended = status == "suspended"
        if not self._is_suspended:
            self._fail(self._open[""], payload)
            self._end("", at, {names.RUN_STATUS: status})

    # --- spans

    def _begin(self, path: str, name: str, at: int, attributes: dict[str, object]) -> None:
        self._open[path] = self._add(name, self._around(path, inside=False), at, attributes)

    def _wait(self, path: str, name: str, at: int) -> None:
        self._begin(path, name, at, {})
        self._waits.add(path)

    def _add(self, name: str, above: DrawnSpan | None, at: int, attributes: dict[str, object]) -> DrawnSpan:
        parent = None if above is None else above.number
        span = DrawnSpan(name, len(self.spans) + 1, parent, at, attributes=attributes)
        self.spans.append(span)
        return span

    def _end(self, path: str, at: int, attributes: Mapping[str, object] | None = None) -> None:
        span = self._open.pop(path, None)
        self._waits.discard(path)
        if span is not None:
            span.end(at, attributes)
        for call_id, (caller, call) in list(self._calls.items()):  # canceled with whatever called it
            if not path or caller == path or caller.startswith((f"{path}/", f"{path}[")):
                call.end(at)
                del self._calls[call_id]

    def _fail(self, span: DrawnSpan, payload: Mapping[str, Any]) -> None:
        error: StepError | None = payload.get("error")
        if error is not None and payload.get("status") != "canceled":
            span.fail(error.type, error.message)

    def _around(self, path: str, *, inside: bool) -> DrawnSpan:
        """Return the innermost span that is open around a path; with ``inside``, its own too."""
        while path:
            if inside and path in self._open:
                return self._open[path]
            path, inside = parent_path(path), True
        return self._open[""]
