"""One attempt of a step: validate, call the user's code inside its span, validate."""

import asyncio
import inspect
from typing import Any

from pydantic import ValidationError

from spanflow.clock import Clock
from spanflow.context import AbortSignal, BailSignal, StepContext, SuspendSignal, enter_step, exit_step
from spanflow.errors import InvalidInput, InvalidOutput, SpanflowError, StepTimeout
from spanflow.explain import describe
from spanflow.step import Step


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
            f"Step {ctx.path!r} takes {step.input.name}: {describe(error, step.input.annotation)}"
        ) from None
    scope = ctx.scope
    token, entered = scope.enter(), enter_step(ctx)
    try:
        result = await (_call(step, given, ctx) if step.timeout is None else _call_in_time(step, given, ctx, clock))
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
                f"Step {ctx.path!r} is a plain def that returned a coroutine. Make it async def."
            ) from None
        raise InvalidOutput(
            f"Step {ctx.path!r} must return {step.output.name}: {describe(error, step.output.annotation)}"
        ) from None


async def _call(step: Step[Any, Any, Any], value: Any, ctx: StepContext[Any]) -> Any:
    arguments = (value, ctx) if step.wants_ctx else (value,)
    if step.is_async:
        return await step.fn(*arguments)
    if not step.runs_inline:
        return await asyncio.to_thread(step.fn, *arguments)
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
        return _signal_in(error) or error
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
        if isinstance(error, BaseExceptionGroup) and (found := _signal_in(error)) is not None:
            return found
    return None
