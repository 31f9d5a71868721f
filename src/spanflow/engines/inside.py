"""What the operations of one frame share: the run itself, a nested workflow, or a foreach."""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from spanflow.attempt import attempt
from spanflow.clock import RunClock
from spanflow.context import AbortSignal, BailSignal, Place, RunSide, StepContext, SuspendSignal
from spanflow.definition import Definition
from spanflow.errors import SpanflowError
from spanflow.events import ResultStatus, StepError, StepFinish, StepResultEvent, ToolResultEvent
from spanflow.failure import failure
from spanflow.interpret import Bailed, Canceled, Failed, Outcome, Position, Suspended, Value
from spanflow.journal import Journal
from spanflow.plan import Plan
from spanflow.ports import Message
from spanflow.schema import Schema
from spanflow.state import ABORTED, StepResult
from spanflow.tracing import metrics, names
from spanflow.tracing.metadata import clean
from spanflow.tracing.roots import RootScope
from spanflow.tracing.spans import Histogram, Link, Scope

Measured = tuple[Histogram, str]
"""A histogram, and the attribute that says of what."""

STEP: Measured = (metrics.step_duration, names.STEP_ID)
WORKFLOW: Measured = (metrics.workflow_duration, names.WORKFLOW_NAME)


class Driver(RunSide, Protocol):
    """What the operations need of the stretch they belong to."""

    clock: RunClock
    journal: Journal
    resume_schemas: dict[str, Schema[Any]]
    root: RootScope

    @property
    def plan(self) -> Plan: ...

    @property
    def arrived(self) -> asyncio.Event: ...

    def take(self, name: str) -> Message | None: ...

    @property
    def leaving(self) -> bool:
        """Whether this process no longer drives the run: then nothing is recorded, and open spans stay open."""
        ...

    stores_json: bool
    stopping: bool

    async def assure(self) -> None: ...

    def announce_before(self, moment: int | None) -> None: ...

    def resumed_by(self, path: str) -> Sequence[Link]: ...


