"""What must be true of a run that was killed: its result, its side effects, and the spans that its processes wrote."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanflow import RunNotFound, SQLiteStore
from spanflow.events import Entry, Finish, StepResultEvent, StepRetry, StepSuspended, ToolResultEvent
from spanflow.state import PROCESS_LOST, RunState
from tests.durable.program import RESULT, Order

Shape = tuple[str, str, tuple["Shape", ...]]
_ENDS = (StepResultEvent, StepRetry, StepSuspended, ToolResultEvent, Finish)


@dataclass(frozen=True, slots=True)
class Span:
    """A line of the file of spans. Times are ns since the epoch."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    process: int

    @property
    def error_type(self) -> str:
        return str(self.attributes.get("error.type", ""))

    @property
    def lost(self) -> bool:
        return self.error_type == PROCESS_LOST


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left of a run when all its processes are gone."""

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
        return (span.name, f"{span.attributes.get('spanflow.step.path', '')} {span.error_type}", tuple(sorted(below)))

    def problems(self, expected: "Outcome | None" = None, deaths: Sequence[Sequence[Entry]] = ()) -> Iterator[str]:
        """Tell all that is wrong. ``deaths`` has the journal as each killed process left it."""
        if self.state.status != "success" or self.state.result != RESULT:
            yield f"the run is {self.state.status} with {self.state.result!r}, {self.state.error}"
            return
        yield from self.problems_of_end(deaths)
        yield from self._problems_of_attempts()
        if expected is not None and self.shape != expected.shape:
            yield f"the tree differs:\n{draw(self.shape)}\ninstead of\n{draw(expected.shape)}"

    def problems_of_end(self, deaths: Sequence[Sequence[Entry]] = ()) -> Iterator[str]:
        """Tell all that is wrong with a run, however it ended.

        A span may be there twice only where its process died between exporting it and storing that it had ended.
        """
        left = [path for path, step in self.state.steps.items() if step.status in ("running", "waiting", "suspended")]
        if left or not self.state.ended:
            yield f"the run is {self.state.status}, with {left} left open"
        yield from self.problems_of_spans()
        known = [{entry.span_id for entry in journal if _ends_a_span(entry)} for journal in deaths]
        for span_id in self.doubled:
            copies = [span for span in self.spans if span.span_id == span_id]
            allowed = 1 + sum(int(span_id, 16) not in ended for ended in known)
            if len(copies) > allowed or len({span.process for span in copies}) != len(copies):
                yield f"{copies[0].name} was exported {len(copies)} times: {copies}"
        yield from self._problems_of_effects()

    def problems_of_spans(self) -> Iterator[str]:
        known = {span.span_id for span in self.spans}
        if len({span.trace_id for span in self.spans}) != 1:
            yield "the spans belong to several traces"
        for span in self.spans:
            if span.parent_id is not None and span.parent_id not in known:
                yield f"{span.name} {span.attributes.get('spanflow.step.path', '')} is an orphan"
            if span.start > span.end:
                yield f"{span.name} ends before it starts"
        roots = {span.span_id: span for span in self.spans if span.parent_id is None}
        if len(roots) != 1:
            yield f"there are {len(roots)} roots"
        for root in roots.values():
            if (root.start, root.end) != (self.state.started_at, self.state.ended_at):
                yield "the root does not have the start and end of the run"
            if any(span.start < root.start for span in self.spans):
                yield "a span starts before the root"
            if root.attributes.get("feature_flag.ranker") != "v2" or root.attributes.get("user.id") != "u-42":
                yield f"the root has lost its attributes: {root.attributes}"
        if len({span.span_id for span in self.spans if span.name == "run.started"}) > 1:
            yield "the run was announced twice"
        lost = {span.span_id: span for span in self.spans if span.lost and span.name.startswith("step ")}
        for span in self.spans:
            around = lost.get(span.parent_id or "")
            if around is not None and not around.start <= span.start <= span.end <= around.end:
                yield f"{span.name} sticks out of the lost attempt around it"
        lost_attempts = sorted(str(span.attributes["spanflow.step.path"]) for span in lost.values())
        if lost_attempts != sorted(self.lost):
            yield f"the journal has lost {sorted(self.lost)}, the spans have {lost_attempts}"

    def _problems_of_effects(self) -> Iterator[str]:
        repeated = [mark for mark, n in Counter(self.marks).items() if n > 1]
        if repeated:
            yield f"attempts ran twice: {repeated}"
        completed = Counter(
            entry.path
            for entry in self.entries
            if entry.kind is StepResultEvent and entry.payload["status"] == "success"
        )
        twice = [path for path, n in completed.items() if n > 1]
        if twice:
            yield f"steps completed twice: {twice}"

    def _problems_of_attempts(self) -> Iterator[str]:
        run_id = self.state.run_id
        for path, step in self.state.steps.items():
            attempts = [attempt for key, attempt in self.marks if key == f"{run_id}/{path}"]
            if attempts and max(attempts) != step.attempt:
                yield f"{path} ran as {attempts}, its last recorded attempt is {step.attempt}"


def _ends_a_span(entry: Entry) -> bool:
    return entry.kind in _ENDS and entry.payload.get("status") != "suspended"  # the root goes on


def draw(shape: Shape, indent: str = "") -> str:
    name, rest, below = shape
    return "\n".join([f"{indent}{name}  {rest}", *(draw(each, f"{indent}  ") for each in below)])


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
    store = SQLiteStore(order.store)
    entries: list[Entry] = []
    while page := await store.read(order.run_id, after=entries[-1].seq if entries else 0):
        entries.extend(page)
    await store.aclose()
    state = RunState()
    for entry in entries:
        state.apply(entry)
    spans = tuple(Span(**line) for line in read_lines(order.spans))
    ours = tuple(span for span in spans if span.trace_id == state.trace_id) or spans
    marks = tuple((line["key"], line["attempt"]) for line in read_lines(order.marks))
    return Outcome(ours, tuple(m for m in marks if m[0].startswith(f"{order.run_id}/")), tuple(entries), state)


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
