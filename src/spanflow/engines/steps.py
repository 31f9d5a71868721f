"""Run a step in this process: attempts, retries, and what a step may ask for instead of returning."""

import asyncio
from typing import Any

from spanflow.attempt import attempt
from spanflow.context import AbortSignal, BailSignal, StepContext, SuspendSignal
from spanflow.engines.inside import Inside, leave, position_attributes, start_payload
from spanflow.errors import InvalidInput
from spanflow.events import StepRetry, StepStart, StepSuspended
from spanflow.failure import failure
from spanflow.interpret import NOWHERE, Bailed, Canceled, Failed, Outcome, Position, Suspended, Value
from spanflow.retry import Retry
from spanflow.state import StepResult
from spanflow.step import Step
from spanflow.tracing import metrics, names
from spanflow.tracing.spans import Scope
from spanflow.tracing.thinning import open_step

AnyStep = Step[Any, Any, Any]


class _Again:
    """An attempt failed and another one follows, at once or after a wait."""

    __slots__ = ("waited",)

    def __init__(self, waited: bool) -> None:
        self.waited = waited


_AT_ONCE, _AFTER_A_WAIT = _Again(False), _Again(True)


async def run_step(inside: Inside, step: AnyStep, path: str, value: Value, position: Position) -> Outcome:
    """Return what a step came to, in this stretch or one before."""
    known = inside.drive.state.steps.get(path)
    number = failures = 0
    waited = False
    if known is not None:
        settled = inside.settled(known, step.output)
        if settled is not None:
            return inside.count(settled)
        _name_the_wait(inside, known)
        number, failures = known.attempt, known.failures
        if known.status == "waiting" and known.until is not None:  # its process died between two attempts
            failed_at = known.ended_at or known.until
            waited = known.until > failed_at
            await _delay(inside, step.id, path, number, failed_at, known.until if waited else None)
    elif inside.scope.spans.room.crowded:  # while there is nothing yet that would have to be closed
        await inside.scope.spans.room.room()
    while True:
        if inside.drive.stopping:
            if failures and not inside.drive.leaving:
                inside.give_up(step.id, path, number, inside.now(), "over" if waited else None)
            raise asyncio.CancelledError
        number += 1
        outcome = await _attempt(inside, step, path, number, failures, value, position)
        if type(outcome) is Value:
            inside.succeeded += 1
            return outcome
        if not isinstance(outcome, _Again):
            return inside.count(outcome)
        failures += 1
        waited = outcome.waited


async def _attempt(
    inside: Inside, step: AnyStep, path: str, number: int, failures: int, value: Value, position: Position
) -> Outcome | _Again:
    drive, journal, id = inside.drive, inside.journal, step.id
    at = drive.clock.time_ns()
    attributes: dict[str, Any] = {names.STEP_ID: id, names.STEP_PATH: path, names.STEP_ATTEMPT: number}
    if position is not NOWHERE:
        attributes |= position_attributes(position)
    scope = open_step(inside.scope, step.span_name, path, number, attributes, at)
    if scope.spans.captures_input:
        scope.capture_input(names.STEP_INPUT, value.data, step.input.annotation)
    started: dict[str, Any]
    if position is NOWHERE:
        started = {"id": id, "attempt": number, "input": value.data, "input_ref": value.ref}
    else:
        started = start_payload(id, number, value, position)
    journal.record(StepStart, started, path, scope.span_id, at)
    ctx: StepContext[Any] = StepContext(inside.place, scope, id, path, number)
    try:
        try:
            if not journal.flushes_in_turn():
                await journal.flush()
            output = await attempt(step, value.data, ctx, drive.clock)
            if scope.spans.room.full:  # of many that were begun at once
                await scope.spans.room.room()
            if drive.stores_json:
                await drive.assure()
                drive.require_storable(output, f"Step {path!r} returned what")
        finally:
            if ctx.open_streams is not None:
                await ctx.close_streams()
            leave(ctx)
    except Exception as error:
        if drive.leaving:  # it is the store that failed
            raise
        return await _failed(inside, step, path, number, failures, scope, at, error)
    except SuspendSignal as signal:
        return _suspended(inside, id, path, scope, at, signal)
    except BailSignal as signal:
        inside.end(id, path, number, scope, at, "bailed", Value(signal.value, None))
        return Bailed(Value(signal.value, path))
    except AbortSignal as signal:
        aborted = Canceled(signal.reason, path)
        inside.end(id, path, number, scope, at, "canceled", aborted=aborted)
        return aborted
    except GeneratorExit:  # the loop is closing us: there is nobody left to record for
        raise
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):  # by the run, or because a sibling failed
        if not drive.leaving:
            inside.end(id, path, number, scope, at, "canceled")
        raise
    except BaseException as error:  # of the user's own making
        return await _failed(inside, step, path, number, failures, scope, at, error)
    if scope.spans.captures_output:
        scope.capture_output(names.STEP_OUTPUT, output, step.output.annotation)
    made = Value(output, None)
    inside.end(id, path, number, scope, at, "success", made)
    made.ref = path
    return made


