"""``Ops`` on asyncio: what the interpreter's operations do in this process."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydantic import ValidationError

from spanflow.context import Place
from spanflow.definition import Definition
from spanflow.engines import waits
from spanflow.engines.closing import close_inside, close_open
from spanflow.engines.inside import WORKFLOW, Driver, Inside, position_attributes, start_payload
from spanflow.engines.steps import run_step
from spanflow.errors import InvalidInput, InvalidOutput
from spanflow.events import Ref, ResultStatus, StepStart
from spanflow.explain import describe
from spanflow.failure import failure
from spanflow.interpret import (
    Bailed,
    Canceled,
    Failed,
    Fork,
    Frame,
    Joined,
    Lazily,
    Ops,
    Outcome,
    Position,
    Suspended,
    Value,
    run_body,
)
from spanflow.outcome import Err, Ok
from spanflow.plan import MapNode, SleepNode, StepNode, ToolNode, WaitNode
from spanflow.schema import Schema
from spanflow.state import StepResult
from spanflow.step import Step
from spanflow.tracing import names
from spanflow.tracing.spans import Scope
from spanflow.tracing.thinning import open_step

_AT_ONCE = 256  # forks that begin in one turn of the event loop


class _Stop(Exception):
    """Ends a task group whose outcome is decided."""


class LocalOps:
    """Operations of one frame of a run."""

    __slots__ = ("_inside",)

    def __init__(self, drive: Driver, scope: Scope, definition: Definition, place: Place) -> None:
        self._inside = Inside(drive, scope, definition, place)

    def step(
        self, node: StepNode | ToolNode | MapNode, path: str, value: Value, position: Position
    ) -> Awaitable[Outcome]:
        inside = self._inside
        step = inside.definition.step(node.id)
        if path in inside.drive.state.inputs:
            value = self._given(path, step.input)
        return run_step(inside, step, path, value, position)

    async def sleep(self, node: SleepNode, path: str, value: Value) -> Outcome:
        return await waits.sleep(self._inside, node, path, value)

    async def wait(self, node: WaitNode, path: str) -> Outcome:
        return await waits.wait_for_event(self._inside, node, path)

    async def test(self, key: str, name: str, value: Value) -> bool | Failed:
        inside = self._inside
        known = inside.drive.state.decisions.get(key)
        if known is not None:
            return bool(known)
        answer = await inside.ask(key, name, value)
        if isinstance(answer, Failed):
            return answer
        try:
            verdict = bool(answer.data)
        except Exception as error:  # a condition may return anything, even what refuses to be true or false
            return self.failure(key.rpartition("?")[0], error)
        inside.journal.decide(key, verdict)
        return verdict

    async def items(self, path: str, value: Value) -> Sequence[Value] | Failed:
        data: object = value.data
        if not isinstance(data, Sequence) or isinstance(data, (str, bytes, bytearray)):
            given = f"{type(data).__name__}: {str(data)[:80]}"
            return self.failure(path, InvalidInput(f"foreach {path!r} runs over a list, got {given}"))
        kept = tuple(value.data)  # whatever steps do to the list
        return Lazily(len(kept), lambda index: Value(kept[index], _item_ref(value.ref, index)))

    def collected(self, path: str, outcomes: Sequence[Outcome]) -> Value:
        made: list[Ok[Any] | Err] = []
        for outcome in outcomes:
            if isinstance(outcome, Value):
                made.append(Ok[Any](value=outcome.data))
            elif isinstance(outcome, Failed):
                made.append(Err(error=outcome.problem))
        return Value(made, f"{path}[?]")

    def failure(self, path: str, error: BaseException, *, recorded: bool = False) -> Failed:
        return Failed(failure(error, path), recorded)

    async def fork(self, forks: Sequence[Fork], limit: int | None, *, keep_going: bool) -> Joined:
        outcomes: list[Outcome] = [Canceled()] * len(forks)
        drive = self._inside.drive
        decisive = None if drive.state.stretch == 1 else self._decided(forks, keep_going=keep_going)
        if decisive is not None:
            close_open(drive, self._inside.now(), {fork.path for fork in forks})
            return Joined(outcomes, decisive)
        queue = iter(enumerate(forks))

        async def work() -> None:
            nonlocal decisive
            for index, fork in queue:
                if decisive is not None:
                    raise _Stop
                outcome = await run_body(fork.body, fork.path, fork.value, self, fork.position)
                outcomes[index] = outcome
                if isinstance(outcome, Bailed | Canceled) or (isinstance(outcome, Failed) and not keep_going):
                    if decisive is None:
                        decisive = outcome
                    raise _Stop

        workers = len(forks) if limit is None else min(limit, len(forks))
        try:
            if workers == 1:
                await work()
            elif workers > 1:
                async with asyncio.TaskGroup() as group:
                    for number in range(workers):
                        if number and number % _AT_ONCE == 0:
                            await asyncio.sleep(0)
                        group.create_task(work())
        except* _Stop:
            pass
        if decisive is not None and (drive.state.waiting or drive.state.stretch > 1):  # nobody goes on with these
            close_open(drive, self._inside.now(), {fork.path for fork in forks})
        return Joined(outcomes, decisive)

    def _decided(self, forks: Sequence[Fork], *, keep_going: bool) -> Outcome | None:
        """Return what stopped these forks in a process that died before all of them had stopped."""
        steps = self._inside.drive.state.steps
        known = [steps[fork.path] for fork in forks if fork.path in steps]
        stopping = ("bailed", "canceled") if keep_going else ("bailed", "canceled", "failed")
        stopped = [step for step in known if step.status in stopping]
        if not stopped:
            return None
        for step in known:
            self._inside.succeeded += step.status == "success"
            self._inside.failed += step.status == "failed"
        return self._inside.stopped(min(stopped, key=_decisiveness))

    async def within(self, frame: Frame, value: Value, body: Callable[[Ops, Value], Awaitable[Outcome]]) -> Outcome:
        inside, path = self._inside, frame.path
        nested = frame.kind == "workflow"
        definition = inside.definition.nested(frame.id) if nested else inside.definition
        known = inside.drive.state.steps.get(path)
        if known is not None:
            schema = definition.result_schema if nested else _items_schema(definition, frame.id)
            settled = inside.settled(known, schema)
            if settled is not None:
                return inside.count(settled)
        if path in inside.drive.state.inputs:
            value = self._given(path, definition.input if nested else _list_schema(definition, frame.id))
        scope, started_at = self._open(frame, value, known)
        ops, given = self._enter(frame, definition, scope, value)
        token = scope.enter()
        try:
            outcome = given if isinstance(given, Failed) else await body(ops, given)
        except GeneratorExit:  # the loop is closing us in a context that is not ours
            raise
        except BaseException:
            scope.exit(token)
            if not inside.drive.leaving:
                self._close(frame, definition, ops, scope, started_at, Canceled())
            raise
        scope.exit(token)
        return inside.count(self._close(frame, definition, ops, scope, started_at, outcome))

    def _given(self, path: str, schema: Schema[Any]) -> Value:
        """Return what ``time_travel`` was told to give to a step, in place of what comes to it."""
        drive = self._inside.drive
        return Value(drive.revive(schema, drive.state.inputs[path]), None)

    def _open(self, frame: Frame, value: Value, known: StepResult | None) -> tuple[Scope, int]:
        """Start the span of a frame, or stand in for one that an earlier stretch started."""
        inside, path = self._inside, frame.path
        name = f"invoke_workflow {frame.id}" if frame.kind == "workflow" else f"foreach {frame.id}"
        attributes: dict[str, Any] = {names.STEP_ID: frame.id, names.STEP_PATH: path}
        if frame.kind == "workflow":
            attributes |= {names.OPERATION: "invoke_workflow", names.WORKFLOW_NAME: frame.id}
        attributes |= position_attributes(frame.position)
        if known is not None and known.status == "running":
            return inside.scope.reopened(name, path, attributes, known.started_at), known.started_at
        at = inside.now()
        if frame.kind == "workflow":
            scope = open_step(inside.scope, name, path, 1, attributes, at)
        else:
            scope = inside.scope.child(name, path, 1, attributes, at)
        inside.journal.record(StepStart, start_payload(frame.id, 1, value, frame.position), path, scope.span_id, at)
        return scope, at

    def _enter(
        self, frame: Frame, definition: Definition, scope: Scope, value: Value
    ) -> tuple["LocalOps", Value | Failed]:
        """Return the operations inside a frame, and the value it begins with."""
        drive, place = self._inside.drive, self._inside.place
        if frame.kind == "foreach":
            return LocalOps(drive, scope, definition, place), value
        given: Value | Failed
        try:
            given = _validated(definition.input, value)
        except ValidationError as error:
            problem = InvalidInput(
                f"Workflow {frame.path!r} takes {definition.input.name}: {describe(error, definition.input.annotation)}"
            )
            given = self.failure(frame.path, problem)
        schema, state_scope = place.state_schema, place.state_scope
        if definition.state is not None and (schema is None or schema.annotation != definition.state.annotation):
            schema, state_scope = definition.state, frame.path
        init = None if isinstance(given, Failed) else given.data
        inner = Place(drive, definition.id, f"{frame.path}/", init, schema, state_scope, definition.schema_of)
        return LocalOps(drive, scope, definition, inner), given

    def _close(
        self, frame: Frame, definition: Definition, ops: "LocalOps", scope: Scope, started_at: int, outcome: Outcome
    ) -> Outcome:
        """Record what a frame came to and end its span; one that suspended stays open."""
        path, inside, children = frame.path, self._inside, ops._inside
        if isinstance(outcome, Value) and frame.kind == "workflow":
            outcome = self._checked(path, definition, outcome)
        if isinstance(outcome, Suspended):
            return outcome
        if inside.drive.state.waiting or inside.drive.state.stretch > 1:
            close_inside(inside.drive, inside.now(), path)
        scope.revive()
        scope.note({names.SUCCEEDED: children.succeeded, names.FAILED: children.failed})
        measured = WORKFLOW if frame.kind == "workflow" else None
        status: ResultStatus = "success"
        output: Value | None = None
        failed: Failed | None = None
        match outcome:
            case Value():
                output = outcome
            case Failed():
                status, failed = "failed", outcome
                if outcome.recorded:
                    scope.recorded_inside(outcome.exception)
            case Bailed():
                status, output = "bailed", outcome.value
            case Canceled():
                status = "canceled"
        aborted = outcome if isinstance(outcome, Canceled) and outcome.path else None
        inside.end(frame.id, path, 1, scope, started_at, status, output, failed, measured, aborted)
        if output is not None and status == "success":
            return Value(output.data, path)
        return outcome if failed is None else Failed(failed.problem)

    def _checked(self, path: str, definition: Definition, outcome: Value) -> Value | Failed:
        """Validate the result of a nested workflow against the output it declares."""
        schema = definition.declared_output
        if schema is None:
            return outcome
        try:
            return _validated(schema, outcome)
        except ValidationError as error:
            return self.failure(
                path, InvalidOutput(f"Workflow {path!r} must give {schema.name}: {describe(error, schema.annotation)}")
            )


def _validated(schema: Schema[Any], value: Value) -> Value:
    """Return a value as its type has it; what that has changed is not what was stored before."""
    made = schema.validate(value.data)
    try:
        same = made is value.data or bool(made == value.data)
    except Exception:  # values of the user's own kinds
        same = False
    return Value(made, value.ref if same else None)


def _list_schema(definition: Definition, id: str) -> Schema[Any]:
    item: Any = definition.bindings[id].input.annotation
    return Schema(list[item])


def _decisiveness(step: StepResult) -> tuple[bool, int]:
    """Sort what stopped others before what was stopped, then by time. What stops others by its own wish says so."""
    return step.status == "canceled" and step.error is None, step.ended_at or 0


def _items_schema(definition: Definition, id: str) -> Schema[Any]:
    bound = definition.bindings[id]
    item: Any = bound.output.annotation if isinstance(bound, Step) else bound.output
    return Schema(list[Ok[item] | Err | item])


def _item_ref(ref: Ref | None, index: int) -> Ref | None:
    if isinstance(ref, list):
        found: Ref | None = ref[index]
        return found
    return f"{ref}:{index}" if isinstance(ref, str) else None
