"""One attempt of a step: validate, call the user's code inside its span, validate."""

import asyncio
import inspect
from typing import Any, cast

from pydantic import ValidationError

from spanflow.clock import Clock
from spanflow.context import AbortSignal, BailSignal, StepContext, SuspendSignal, enter_step, exit_step
from spanflow.errors import InvalidInput, InvalidOutput, SpanflowError, StepTimeout
from spanflow.explain import describe
from spanflow.step import Step, in_thread


async def attempt(step: Step[Any, Any, Any], value: Any, ctx: StepContext[Any], clock: Clock) -> Any:
    """Run a step once and return its validated output.

    The step's span is current while its code runs, and never across a point where others' code would see it.

    Raises:
        Exception: whatever the step raised; InvalidInput, InvalidOutput and StepTimeout are ours.
        SuspendSignal, BailSignal, AbortSignal: what the step asked for.
        asyncio.CancelledError: the run, or this part of it, was stopped.
    """
    try:
        given = step.input.validate(value)
    except ValidationError as error:
        raise InvalidInput(
            f"Step {ctx.path!r} takes {step.input.name}: {describe(error, step.input.annotation)}", path=ctx.path
        ) from None
    scope = ctx.scope
    token, entered = scope.enter(), enter_step(ctx)
    try:
        if step.timeout is not None:
            result = await _call_in_time(step, given, ctx, clock)
        elif step.is_async:
            result = await (step.fn(given, ctx) if step.wants_ctx else step.fn(given))
        else:
            result = await _call(step, given, ctx)
    except GeneratorExit:  # the loop is closing us in a context that is not ours: there is nothing to restore
        raise
    except BaseException as error:
        exit_step(entered)
        scope.exit(token)
        meant = _meaning(error, ctx.path)
        if meant is error:
            raise
        raise meant from error
    exit_step(entered)
    scope.exit(token)
    try:
        return step.output.validate(result)
    except ValidationError as error:
        if inspect.iscoroutine(result):
            result.close()
            raise InvalidOutput(
                f"Step {ctx.path!r} returned a coroutine that nobody awaited."
                + (" Await it." if step.is_async else " Make the step async def, and await it.")
            ) from None
        raise InvalidOutput(
            f"Step {ctx.path!r} must return {step.output.name}: {describe(error, step.output.annotation)}"
        ) from None


async def _call(step: Step[Any, Any, Any], value: Any, ctx: StepContext[Any]) -> Any:
    arguments = (value, ctx) if step.wants_ctx else (value,)
    if step.is_async:
        return await step.fn(*arguments)
    if not step.runs_inline:
        return await asyncio.to_thread(in_thread, step.fn, *arguments)
    result = step.fn(*arguments)
    return await result if inspect.isawaitable(result) else result


async def _call_in_time(step: Step[Any, Any, Any], value: Any, ctx: StepContext[Any], clock: Clock) -> Any:
    assert step.timeout is not None
    limit = clock.timeout(step.timeout)
    try:
        async with limit:
            return await _call(step, value, ctx)
    except TimeoutError as error:
        if limit.expired():
            raise StepTimeout(ctx.path, step.timeout) from error
        raise


def _meaning(error: BaseException, path: str) -> BaseException:
    """Return what an exception out of user code stands for."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return _signal_in(group) or group
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            return SpanflowError(f"Step {path!r} was ended by a CancelledError that nobody asked spanflow for.")
    return error


def _signal_in(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """Find what a step asked for from within a task group of its own."""
    for error in group.exceptions:
        if isinstance(error, (SuspendSignal, BailSignal, AbortSignal)):
            return error
        if isinstance(error, BaseExceptionGroup):
            found = _signal_in(cast("BaseExceptionGroup[BaseException]", error))
            if found is not None:
                return found
    return None
