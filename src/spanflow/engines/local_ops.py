"""``Ops`` on asyncio: what the interpreter's operations do in this process."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from spanflow.attempt import attempt
from spanflow.clock import Clock
from spanflow.context import AbortSignal, BailSignal, Place, RunSide, StepContext, SuspendSignal
from spanflow.definition import Definition
from spanflow.errors import EventTimeout, InvalidInput, InvalidOutput, SpanflowError
from spanflow.events import (
    Ref,
    ResultStatus,
    StepFinish,
    StepFinishPayload,
    StepResultEvent,
    StepResultPayload,
    StepRetry,
    StepRetryPayload,
    StepStart,
    StepStartPayload,
    StepSuspended,
    StepSuspendedPayload,
    StepWaiting,
    StepWaitingPayload,
)
from spanflow.explain import describe
from spanflow.failure import failure
from spanflow.interpret import (
    NOWHERE,
    Bailed,
    Canceled,
    Failed,
    Fork,
    Frame,
    Joined,
    Ops,
    Outcome,
    Position,
    Suspended,
    Value,
    run_body,
)
from spanflow.journal import Journal
from spanflow.outcome import Err, Ok
from spanflow.plan import MapNode, SleepNode, StepNode, ToolNode, WaitNode
from spanflow.ports import Message
from spanflow.retry import Retry
from spanflow.schema import Schema
from spanflow.state import StepResult
from spanflow.step import Step
from spanflow.tracing import metrics, names
from spanflow.tracing.spans import Link, Scope


class Driver(RunSide, Protocol):
    """What the operations need of the stretch they belong to."""

    clock: Clock
    journal: Journal
    resume_schemas: dict[str, Schema[Any]]
    arrived: asyncio.Event

    def take(self, name: str) -> Message | None: ...

    def announce_before(self, moment: int | None) -> None: ...

    def resumed_by(self, path: str) -> Sequence[Link]: ...


class _Stop(Exception):
    """Ends a task group whose outcome is decided."""


class _Tried:
    """An attempt failed and another one follows."""


_TRIED = _Tried()


class LocalOps:
    """Operations of one frame of a run: the run itself, a nested workflow, or a foreach."""

    __slots__ = ("_definition", "_drive", "_journal", "_place", "_scope", "failed", "succeeded")

    def __init__(self, drive: Driver, scope: Scope, definition: Definition, place: Place) -> None:
        self._drive = drive
        self._journal = drive.journal
        self._scope = scope
        self._definition = definition
        self._place = place
        self.succeeded = 0
        self.failed = 0

    # --- steps

    async def step(self, node: StepNode | ToolNode | MapNode, path: str, value: Value, position: Position) -> Outcome:
        known = self._drive.state.steps.get(path)
        step = self._definition.step(node.id)
        number = failures = 0
        if known is not None:
            settled = self._settled(known, step.output)
            if settled is not None:
                return self._counted(settled)
            self._close_wait(known)
            number, failures = known.attempt, known.failures
        while True:
            number += 1
            outcome = await self._attempt(step, path, number, failures, value, position)
            if not isinstance(outcome, _Tried):
                return self._counted(outcome)
            failures += 1

    async def _attempt(
        self, step: Step[Any, Any, Any], path: str, number: int, failures: int, value: Value, position: Position
    ) -> Outcome | _Tried:
        drive, journal, id = self._drive, self._journal, step.id
        at = drive.clock.time_ns()
        attributes = {names.STEP_ID: id, names.STEP_PATH: path, names.STEP_ATTEMPT: number}
        if position is not NOWHERE:
            attributes |= _position_attributes(position)
        scope = self._scope.child(step.span_name, path, number, attributes, at)
        if scope.captures_input:
            scope.capture_input(names.STEP_INPUT, value.data, step.input.annotation)
        journal.record(StepStart, _start_payload(id, number, value, position), path, scope.span_id, at)
        await journal.flush()
        ctx = StepContext[Any](self._place, scope, id, path, number)
        try:
            output = await attempt(step, value.data, ctx, drive.clock)
        except Exception as error:
            return await self._failed(step, path, number, failures, scope, at, error)
        except SuspendSignal as signal:
            return self._suspended(id, path, scope, signal)
        except BailSignal as signal:
            self._end(id, path, number, scope, at, "bailed", Value(signal.value, None))
            return Bailed(Value(signal.value, path))
        except AbortSignal as signal:
            self._end(id, path, number, scope, at, "canceled")
            return Canceled(signal.reason)
        except BaseException:  # canceled: by the run, or because a sibling failed
            self._end(id, path, number, scope, at, "canceled")
            raise
        if scope.captures_output:
            scope.capture_output(names.STEP_OUTPUT, output, step.output.annotation)
        self._end(id, path, number, scope, at, "success", Value(output, None))
        return Value(output, path)

    def _end(
        self,
        id: str,
        path: str,
        number: int,
        scope: Scope,
        started_at: int,
        status: ResultStatus,
        output: Value | None = None,
        failed: Failed | None = None,
    ) -> None:
        """Record the result of an attempt and end its span."""
        at = self._drive.clock.time_ns()
        duration = (at - started_at) / 1e9
        error = None if failed is None else failed.exception
        if status in ("canceled", "bailed"):
            scope.note({names.STEP_STATUS: status})
        scope.measure(metrics.step_duration, duration, {names.STEP_ID: id}, error)
        scope.end(at, error)
        journal = self._journal
        payload = _result_payload(id, status, output, failed)
        journal.record(StepResultEvent, payload, path, scope.span_id, at)
        finish = StepFinishPayload(id=id, attempt=number, duration=duration)
        journal.record(StepFinish, finish, path, scope.span_id, at)
        journal.flush_soon()

    async def _failed(
        self,
        step: Step[Any, Any, Any],
        path: str,
        number: int,
        failures: int,
        scope: Scope,
        started_at: int,
        error: Exception,
    ) -> Outcome | _Tried:
        """Try again where the step's policy says so, else the step has failed."""
        retry: Retry = step.retry or self._definition.retry
        problem = failure(error, path)
        if isinstance(error, InvalidInput) or not retry.allows(error, failures + 1):
            self._end(step.id, path, number, scope, started_at, "failed", failed=Failed(problem))
            return Failed(problem)
        clock = self._drive.clock
        at = clock.time_ns()
        delay = retry.delay_after(failures + 1)
        scope.measure(metrics.step_duration, (at - started_at) / 1e9, {names.STEP_ID: step.id}, error)
        scope.end(at, error)
        payload = StepRetryPayload(id=step.id, attempt=number, error=problem, delay=delay)
        self._journal.record(StepRetry, payload, path, scope.span_id, at)
        await self._journal.flush()
        if delay > 0:
            until = at + int(delay * 1e9)
            self._drive.announce_before(until)
            await self._pause(until, f"wait {step.id}", step.id, f"{path}/retry", number, at, reason="retry")
        return _TRIED

    def _suspended(self, id: str, path: str, scope: Scope, signal: SuspendSignal) -> Outcome:
        at = self._drive.clock.time_ns()
        scope.note({names.STEP_STATUS: "suspended"})
        scope.end(at)
        self._drive.resume_schemas[path] = signal.resume
        kind = signal.resume.annotation
        resume_type = f"{kind.__module__}:{kind.__qualname__}" if isinstance(kind, type) else None
        payload = StepSuspendedPayload(id=id, payload=signal.payload, resume_type=resume_type)
        self._journal.record(StepSuspended, payload, path, scope.span_id, at)
        self._journal.flush_soon()
        return Suspended()

    def _close_wait(self, known: StepResult) -> None:
        """Give the time that a step waited for its answer a span."""
        if known.status == "suspended" and known.suspended_at is not None:
            attributes = {names.STEP_ID: known.id, names.STEP_PATH: known.path, names.WAIT_REASON: "suspension"}
            self._scope.interval(
                f"wait {known.id}",
                f"{known.path}/wait",
                len(known.answers),
                attributes,
                known.suspended_at,
                known.resumed_at or self._drive.clock.time_ns(),
                links=self._drive.resumed_by(known.path),
            )

    def _settled(self, known: StepResult, schema: Schema[Any]) -> Outcome | None:
        """Return the outcome that is already recorded; None where there is work left to do."""
        match known.status:
            case "success":
                return Value(self._drive.revive(schema, known.output), known.path)
            case "bailed":
                return Bailed(Value(known.output, known.path))
            case "failed" if known.error is not None:
                return Failed(known.error)
            case "suspended" if known.path in self._drive.state.waiting:
                return Suspended()
            case _:
                return None

    def _counted(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Value):
            self.succeeded += 1
        elif isinstance(outcome, Failed):
            self.failed += 1
        return outcome

    # --- conditions and functions

    async def test(self, key: str, name: str, value: Value) -> bool | Failed:
        known = self._drive.state.decisions.get(key)
        if known is not None:
            return bool(known)
        answer = await self._ask(key.rpartition("?")[0], name, value)
        if isinstance(answer, Failed):
            return answer
        verdict = bool(answer.data)
        self._journal.decide(key, verdict)
        return verdict

    async def _ask(self, path: str, name: str, value: Value) -> Value | Failed:
        """Call a function of the plan that is no step: in the frame's own span, without events."""
        ctx = StepContext[Any](self._place, self._scope, name, path, 1)
        try:
            return Value(await attempt(self._definition.step(name), value.data, ctx, self._drive.clock), None)
        except Exception as error:
            return Failed(failure(error, path), recorded=self._scope.recorded is error)
        except (SuspendSignal, BailSignal, AbortSignal) as signal:
            what = type(signal).__name__.removesuffix("Signal").lower()
            problem = SpanflowError(f"{path!r}: only a step can {what}(); a condition or function just returns.")
            return self.failure(path, problem)

    async def items(self, path: str, value: Value) -> Sequence[Value] | Failed:
        data, ref = value.data, value.ref
        if not isinstance(data, Sequence) or isinstance(data, (str, bytes, bytearray)):
            problem = InvalidInput(f"foreach {path!r} runs over a list, got {type(data).__name__}: {str(data)[:80]}")  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]  # any value
            return self.failure(path, problem)
        return [Value(item, _item_ref(ref, index)) for index, item in enumerate(data)]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # any value

    def collected(self, path: str, outcomes: Sequence[Outcome]) -> Value:
        made: list[Ok[Any] | Err] = []
        for outcome in outcomes:
            if isinstance(outcome, Value):
                made.append(Ok[Any](value=outcome.data))
            elif isinstance(outcome, Failed):
                made.append(Err(error=outcome.problem))
        return Value(made, f"{path}[?]")

    def failure(self, path: str, error: Exception, *, recorded: bool = False) -> Failed:
        return Failed(failure(error, path), recorded)

    # --- frames and forks

    async def within(self, frame: Frame, value: Value, body: Callable[[Ops, Value], Awaitable[Outcome]]) -> Outcome:
        drive, path = self._drive, frame.path
        definition = self._definition.nested(frame.id) if frame.kind == "workflow" else self._definition
        known = drive.state.steps.get(path)
        if known is not None:
            schema = definition.result_schema if frame.kind == "workflow" else Schema(self._frame_output(frame))
            settled = self._settled(known, schema)
            if settled is not None:
                return self._counted(settled)
        scope, started_at = self._open_frame(frame, value, known)
        inner, given = self._enter_frame(frame, definition, scope, value)
        token = scope.enter()
        try:
            outcome = given if isinstance(given, Failed) else await body(inner, given)
        except GeneratorExit:
            raise
        except BaseException:
            scope.exit(token)
            scope.note({names.SUCCEEDED: inner.succeeded, names.FAILED: inner.failed})
            self._end(frame.id, path, 1, scope, started_at, "canceled")
            raise
        scope.exit(token)
        return self._counted(self._close_frame(frame, definition, inner, scope, started_at, outcome))

    def _open_frame(self, frame: Frame, value: Value, known: StepResult | None) -> tuple[Scope, int]:
        path = frame.path
        name = f"invoke_workflow {frame.id}" if frame.kind == "workflow" else f"foreach {frame.id}"
        attributes: dict[str, Any] = {names.STEP_ID: frame.id, names.STEP_PATH: path}
        if frame.kind == "workflow":
            attributes |= {names.OPERATION: "invoke_workflow", names.WORKFLOW_NAME: frame.id}
        attributes |= _position_attributes(frame.position)
        if known is not None and known.status == "running":
            return self._scope.reopened(name, path, attributes, known.started_at), known.started_at
        at = self._drive.clock.time_ns()
        scope = self._scope.child(name, path, 1, attributes, at)
        self._journal.record(StepStart, _start_payload(frame.id, 1, value, frame.position), path, scope.span_id, at)
        return scope, at

    def _enter_frame(
        self, frame: Frame, definition: Definition, scope: Scope, value: Value
    ) -> tuple["LocalOps", Value | Failed]:
        if frame.kind == "foreach":
            return LocalOps(self._drive, scope, definition, self._place), value
        given: Value | Failed
        try:
            given = Value(definition.input.validate(value.data), value.ref)
        except ValidationError as error:
            problem = InvalidInput(f"Workflow {frame.path!r} takes {definition.input.name}: {describe(error)}")
            given = self.failure(frame.path, problem)
        place = self._place
        schema, state_scope = place.state_schema, place.state_scope
        if definition.state is not None and (schema is None or schema.annotation != definition.state.annotation):
            schema, state_scope = definition.state, frame.path
        init = None if isinstance(given, Failed) else given.data
        inner = Place(self._drive, definition.id, f"{frame.path}/", init, schema, state_scope)
        return LocalOps(self._drive, scope, definition, inner), given

    def _close_frame(
        self, frame: Frame, definition: Definition, inner: "LocalOps", scope: Scope, started_at: int, outcome: Outcome
    ) -> Outcome:
        path = frame.path
        if isinstance(outcome, Value) and frame.kind == "workflow" and definition.declared_output is not None:
            schema = definition.declared_output
            try:
                outcome = Value(schema.validate(outcome.data), outcome.ref)
            except ValidationError as error:
                outcome = self.failure(
                    path, InvalidOutput(f"Workflow {path!r} must give {schema.name}: {describe(error)}")
                )
        if isinstance(outcome, Suspended):
            return outcome
        scope.revive()
        scope.note({names.SUCCEEDED: inner.succeeded, names.FAILED: inner.failed})
        match outcome:
            case Value():
                self._end(frame.id, path, 1, scope, started_at, "success", outcome)
                return Value(outcome.data, path)
            case Failed():
                if outcome.recorded:
                    scope.recorded = outcome.exception
                self._end(frame.id, path, 1, scope, started_at, "failed", failed=outcome)
                return Failed(outcome.problem)
            case Bailed():
                self._end(frame.id, path, 1, scope, started_at, "bailed", outcome.value)
            case Canceled():
                self._end(frame.id, path, 1, scope, started_at, "canceled")
        return outcome

    def _frame_output(self, frame: Frame) -> Any:
        bound = self._definition.bindings[frame.id]
        item = bound.output.annotation if isinstance(bound, Step) else bound.output
        return list[Ok[item] | Err | item]

    async def fork(self, forks: Sequence[Fork], limit: int | None, *, keep_going: bool) -> Joined:
        outcomes: list[Outcome] = [Canceled()] * len(forks)
        decisive: Outcome | None = None
        queue = iter(enumerate(forks))

        async def work() -> None:
            nonlocal decisive
            for index, fork in queue:
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
                    for _ in range(workers):
                        group.create_task(work())
        except* _Stop:
            pass
        return Joined(outcomes, decisive)

    # --- waiting

    async def sleep(self, node: SleepNode, path: str, value: Value) -> Outcome:
        known = self._drive.state.steps.get(path)
        if known is not None and known.completed:
            return value
        if known is not None and known.until is not None:
            at, until = known.started_at, known.until
        else:
            at = self._drive.clock.time_ns()
            found = await self._wake_time(node, path, value, at)
            if isinstance(found, Failed):
                return found
            until = found
            self._wait_begins(node.id, path, at, until, None)
        await self._journal.flush()
        self._drive.announce_before(until)
        await self._pause(until, "sleep", node.id, path, 1, at, reason="sleep", ends_step=True)
        self._wait_ends(node.id, path, at, value)
        return value

    async def _wake_time(self, node: SleepNode, path: str, value: Value, at: int) -> int | Failed:
        if node.until is not None:
            return int(node.until.timestamp() * 1e9)
        if node.seconds is not None:
            return at + int(node.seconds * 1e9)
        kind = "seconds" if f"{node.id}#seconds" in self._definition.bindings else "until"
        told = await self._ask(path, f"{node.id}#{kind}", value)
        if isinstance(told, Failed):
            return told
        if kind == "seconds" and isinstance(told.data, (int, float)) and 0 <= told.data < float("inf"):
            return at + int(told.data * 1e9)
        if kind == "until" and isinstance(told.data, datetime) and told.data.tzinfo is not None:
            return int(told.data.timestamp() * 1e9)
        wanted = "seconds, 0 or more and finite" if kind == "seconds" else "a datetime with a time zone"
        return self.failure(
            path, InvalidOutput(f"The function of sleep {path!r} must return {wanted}, got {told.data!r}.")
        )

    async def wait(self, node: WaitNode, path: str) -> Outcome:
        drive = self._drive
        schema = self._definition.events[node.event]
        known = drive.state.steps.get(path)
        if known is not None and known.completed:
            settled = self._settled(known, schema)
            assert settled is not None
            return settled
        at = known.started_at if known is not None else drive.clock.time_ns()
        until = None if node.timeout is None else at + int(node.timeout * 1e9)
        if known is None:
            self._wait_begins(node.id, path, at, until, node.event)
        await self._journal.flush()
        attributes = _wait_attributes(node.id, path, "event") | {names.EVENT_NAME: node.event}
        message = drive.take(node.event)
        if message is None:
            drive.announce_before(until)
            try:
                message = await self._arrival(node, until)
            except TimeoutError:
                error = EventTimeout(node.event, path, node.timeout or 0.0)
                self._wait_fails(node.id, path, at, error, attributes)
                return Failed(failure(error, path))
            except BaseException:
                self._wait_stops(node.id, path, at, f"wait {node.id}", attributes)
                raise
        self._scope.interval(f"wait {node.id}", path, 1, attributes, at, drive.clock.time_ns())
        given = drive.revive(schema, message.payload)
        self._wait_ends(node.id, path, at, Value(given, None), message.id)
        return Value(given, path)

    async def _arrival(self, node: WaitNode, until: int | None) -> Message:
        """Return the message once it comes. Raises TimeoutError."""
        drive = self._drive
        while (message := drive.take(node.event)) is None:
            drive.arrived.clear()
            if until is None:
                await drive.arrived.wait()
                continue
            left = (until - drive.clock.time_ns()) / 1e9
            async with drive.clock.timeout(max(left, 0.0)):
                await drive.arrived.wait()
        return message

    async def _pause(
        self, until: int, name: str, id: str, path: str, number: int, at: int, *, reason: str, ends_step: bool = False
    ) -> None:
        """Sleep, and give the time slept a span."""
        attributes = _wait_attributes(id, path, reason)
        try:
            await self._drive.clock.sleep_until(until)
        except BaseException:
            if ends_step:
                self._wait_stops(id, path, at, name, attributes)
            raise
        self._scope.interval(name, path, number, attributes, at, self._drive.clock.time_ns())

    def _wait_begins(self, id: str, path: str, at: int, until: int | None, event: str | None) -> None:
        payload = StepWaitingPayload(id=id, until=until, event=event)
        self._journal.record(StepWaiting, payload, path, self._scope.span_id_of(path, 1), at)

    def _wait_ends(self, id: str, path: str, started_at: int, value: Value, message_id: str | None = None) -> None:
        at, span_id = self._drive.clock.time_ns(), self._scope.span_id_of(path, 1)
        payload = StepResultPayload(
            id=id, status="success", output=value.data, output_ref=value.ref, message_id=message_id
        )
        self._journal.record(StepResultEvent, payload, path, span_id, at)
        self._wait_finishes(id, path, started_at, at)

    def _wait_fails(self, id: str, path: str, at: int, error: Exception, attributes: dict[str, Any]) -> None:
        now = self._drive.clock.time_ns()
        span_id = self._scope.interval(f"wait {id}", path, 1, attributes, at, now, error)
        payload = StepResultPayload(id=id, status="failed", error=failure(error, path))
        self._journal.record(StepResultEvent, payload, path, span_id, now)
        self._wait_finishes(id, path, at, now)

    def _wait_stops(self, id: str, path: str, at: int, name: str, attributes: dict[str, Any]) -> None:
        now = self._drive.clock.time_ns()
        span_id = self._scope.interval(name, path, 1, attributes | {names.STEP_STATUS: "canceled"}, at, now)
        payload = StepResultPayload(id=id, status="canceled")
        self._journal.record(StepResultEvent, payload, path, span_id, now)
        self._wait_finishes(id, path, at, now)

    def _wait_finishes(self, id: str, path: str, started_at: int, at: int) -> None:
        payload = StepFinishPayload(id=id, attempt=1, duration=(at - started_at) / 1e9)
        self._journal.record(StepFinish, payload, path, self._scope.span_id_of(path, 1), at)
        self._journal.flush_soon()