async def _failed(
    inside: Inside,
    step: AnyStep,
    path: str,
    number: int,
    failures: int,
    scope: Scope,
    started_at: int,
    error: BaseException,
) -> Outcome | _Again:
    """Try again where the step's policy says so, else the step has failed."""
    retry: Retry = step.retry or inside.definition.retry
    problem = failure(error, path)
    refused = isinstance(error, InvalidInput) and error.path == path  # its input will not get better
    if refused or not retry.allows(error, failures + 1):
        inside.end(step.id, path, number, scope, started_at, "failed", failed=Failed(problem))
        return Failed(problem)
    drive = inside.drive
    at = drive.clock.time_ns()
    delay = retry.delay_after(failures + 1)
    scope.measure(metrics.step_duration, (at - started_at) / 1e9, {names.STEP_ID: step.id}, error)
    scope.end(at, error)
    payload = {"id": step.id, "attempt": number, "error": problem, "delay": delay}
    inside.journal.record(StepRetry, payload, path, scope.span_id, at)
    until = drive.clock.wall_ns() + int(delay * 1e9) if delay > 0 else None
    if until is not None:
        drive.announce_before(until)
    await _delay(inside, step.id, path, number, at, until)
    return _AT_ONCE if until is None else _AFTER_A_WAIT


async def _delay(inside: Inside, id: str, path: str, number: int, at: int, until: int | None) -> None:
    """Wait between two attempts, and give the wait a span; None for no wait at all."""
    drive = inside.drive
    try:
        await inside.journal.flush()
        if until is None:
            return
        await drive.clock.sleep_until(until)
    except GeneratorExit:
        raise
    except BaseException:
        if not drive.leaving:
            inside.give_up(id, path, number, at, None if until is None else "cut")
        raise
    attributes = {names.STEP_ID: id, names.STEP_PATH: path, names.WAIT_REASON: "retry"}
    inside.scope.interval(f"wait {id}", f"{path}/retry", number, attributes, at, drive.clock.time_ns())


def _suspended(inside: Inside, id: str, path: str, scope: Scope, started_at: int, signal: SuspendSignal) -> Outcome:
    at = inside.now()
    if scope.spans.measures:
        scope.measure(metrics.step_duration, (at - started_at) / 1e9, {names.STEP_ID: id}, None)
    scope.note({names.STEP_STATUS: "suspended"})
    scope.end(at)
    inside.drive.resume_schemas[path] = signal.resume
    kind = signal.resume.annotation
    resume_type = f"{kind.__module__}:{kind.__qualname__}" if isinstance(kind, type) else None
    payload = {"id": id, "payload": signal.payload, "resume_type": resume_type}
    inside.journal.record(StepSuspended, payload, path, scope.span_id, at)
    inside.journal.flush_soon()
    return Suspended()


def _name_the_wait(inside: Inside, known: StepResult) -> None:
    """Give the time that a step waited for its answer a span."""
    if known.status != "suspended" or known.suspended_at is None or known.resumed_at is None:
        return
    attributes = {names.STEP_ID: known.id, names.STEP_PATH: known.path, names.WAIT_REASON: "suspension"}
    inside.scope.interval(
        f"wait {known.id}",
        f"{known.path}/wait",
        len(known.answers),
        attributes,
        known.suspended_at,
        known.resumed_at,
        links=inside.drive.resumed_by(known.path),
    )
