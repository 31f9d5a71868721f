"""The state of a run: a fold over its lifecycle events, and nothing else.

``RunState.apply`` is the only thing that changes a state. It needs no clock, no store and no event loop, so the state
of a run is the same wherever its events are read.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from spanflow.entries import Entry
from spanflow.events import (
    Counts,
    Envelope,
    Event,
    Finish,
    FinishStatus,
    LinkedTrace,
    Ref,
    Resumed,
    RunStatus,
    Start,
    StepError,
    StepResultEvent,
    StepRetry,
    StepStart,
    StepStatus,
    StepSuspended,
    StepWaiting,
    ToolCall,
    ToolResultEvent,
    Travelled,
)
from spanflow.outcome import Err, Ok

PROCESS_LOST = "spanflow.process_lost"
"""``error.type`` of an attempt whose process died. It does not count against the step's retries."""


ABORTED = "spanflow.aborted"
"""``error.type`` of what a step canceled with ``ctx.abort(reason)``; the message is the reason."""

_DICT = cast("Callable[[], dict[str, Any]]", dict)  # `dict[str, Any]` itself takes eight times as long to call
_SET = cast("Callable[[], set[str]]", set)


@dataclass(slots=True)
class StepResult:
    """What is known of one step, by path. Times are ns since the epoch."""

    id: str
    path: str
    status: StepStatus
    attempt: int = 1
    output: Any = None
    error: StepError | None = None
    started_at: int = 0
    ended_at: int | None = None
    failures: int = 0
    payload: Any = None
    until: int | None = None
    answers: tuple[Any, ...] = ()
    suspended_at: int | None = None
    resumed_at: int | None = None
    attempt_at: int = 0
    resume_type: str | None = None

    @property
    def completed(self) -> bool:
        """Whether the step has its outcome; such a step is never run again."""
        return self.status in ("success", "bailed", "failed")


@dataclass(slots=True)
class RunState:
    """All that is known of a run. ``steps`` maps each path to its latest result.

    ``restored`` says that values were read from a store as JSON, and have yet to get their types back. ``inputs`` has
    what steps are given instead of what the plan would give them, by path; ``linked`` the trace of the latest stretch
    where it is not that of the first; ``open_steps`` those of ``steps`` that have no result yet.
    """

    run_id: str = ""
    workflow_id: str = ""
    trace_id: str | None = None
    status: RunStatus = "running"
    seq: int = 0
    stretch: int = 0
    input: Any = None
    result: Any = None
    error: StepError | None = None
    metadata: dict[str, Any] = field(default_factory=_DICT)
    steps: dict[str, StepResult] = field(default_factory=_DICT)
    latest: dict[str, StepResult] = field(default_factory=_DICT)
    open_steps: dict[str, StepResult] = field(default_factory=_DICT)
    decisions: dict[str, Any] = field(default_factory=_DICT)
    values: dict[str, dict[str, Any]] = field(default_factory=_DICT)
    inputs: dict[str, Any] = field(default_factory=_DICT)
    linked: LinkedTrace | None = None
    consumed: set[str] = field(default_factory=_SET)
    waiting: set[str] = field(default_factory=_SET)
    open_calls: dict[str, Entry] = field(default_factory=_DICT)
    started_at: int = 0
    ended_at: int | None = None
    last_at: int = 0
    announced: bool = False
    restored: bool = False
    steps_run: int = 0
    tool_calls: int = 0
    retries: int = 0
    spans: int = 0
    spans_dropped: int = 0
    spans_left_out: int = 0

    @classmethod
    def fold(cls, events: Iterable[Event]) -> "RunState":
        """Return the state after these events, in their order."""
        state = cls()
        for event in events:
            state.apply(Entry.of(event))
        return state

    @property
    def suspended(self) -> dict[str, Any]:
        """Path → payload of each step that waits for an answer, in the order in which they suspended."""
        if not self.waiting:
            return {}
        return {path: self.steps[path].payload for path in sorted(self.waiting, key=self._suspended_at)}

    @property
    def unfinished(self) -> bool:
        """Whether a step waits for an answer: then the frames around it are open too."""
        return bool(self.waiting)

    @property
    def ended(self) -> bool:
        return self.status in ("success", "failed", "canceled")

    def counts_with(self, spans: int, lost: int, left_out: int) -> Counts:
        """Return the totals so far, with the spans of the stretch that ends now."""
        counts = Counts(
            steps=self.steps_run,
            tool_calls=self.tool_calls,
            retries=self.retries,
            spans=self.spans + spans,
            spans_dropped=self.spans_dropped + lost,
        )
        left_out += self.spans_left_out
        return counts.model_copy(update={"spans_left_out": left_out}) if left_out else counts

    def apply(self, entry: Entry) -> None:
        """Take one lifecycle event in. Deltas change nothing."""
        kind = entry.kind
        if not kind.lifecycle:
            return
        self.seq = entry.seq
        self.last_at = entry.timestamp
        if entry.changes is not None:
            self.decisions.update(entry.changes.get("decisions", ()))
            for scope, values in entry.changes.get("state", {}).items():
                self.values.setdefault(scope, {}).update(values)
        change = _APPLY.get(kind)
        if change is not None:
            change(self, entry, entry.payload)

    def resolve(self, ref: Ref) -> Any:
        """Return the value that a reference stands for."""
        if isinstance(ref, list):
            return [self.resolve(each) for each in ref]
        if isinstance(ref, dict):
            return {key: self.resolve(each) for key, each in ref.items()}
        path, colon, index = ref.rpartition(":")
        if colon:
            return self.resolve(path)[int(index)]
        if ref.endswith(("[*]", "[?]")):
            return self._items(ref[:-3], collect=ref.endswith("[?]"))
        return self.steps[ref].output if ref else self.input

    def _items(self, path: str, *, collect: bool) -> list[Any]:
        """Return the outputs of a foreach's items, as ``Ok`` and ``Err`` where it collects."""
        found: list[Any] = []
        while (item := self.steps.get(f"{path}[{len(found)}]")) is not None:
            if not collect:
                found.append(item.output)
            elif item.error is not None and item.status == "failed":
                found.append(Err(error=item.error))
            else:
                found.append(Ok[Any](value=item.output))
        return found

    def _suspended_at(self, path: str) -> tuple[int, str]:
        return (self.steps[path].suspended_at or 0, path)