def _start_payload(id: str, number: int, value: Value, position: Position) -> BaseModel:
    if position is NOWHERE:
        return StepStartPayload(id=id, attempt=number, input=value.data, input_ref=value.ref)
    return StepStartPayload(
        id=id,
        attempt=number,
        input=value.data,
        input_ref=value.ref,
        foreach_index=position.index,
        loop_iteration=position.iteration,
    )


def _result_payload(id: str, status: ResultStatus, output: Value | None, failed: Failed | None) -> BaseModel:
    if output is not None:
        return StepResultPayload(id=id, status=status, output=output.data, output_ref=output.ref)
    return StepResultPayload(id=id, status=status, error=None if failed is None else failed.problem)


def _position_attributes(position: Position) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if position.index is not None:
        found[names.FOREACH_INDEX] = position.index
    if position.iteration is not None:
        found[names.LOOP_ITERATION] = position.iteration
    if position.arm is not None:
        found[names.BRANCH_ARM] = position.arm
    return found


def _wait_attributes(id: str, path: str, reason: str) -> dict[str, Any]:
    return {names.STEP_ID: id, names.STEP_PATH: path, names.WAIT_REASON: reason}


def _item_ref(ref: Ref | None, index: int) -> Ref | None:
    if isinstance(ref, list):
        return ref[index]
    return f"{ref}:{index}" if isinstance(ref, str) else None