class Inside:
    """A frame from the inside: its span, its workflow's code, and how its children came out."""

    __slots__ = ("definition", "drive", "failed", "journal", "place", "scope", "succeeded")

    def __init__(self, drive: Driver, scope: Scope, definition: Definition, place: Place) -> None:
        self.drive = drive
        self.journal = drive.journal
        self.scope = scope
        self.definition = definition
        self.place = place
        self.succeeded = 0
        self.failed = 0

    def now(self) -> int:
        return self.drive.clock.time_ns()

    def settled(self, known: StepResult, schema: Schema[Any]) -> Outcome | None:
        """Return the outcome that is already recorded; None where there is work left to do."""
        if known.status == "success":
            return Value(self.drive.revive(schema, known.output), known.path)
        return self.stopped(known)

    def stopped(self, known: StepResult) -> Outcome | None:
        """Return the outcome of what did not succeed; None where there is work left to do."""
        match known.status:
            case "bailed":
                return Bailed(Value(known.output, known.path))
            case "failed" if known.error is not None:
                return Failed(known.error)
            case "canceled":  # the process died before all was stopped that had to be
                return Canceled() if known.error is None else Canceled(known.error.message, known.error.path)
            case "suspended" if known.path in self.drive.state.waiting:
                return Suspended()
            case _:
                return None

    def count(self, outcome: Outcome) -> Outcome:
        """Count how a child came out, for the frame's own span."""
        if type(outcome) is Value:
            self.succeeded += 1
        elif isinstance(outcome, Failed):
            self.failed += 1
        return outcome

    def end(
        self,
        id: str,
        path: str,
        number: int,
        scope: Scope,
        started_at: int,
        status: ResultStatus,
        output: Value | None = None,
        failed: Failed | None = None,
        measured: Measured | None = STEP,
        aborted: Canceled | None = None,
    ) -> None:
        """Record the result of an attempt or frame, and end its span.

        ``aborted`` is what a step asked for that is canceled by its own wish: whoever recovers the run has to know.
        """
        at = self.drive.clock.time_ns()
        duration = (at - started_at) / 1e9
        error = None if failed is None else failed.exception
        if status == "canceled" or status == "bailed":
            scope.note({names.STEP_STATUS: status})
        if scope.spans.measures and measured is not None:
            histogram, attribute = measured
            scope.measure(histogram, duration, {attribute: id}, error)
        scope.end(at, error)
        result: dict[str, Any] = {"id": id, "status": status}
        if output is not None:
            result["output"] = output.data
            if output.ref is not None:
                result["output_ref"] = output.ref
        if failed is not None:
            result["error"] = failed.problem
        if aborted is not None:
            result["error"] = StepError(path=aborted.path, type=ABORTED, message=clean(aborted.reason))
        record = self.journal.record
        record(StepResultEvent, result, path, scope.span_id, at)
        record(StepFinish, {"id": id, "attempt": number, "duration": duration}, path, scope.span_id, at)
        self.journal.flush_soon()

    def give_up(self, id: str, path: str, number: int, started_at: int, wait: Literal["cut", "over"] | None) -> None:
        """Record that a step was canceled between two attempts; the span of the last one has ended.

        ``wait`` says what became of the wait between them: one that is cut gets its span here. None: there was none.
        """
        at = self.now()
        span_id = self.scope.span_id_of(path if wait is None else f"{path}/retry", number)
        if wait == "cut":
            attributes = {names.STEP_ID: id, names.STEP_PATH: path, names.WAIT_REASON: "retry"}
            attributes[names.STEP_STATUS] = "canceled"
            self.scope.interval(f"wait {id}", f"{path}/retry", number, attributes, started_at, at)
        self.journal.record(StepResultEvent, {"id": id, "status": "canceled"}, path, span_id, at)
        finish = {"id": id, "attempt": number, "duration": (at - started_at) / 1e9}
        self.journal.record(StepFinish, finish, path, span_id, at)
        self.journal.flush_soon()

    async def ask(self, key: str, name: str, value: Value) -> Value | Failed:
        """Call a function of the plan that is no step: in the frame's own span, without events.

        ``key`` is the path it decides for, with a ``?`` behind it that no step's path has: its tool calls are told
        apart by it from those of the step.
        """
        path = key.rpartition("?")[0]
        decides = path.rpartition("#")[0] if "#" in path.rpartition("/")[2] else path  # the iteration itself is over
        ctx: StepContext[Any] = StepContext(self.place, self.scope, name, decides, 1)
        # Whoever recovers the run asks once more where nothing that followed from the answer was stored.
        ctx.calls_from = key if self.drive.state.stretch == 1 else f"{key}{self.drive.state.stretch}"
        try:
            return Value(await attempt(self.definition.step(name), value.data, ctx, self.drive.clock), None)
        except Exception as error:
            return Failed(failure(error, path), recorded=self.scope.has_recorded(error))
        except (SuspendSignal, BailSignal, AbortSignal) as signal:
            what = type(signal).__name__.removesuffix("Signal").lower()
            problem = SpanflowError(f"{path!r}: only a step can {what}(); a condition or function just returns.")
            return Failed(failure(problem, path), recorded=False)
        finally:
            leave(ctx)


def leave(ctx: StepContext[Any]) -> None:
    """Cancel the tool calls that a step leaves open in threads and tasks. What those do from here on is dropped."""
    ctx.run.catch_up()
    calls = ctx.tool_calls
    if calls is None:  # a thread that begins its first call from here on finds that the step has ended
        ctx.ended = True
        return
    with calls.lock:
        ctx.run.catch_up()
        while calls.open:
            calls.open.popitem()[1].abandon()
        _close_calls(ctx)
        ctx.ended = True


def _close_calls(ctx: StepContext[Any]) -> None:
    run = ctx.run
    for call_id, entry in list(run.state.open_calls.items()):
        if entry.path == ctx.path:
            problem = failure(asyncio.CancelledError(), ctx.path)
            payload = {"tool_call_id": call_id, "tool_name": entry.payload["tool_name"], "error": problem}
            ctx.record(ToolResultEvent, payload, entry.span_id, run.time_ns())


def position_attributes(position: Position) -> dict[str, Any]:
    """Return the attributes that say which item, iteration or arm a span belongs to."""
    found: dict[str, Any] = {}
    if position.foreach_index is not None:
        found[names.FOREACH_INDEX] = position.foreach_index
    if position.loop_iteration is not None:
        found[names.LOOP_ITERATION] = position.loop_iteration
    if position.branch_arm is not None:
        found[names.BRANCH_ARM] = position.branch_arm
    return found


def start_payload(id: str, number: int, value: Value, position: Position) -> dict[str, Any]:
    """Return the payload of ``step-start``."""
    payload: dict[str, Any] = {"id": id, "attempt": number, "input": value.data, "input_ref": value.ref}
    if position.foreach_index is not None:
        payload["foreach_index"] = position.foreach_index
    if position.loop_iteration is not None:
        payload["loop_iteration"] = position.loop_iteration
    return payload
