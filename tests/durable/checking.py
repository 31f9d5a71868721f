"""What must be true of a run that was killed: its result, its side effects, and the spans that its processes wrote."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spanflow import RunNotFound
from spanflow.entries import Entry
from spanflow.events import Finish, Start, StepResultEvent, StepRetry, StepStart, StepSuspended, ToolResultEvent
from spanflow.state import PROCESS_LOST, RunState
from spanflow.tracing import names
from spanflow.tracing.ids import derive_span_id
from tests.durable.processes import Order, journal, read_lines

Shape = tuple[str, tuple["Shape", ...]]
_ENDS = (StepResultEvent, StepRetry, StepSuspended, ToolResultEvent, Finish)
_OF_THIS_RUN = (names.RUN_ID, names.STEP_ATTEMPT, names.TOOL_CALL_ID)  # a lost attempt shifts the numbers after it


@dataclass(frozen=True, slots=True)
class Span:
    """A line of the file of spans. Times are ns since the epoch."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    scope: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    process: int

    @property
    def is_ours(self) -> bool:
        return self.scope == names.SCOPE

    @property
    def lost(self) -> bool:
        return self.attributes.get(names.ERROR_TYPE) == PROCESS_LOST

    @property
    def label(self) -> str:
        """What must be the same in a run that was not killed."""
        kept = {key: value for key, value in self.attributes.items() if key not in _OF_THIS_RUN}
        return f"{self.name} {json.dumps(kept, sort_keys=True)}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left of a run when all its processes are gone.

    Attributes:
        marks: what each attempt of a step left outside of the run: its idempotency key and its number.
    """

    spans: tuple[Span, ...]
    marks: tuple[tuple[str, int], ...]
    entries: tuple[Entry, ...]
    state: RunState

    @property
    def lost(self) -> list[str]:
        """The paths of the attempts that were lost, as the journal has them."""
        retries = (entry for entry in self.entries if entry.kind is StepRetry)
        return [entry.path for entry in retries if entry.payload["error"].type == PROCESS_LOST]

    @property
    def doubled(self) -> dict[str, int]:
        """Span ids that were exported more than once."""
        return {span_id: n for span_id, n in Counter(span.span_id for span in self.spans).items() if n > 1}

    @property
    def shape(self) -> Shape:
        """The tree of spans without what only recovery makes, in an order that does not depend on time."""
        lost = {span.span_id for span in self.spans if span.lost}
        kept = {span.span_id: span for span in self.spans if span.span_id not in lost and span.name != "run.started"}
        return self._shape_of(next(span for span in kept.values() if span.parent_id is None), list(kept.values()))

    def _shape_of(self, span: Span, spans: list[Span]) -> Shape:
        below = [self._shape_of(each, spans) for each in spans if each.parent_id == span.span_id]
        if not span.name.startswith("step "):  # what a condition calls it may call once more where its process died
            calls = {shape for shape in below if shape[0].startswith("execute_tool ")}
            below = [*calls, *(shape for shape in below if shape not in calls)]
        return (span.label, tuple(sorted(below)))

    @property
    def came_to(self) -> dict[str, Any]:
        """What must be the same in a run that was not killed."""
        state = self.state
        steps = {path: (step.status, step.output) for path, step in sorted(state.steps.items())}
        error = None if state.error is None else (state.error.path, state.error.type)
        return {"status": state.status, "result": state.result, "error": error, "state": state.values, "steps": steps}

    def problems(self, expected: "Outcome | None" = None, deaths: Sequence[Sequence[Entry]] = ()) -> Iterator[str]:
        """Tell all that is wrong. ``deaths`` has the journal as each killed process left it.

        Without ``expected``, only what holds for any run that was killed is looked at.
        """
        if not self.state.ended:
            yield f"the run is {self.state.status}"
            return
        yield from self._problems_of_spans()
        yield from self._problems_of_ids(deaths)
        yield from self._problems_of_effects()
        yield from self._problems_of_steps()
        if expected is not None:
            yield from self._differences(expected)

    def _problems_of_spans(self) -> Iterator[str]:
        known = {span.span_id for span in self.spans}
        if len({span.trace_id for span in self.spans}) != 1:
            yield "the spans belong to several traces"
        for span in self.spans:
            if span.parent_id is not None and span.parent_id not in known:
                yield f"{span.label} is an orphan"
            if span.start > span.end:
                yield f"{span.label} ends before it starts"
        roots = {span.span_id: span for span in self.spans if span.parent_id is None}
        if len(roots) != 1:
            yield f"there are {len(roots)} roots"
        for root in roots.values():
            if (root.start, root.end) != (self.state.started_at, self.state.ended_at):
                yield "the root does not have the start and end of the run"
            if any(span.start < root.start for span in self.spans if span.is_ours):
                yield "a span starts before the root"
        if len({span.span_id for span in self.spans if span.name == "run.started"}) > 1:
            yield "the run was announced twice"
        yield from self._problems_of_lost_attempts()

    def _problems_of_ids(self, deaths: Sequence[Sequence[Entry]]) -> Iterator[str]:
        """A span may be there twice only where its process died between exporting it and storing that it was over."""
        known = [ended_spans(at_death) for at_death in deaths]
        for span_id in self.doubled:
            copies = [span for span in self.spans if span.span_id == span_id]
            allowed = 1 + sum(int(span_id, 16) not in ended for ended in known)
            if len(copies) > allowed or len({span.process for span in copies}) != len(copies):
                yield f"{copies[0].label} was exported {len(copies)} times: {copies}"
        exported = {int(span.span_id, 16) for span in self.spans}
        for entry in self.entries:
            if entry.span_id not in exported and entry.run.trace_id == self.state.trace_id:  # not taken over
                yield f"{entry.kind.__name__} {entry.path} has no span"

    def _problems_of_lost_attempts(self) -> Iterator[str]:
        lost = {span.span_id: span for span in self.spans if span.lost and span.name.startswith("step ")}
        for span in self.spans:
            around = lost.get(span.parent_id or "")
            if around is not None and span.is_ours and not around.start <= span.start <= span.end <= around.end:
                yield f"{span.label} sticks out of the lost attempt around it"
        lost_attempts = sorted(str(span.attributes[names.STEP_PATH]) for span in lost.values())
        if lost_attempts != sorted(self.lost):
            yield f"the journal has lost {sorted(self.lost)}, the spans have {lost_attempts}"

    def _problems_of_effects(self) -> Iterator[str]:
        repeated = [mark for mark, n in Counter(self.marks).items() if n > 1]
        if repeated:
            yield f"attempts ran twice: {repeated}"
        starts = [entry for entry in self.entries if entry.kind is StepStart]
        begun = {(f"{self.state.run_id}/{entry.path}", entry.payload["attempt"]) for entry in starts}
        unknown = set(self.marks) - begun
        if unknown:
            yield f"attempts ran that the journal does not know: {unknown}"

    def _problems_of_steps(self) -> Iterator[str]:
        results = Counter(entry.path for entry in self.entries if entry.kind is StepResultEvent)
        twice = [path for path, n in results.items() if n > 1]
        if twice:
            yield f"steps ended twice: {twice}"
        left = [f"{path} {step.status}" for path, step in self.state.steps.items() if not results[path]]
        if left:
            yield f"steps have no result: {left}"
        # What a thread does whose step was canceled is no event any more.
        canceled = {path for path, step in self.state.steps.items() if step.status == "canceled"}
        open_calls = [call for call, entry in self.state.open_calls.items() if entry.path not in canceled]
        if open_calls:
            yield f"tool calls have no result: {open_calls}"

    def _differences(self, expected: "Outcome") -> Iterator[str]:
        if self.came_to != expected.came_to:
            yield f"the run came to {self.came_to}, instead of {expected.came_to}"
        if self.shape != expected.shape:
            yield f"the tree differs:\n{draw(self.shape)}\ninstead of\n{draw(expected.shape)}"
        lost, usual = Counter(self.lost), Counter(expected.keys)
        for path, n in Counter(self.keys).items():
            if not usual[path] <= n <= usual[path] + lost[path]:
                yield f"{path} ran {n} times, usually {usual[path]}, and {lost[path]} attempts were lost"

    @property
    def keys(self) -> list[str]:
        """The path of each attempt that left a mark."""
        return [key.removeprefix(f"{self.state.run_id}/") for key, _ in self.marks]


def ended_spans(entries: Sequence[Entry]) -> set[int]:
    """Return the ids of the spans that these events know to be over: whoever goes on must not export them again."""
    ended: set[int] = set()
    gaps: dict[str, tuple[str, int]] = {}
    answers: Counter[str] = Counter()
    for entry in entries:
        run_id, path = entry.run.run_id, entry.path
        if entry.kind in _ENDS and entry.payload.get("status") != "suspended" and entry.span_id is not None:
            ended.add(entry.span_id)
        if entry.kind is Finish and entry.payload["status"] == "suspended":
            ended.add(derive_span_id(run_id, names.RUN_STARTED, 0))
        elif entry.kind is StepRetry:
            gaps[path] = (f"{path}/retry", entry.payload["attempt"])
        elif entry.kind is Start and entry.payload.get("resumed") is not None:
            path = entry.payload["resumed"].path
            answers[path] += 1
            gaps[path] = (f"{path}/wait", answers[path])
        elif entry.kind is StepStart and path in gaps:
            ended.add(derive_span_id(run_id, *gaps.pop(path)))
    return ended


def draw(shape: Shape, indent: str = "") -> str:
    label, below = shape
    return "\n".join([f"{indent}{label}", *(draw(each, f"{indent}  ") for each in below)])


def outcome_of(order: Order) -> Outcome:
    """Read what is left of a run. Raises RunNotFound."""
    return asyncio.run(_outcome_of(order))


def journal_of(order: Order) -> Sequence[Entry]:
    """Return the events of a run so far; none where the process died before the first."""
    try:
        return outcome_of(order).entries
    except RunNotFound:
        return ()


async def _outcome_of(order: Order) -> Outcome:
    store = order.open_store()
    try:
        entries = await journal(store, order.run_id)
    finally:
        await store.aclose()
    state = RunState()
    for entry in entries:
        state.apply(entry)
    spans = tuple(Span(**line) for line in read_lines(order.spans))
    ours = tuple(span for span in spans if span.trace_id == state.trace_id) or spans
    marks = tuple((line["key"], line["attempt"]) for line in read_lines(order.marks))
    return Outcome(ours, tuple(m for m in marks if m[0].startswith(f"{order.run_id}/")), tuple(entries), state)