def _start(state: RunState, entry: Entry, payload: dict[str, Any]) -> None:
    state.stretch += 1
    state.status = "running"
    resumed: Resumed | None = payload.get("resumed")
    if resumed is not None:
        step = state.steps[resumed.path]
        state.waiting.discard(resumed.path)
        step.answers = (*step.answers, resumed.data)
        step.resumed_at = entry.timestamp
    travelled: Travelled | None = payload.get("travelled")
    if travelled is not None:
        state.inputs = travelled.inputs
    linked: LinkedTrace | None = payload.get("linked")
    if linked is not None:
        state.linked, state.trace_id, state.announced = linked, linked.trace_id, False
    if state.stretch == 1:
        state.run_id, state.trace_id, state.workflow_id = entry.run.run_id, entry.run.trace_id, payload["workflow_id"]
        state.input, state.metadata, state.started_at = payload["input"], payload["metadata"], entry.timestamp


def _step_start(state: RunState, entry: Entry, payload: dict[str, Any]) -> None:
    path = entry.path
    known = state.steps.get(path)
    if known is None:
        at = entry.timestamp
        known = StepResult(payload["id"], path, "running", payload["attempt"], started_at=at, attempt_at=at)
        state.steps[path] = known
        state.steps_run += 1
    else:
        known.status, known.attempt, known.until = "running", payload["attempt"], None
        known.attempt_at = entry.timestamp
    state.open_steps[path] = known


def _step_retry(state: RunState, entry: Entry, payload: dict[str, Any]) -> None:
    step = state.steps[entry.path]
    step.error = payload["error"]
    step.ended_at = entry.timestamp
    if step.error is not None and step.error.type == PROCESS_LOST:
        step.status, step.until = "waiting", None  # for its next attempt; it was not the step that failed
        return
    step.failures += 1
    step.status, step.until = "waiting", entry.timestamp + int(payload["delay"] * 1e9)
    state.retries += 1


def _step_suspended(state: RunState, entry: Entry, payload: dict[str, Any]) -> None:
    step = state.steps[entry.path]
    step.status, step.payload, step.suspended_at = "suspended", payload["payload"], entry.timestamp
    step.resume_type = payload.get("resume_type")
    state.waiting.add(entry.path)


def _step_waiting(state: RunState, entry: Entry, payload: dict[str, Any]) -> None:
    path = entry.path
    step = StepResult(payload["id"], path, "waiting", started_at=entry.timestamp, until=payload["until"])
    state.steps[path] = state.open_steps[path] = step


def _step_result(state: RunState, entry: Entry, payload: dict[str, Any]) -> None:
    path = entry.path
    step = state.steps[path]
    if step.status == "suspended":
        state.waiting.discard(path)
    state.open_steps.pop(path, None)
    step.status, step.error, step.ended_at = payload["status"], payload.get("error"), entry.timestamp
    output = payload.get("output")
    if output is None and payload.get("output_ref") is not None:
        output = state.resolve(payload["output_ref"])
    step.output = output
    if payload.get("message_id") is not None:
        state.consumed.add(payload["message_id"])
    if "#" in path:
        state.latest[without_iterations(path)] = step


def _tool_call(state: RunState, entry: Entry, payload: dict[str, Any]) -> None:
    state.tool_calls += 1
    state.open_calls[payload["tool_call_id"]] = entry


def _tool_result(state: RunState, entry: Entry, payload: dict[str, Any]) -> None:
    state.open_calls.pop(payload["tool_call_id"], None)


def _finish(state: RunState, entry: Entry, payload: dict[str, Any]) -> None:
    status: FinishStatus = payload["status"]
    counts: Counts = payload["counts"]
    state.status, state.error = status, payload.get("error")
    state.spans, state.spans_dropped = counts.spans, counts.spans_dropped
    state.spans_left_out = counts.spans_left_out
    if status == "success":
        state.result = payload.get("result")
        if state.result is None and payload.get("result_ref") is not None:
            state.result = state.resolve(payload["result_ref"])
    if status == "suspended":
        state.announced = True
    else:
        state.ended_at = entry.timestamp
        state.waiting.clear()


_APPLY: dict[type[Envelope], Callable[[RunState, Entry, dict[str, Any]], None]] = {
    Start: _start,
    StepStart: _step_start,
    StepRetry: _step_retry,
    StepSuspended: _step_suspended,
    StepWaiting: _step_waiting,
    StepResultEvent: _step_result,
    ToolCall: _tool_call,
    ToolResultEvent: _tool_result,
    Finish: _finish,
}


def parent_path(path: str) -> str:
    """Return the path of the frame that a path stands in, ``""`` for the run: ``nested/each[3]`` → ``nested/each``."""
    return path[: path.rfind("[")] if path.endswith("]") else path.rpartition("/")[0]


def without_iterations(path: str) -> str:
    """Return a path without the numbers of its loops: ``loop#2/price`` → ``loop/price``."""
    return "/".join(segment.partition("#")[0] for segment in path.split("/"))


def suspended_choices(paths: Sequence[str]) -> str:
    """List paths for an error text."""
    return ", ".join(repr(path) for path in paths) or "none"
