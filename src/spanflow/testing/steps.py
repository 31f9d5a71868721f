"""A ``StepContext`` without a run, to test a step's function directly."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, overload

from pydantic import BaseModel, ValidationError
from typing_extensions import TypeVar

from spanflow.context import AbortSignal, BailSignal, HasResult, Place, Recording, StepContext, SuspendSignal
from spanflow.errors import InvalidInput, InvalidOutput, SpanflowError
from spanflow.events import Envelope
from spanflow.explain import describe
from spanflow.schema import Schema
from spanflow.state import RunState, StepResult
from spanflow.tracing.roots import Untraced

T = TypeVar("T")
DepsT = TypeVar("DepsT", default=Any)


class Suspended(SuspendSignal):
    """The step asked a question that the test has no answer for.

    Like the other two not an ``Exception``: a step that catches ``Exception`` does not catch it in a run, either.

    Attributes:
        payload: what the step gave to ``ctx.suspend``.
    """

    def __str__(self) -> str:
        return f"The step waits for an answer to {self.payload!r}. Give one with step_context(answers=[...])."


class Bailed(BailSignal):
    """The step ended the run with success.

    Attributes:
        value: the result of the run.
    """

    def __str__(self) -> str:
        return f"The step ended the run with {self.value!r}."


class Aborted(AbortSignal):
    """The step canceled the run.

    Attributes:
        reason: what the step gave to ``ctx.abort``.
    """


class FakeStepContext(StepContext[DepsT]):
    """What ``step_context`` returns.

    Attributes:
        emitted: the values that the step gave to ``ctx.emit``, in order.
    """

    __slots__ = ("emitted",)

    def __init__(self, run: "_FakeRun", place: Place, step_id: str, attempt: int) -> None:
        super().__init__(place, Untraced(run.run_id), step_id, step_id, attempt)
        self.emitted = run.emitted

    @overload
    async def suspend(self, payload: Any = None) -> Any: ...
    @overload
    async def suspend(self, payload: Any = None, *, resume: type[T]) -> T: ...
    @overload
    async def suspend(self, payload: Any = None, *, resume: Any) -> Any: ...
    async def suspend(self, payload: Any = None, *, resume: Any = Any) -> Any:
        """Return the next prepared answer. Raises Suspended where there is none."""
        try:
            return await super().suspend(payload, resume=resume)
        except SuspendSignal as signal:
            raise Suspended(signal.payload, signal.resume) from None

    def bail(self, value: Any = None) -> NoReturn:
        raise Bailed(value)

    def abort(self, reason: str = "") -> NoReturn:
        raise Aborted(reason)


def step_context(
    *,
    deps: DepsT | None = None,
    state: BaseModel | Mapping[str, Any] | None = None,
    runtime_context: Mapping[str, Any] | None = None,
    init_data: Any = None,
    results: Mapping[Any, Any] | None = None,
    answers: Sequence[Any] = (),
    step_id: str = "step",
    workflow_id: str = "workflow",
    run_id: str = "run",
    attempt: int = 1,
) -> FakeStepContext[DepsT]:
    """Return a context for calling a step's function in a unit test: no run, no span, no store.

    Args:
        deps: ``ctx.deps``.
        state: ``ctx.state`` to begin with; a model makes ``set_state`` validate against its type.
        runtime_context: ``ctx.runtime_context``.
        init_data: ``ctx.init_data``.
        results: what ``ctx.result_of`` gives, by step or by its id or path.
        answers: what ``ctx.suspend`` returns, call by call. Beyond, it raises ``Suspended``.
        step_id: ``ctx.step_id`` and ``ctx.path``.
        workflow_id: ``ctx.workflow_id``.
        run_id: ``ctx.run_id``.
        attempt: ``ctx.attempt``.

    Example:
        >>> import asyncio
        >>> from spanflow import StepContext, step
        >>> @step
        ... async def approve(amount: int, ctx: StepContext) -> str:
        ...     await ctx.emit("asking")
        ...     return "paid" if await ctx.suspend({"amount": amount}, resume=bool) else "refused"
        >>> ctx = step_context(answers=[True])
        >>> asyncio.run(approve(5, ctx))
        'paid'
        >>> ctx.emitted
        ['asking']
    """
    run = _FakeRun(run_id, deps, dict(runtime_context or {}))
    schema: Schema[Any] | None = None
    if isinstance(state, BaseModel):
        schema = Schema(type(state))
        run.state.values[""] = {name: getattr(state, name) for name in type(state).model_fields}
    elif state is not None:
        run.state.values[""] = dict(state)
    for key, output in (results or {}).items():
        path = _path(key)
        run.state.steps[path] = run.state.latest[path] = StepResult(path, path, "success", output=output)
    run.state.steps[step_id] = StepResult(step_id, step_id, "running", attempt=attempt, answers=tuple(answers))
    return FakeStepContext[DepsT](run, Place(run, workflow_id, "", init_data, schema, ""), step_id, attempt)


class _FakeRun:
    """The run's side of a context, in memory."""

    def __init__(self, run_id: str, deps: Any, runtime_context: Mapping[str, Any]) -> None:
        self.run_id = run_id
        self.deps = deps
        self.runtime_context = runtime_context
        self.state = RunState(run_id=run_id)
        self.emitted: list[Any] = []

    def time_ns(self) -> int:
        return time.time_ns()

    def record(
        self, step: Recording, kind: type[Envelope], payload: dict[str, Any], span_id: int | None, at: int
    ) -> None:
        self.emitted.append(payload["output"])

    leaving = False

    def catch_up(self) -> None:
        """Do nothing: what threads do is recorded nowhere."""

    async def stored(self) -> None:
        return None

    def change_state(self, scope: str, values: dict[str, Any], by: str) -> None:
        self.state.values.setdefault(scope, {}).update(values)

    def require_storable(self, value: Any, what: str, refusal: type[SpanflowError] = InvalidOutput) -> None:
        """Take anything: what is tested has no store."""

    def revive(self, schema: Schema[T], value: Any) -> T:
        try:
            return schema.validate(value)
        except ValidationError as error:
            raise InvalidInput(
                f"step_context: {value!r} is no {schema.name}: {describe(error, schema.annotation)}"
            ) from None


def _path(step: str | HasResult[Any]) -> str:
    return step if isinstance(step, str) else step.id
