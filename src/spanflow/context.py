"""What user code sees inside a step: ``StepContext``, and the context variable that holds the current one."""

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextvars import ContextVar
from threading import RLock
from types import MappingProxyType, UnionType
from typing import Any, Generic, NoReturn, Protocol, overload

from pydantic import BaseModel, ValidationError
from typing_extensions import TypeVar

from spanflow.errors import InvalidInput, InvalidOutput, OutsideRun, SpanflowError, StepNotCompleted
from spanflow.events import Envelope, StepOutput
from spanflow.explain import describe
from spanflow.schema import Schema, fields_of
from spanflow.state import RunState, without_iterations
from spanflow.tracing.current import running_step
from spanflow.tracing.options import TracingContext
from spanflow.tracing.spans import Scope, current_span

T = TypeVar("T")
D = TypeVar("D")
DepsT_co = TypeVar("DepsT_co", covariant=True, default=object)
ResultT_co = TypeVar("ResultT_co", covariant=True)


class HasResult(Protocol[ResultT_co]):
    """A step, tool or workflow: something whose result can be asked for by what it is."""

    @property
    def id(self) -> str: ...

    @property
    def returns(self) -> type[ResultT_co]: ...


class SuspendSignal(BaseException):
    """Unwinds a step that waits for an answer. Not an ``Exception``, so that user code does not swallow it."""

    def __init__(self, payload: Any, resume: Schema[Any]) -> None:
        super().__init__()
        self.payload = payload
        self.resume = resume


class BailSignal(BaseException):
    """Unwinds a step that ends the run with success."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class AbortSignal(BaseException):
    """Unwinds a step that cancels the run."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Recording(Protocol):
    """Whose event it is."""

    path: str
    ended: bool


class OpenCall(Protocol):
    """A tool call that is not over."""

    def abandon(self) -> None:
        """End its span: the step does not wait for this call any more."""
        ...


class ToolCalls:
    """The tool calls of one attempt; ``open`` has by path those that are not over.

    Whoever begins or ends a call, in whatever thread, or ends the step, holds ``lock``.
    """

    __slots__ = ("begun", "lock", "open")

    def __init__(self) -> None:
        self.begun = 0
        self.lock = RLock()
        self.open: dict[str, OpenCall] = {}


_numbering = RLock()


class RunSide(Protocol):
    """What a step needs of its run."""

    run_id: str
    state: RunState
    deps: Any
    runtime_context: Mapping[str, Any]

    @property
    def leaving(self) -> bool:
        """Whether this process no longer drives the run: then nothing is recorded, and open spans stay open."""
        ...

    def time_ns(self) -> int: ...

    def record(
        self, step: "Recording", kind: type[Envelope], payload: dict[str, Any], span_id: int | None, at: int
    ) -> None:
        """Record a lifecycle event of a step, or stream a delta; from any thread. Nothing once the step has ended."""
        ...

    def change_state(self, scope: str, values: dict[str, Any], by: str) -> None:
        """Change the workflow state, from any thread."""
        ...

    def catch_up(self) -> None:
        """Record at once what threads have handed over."""
        ...

    async def stored(self) -> None:
        """Return when what was recorded will outlive this process, if the store does."""
        ...

    def revive(self, schema: Schema[T], value: Any) -> T:
        """Give a recorded value its type back."""
        ...

    def require_storable(self, value: Any, what: str, refusal: type[SpanflowError] = InvalidOutput) -> None:
        """Refuse a value that the store could not keep, while it is still the step that fails for it."""
        ...


class Place:
    """Where a workflow stands in its run: the part of a step's context that all steps of it share."""

    __slots__ = ("init_data", "prefix", "run", "schema_of", "state_schema", "state_scope", "workflow_id")

    def __init__(
        self,
        run: RunSide,
        workflow_id: str,
        prefix: str,
        init_data: Any,
        state_schema: Schema[Any] | None,
        state_scope: str,
        schema_of: "Callable[[str], Schema[Any] | None]" = lambda id: None,
    ) -> None:
        self.run = run
        self.workflow_id = workflow_id
        self.prefix = prefix
        self.init_data = init_data
        self.state_schema = state_schema
        self.state_scope = state_scope
        self.schema_of = schema_of


class Done:
    """An awaitable that gives the event loop one turn. What it stands for has already happened."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        yield


_DONE = Done()


class StepContext(Generic[DepsT_co]):
    """What a step may ask and do.

    Annotate the second parameter of a step with ``StepContext`` or, to have ``deps`` typed, ``StepContext[Deps]``.

    Attributes:
        step_id: id of the step.
        path: where the step stands in the run, e.g. ``fetch[3]`` or ``nested/price``.
        attempt: this try of the step, from 1. A step that is resumed, or cut short by a crash, runs as the next one.

    Example:
        >>> import asyncio
        >>> from dataclasses import dataclass
        >>> from spanflow import StepContext, Workflow, step
        >>> @dataclass
        ... class Deps:
        ...     greeting: str
        >>> @step
        ... async def greet(name: str, ctx: StepContext[Deps]) -> str:
        ...     return f"{ctx.deps.greeting} {name}, from {ctx.path}, attempt {ctx.attempt}"
        >>> async def main() -> None:
        ...     run = await Workflow("hello", input=str).then(greet).create_run(deps=Deps(greeting="Ahoy"))
        ...     print((await run.start("Ada")).unwrap())
        >>> asyncio.run(main())
        Ahoy Ada, from greet, attempt 1
    """

    __slots__ = (
        "_place",
        "_suspends",
        "attempt",
        "calls_from",
        "ended",
        "open_streams",
        "path",
        "scope",
        "step_id",
        "tool_calls",
    )

    def __init__(self, place: Place, scope: Scope, step_id: str, path: str, attempt: int) -> None:
        self._place = place
        self._suspends = 0
        self.scope = scope
        self.step_id = step_id
        self.path = path
        self.attempt = attempt
        self.calls_from = path
        self.ended = False
        self.tool_calls: ToolCalls | None = None  # of the many steps that call no tool
        self.open_streams: list[AsyncGenerator[Any, None]] | None = None

    @property
    def run_id(self) -> str:
        return self._place.run.run_id

    @property
    def workflow_id(self) -> str:
        """Id of the workflow that the step belongs to; inside a nested run, the nested one's."""
        return self._place.workflow_id

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this step in this run: give it to what must not happen twice."""
        return f"{self.run_id}/{self.path}"

    @property
    def init_data(self) -> Any:
        """The input of the workflow."""
        return self._place.init_data

    @property
    def deps(self) -> DepsT_co:
        """The live objects given to the runtime or the run; an ``object`` unless ``StepContext[Deps]`` says more."""
        deps: DepsT_co = self._place.run.deps
        return deps

    @property
    def runtime_context(self) -> Mapping[str, Any]:
        """The JSON that was given to the run; read-only."""
        return MappingProxyType(dict(self._place.run.runtime_context))

    @property
    def tracing_context(self) -> TracingContext:
        """The span that is active: this step's, or one that was opened inside it."""
        active = current_span()
        return TracingContext(active if active.get_span_context().is_valid else self.scope.span)

    @property
    def state(self) -> Any:
        """The workflow's state: an instance of its ``state`` model, else a read-only mapping."""
        place = self._place
        values = place.run.state.values.get(place.state_scope, {})
        if place.state_schema is None:
            return MappingProxyType(dict(values))
        revived: Any = place.run.revive(place.state_schema, values)
        return place.state_schema.validate(revived)

    def set_state(self, changes: BaseModel | Mapping[str, Any] | None = None, /, **fields: Any) -> Done:
        """Merge fields into the state, at once and for all steps of the workflow. ``await`` is optional.

        Raises:
            InvalidInput: the state would not fit its model, or is nothing that a store can keep; nothing was changed.
        """
        place = self._place
        given = _fields(changes) | fields
        if place.state_schema is not None:
            given = _validated_state(place.state_schema, place.run.state.values.get(place.state_scope, {}), given)
        place.run.require_storable(given, "set_state: the fields", InvalidInput)
        if not self.ended:  # else it is a thread that outlived its step
            place.run.change_state(place.state_scope, given, self.calls_from)
        return _DONE

    @overload
    def result_of(self, step: HasResult[T]) -> T: ...
    @overload
    def result_of(self, step: HasResult[T], default: D) -> T | D: ...
    @overload
    def result_of(self, step: str) -> Any: ...
    @overload
    def result_of(self, step: str, default: Any) -> Any: ...
    def result_of(self, step: Any, default: Any = ...) -> Any:
        """Return what a completed step of this workflow, or of one around it, gave: the step itself, its id or path.

        Raises:
            StepNotCompleted: it has not run, or has not succeeded, and there is no ``default``.
        """
        name: str = step if isinstance(step, str) else step.id
        run, prefix = self._place.run, self._place.prefix
        while True:
            found = run.state.steps.get(prefix + name) or run.state.latest.get(without_iterations(prefix + name))
            if found is not None and found.status == "success":
                schema = self._place.schema_of(name) if prefix == self._place.prefix and run.state.restored else None
                return found.output if schema is None else run.revive(schema, found.output)
            if not prefix:
                break
            prefix = prefix[:-1].rpartition("/")[0]
            prefix = f"{prefix}/" if prefix else ""
        if default is not ...:
            return default
        raise StepNotCompleted(name, self.path)

    def emit(self, value: Any) -> Done:
        """Stream a value to whoever watches the run, as ``step-output``. It is not stored.

        Await it, so that a loop of emits lets others run; in a plain ``def`` step just call it.
        """
        payload = {"id": self.step_id, "output": value}
        self.record(StepOutput, payload, self.scope.span_id, self._place.run.time_ns())
        return _DONE

    @overload
    async def suspend(self, payload: Any = None) -> Any: ...
    @overload
    async def suspend(self, payload: Any = None, *, resume: type[T]) -> T: ...
    @overload
    async def suspend(self, payload: Any = None, *, resume: UnionType) -> Any: ...
    async def suspend(self, payload: Any = None, *, resume: Any = Any) -> Any:
        """Ask somebody outside: end this attempt, and return the answer once the run is resumed with one.

        The step then runs again from its top, and this call returns. Several calls in one step are told apart by
        their order, so make them in the same order each time. The answer is validated against ``resume``.
        """
        known = self._place.run.state.steps.get(self.path)
        if known is None:
            raise OutsideRun(
                f"suspend() at {self.path!r}: only a step can wait for an answer. Make this function a step."
            )
        answers = known.answers
        number, self._suspends = self._suspends, self._suspends + 1
        schema: Schema[Any] = Schema(resume)
        if number < len(answers):
            return self._place.run.revive(schema, answers[number])
        self._place.run.require_storable(payload, f"Step {self.path!r} suspended with what")
        raise SuspendSignal(payload, schema)

    def bail(self, value: Any = None) -> NoReturn:
        """End the run with success and this value, from anywhere in it. Only steps may. Does not return."""
        self._place.run.require_storable(value, f"Step {self.path!r} bailed with what")
        raise BailSignal(value)

    def abort(self, reason: str = "") -> NoReturn:
        """Cancel the run; the reason becomes ``result.error.message``. Only steps may. Does not return."""
        raise AbortSignal(reason)

    def next_call(self) -> tuple[str, ToolCalls]:
        """Return the path of the next tool call of this attempt, and where to keep it while it is open."""
        with _numbering:  # several threads of one step may call
            calls = self.tool_calls = self.tool_calls or ToolCalls()
            number, calls.begun = calls.begun, calls.begun + 1
        return f"{self.calls_from}/tool:{number}", calls

    def opened(self, stream: AsyncGenerator[Any, None]) -> None:
        """Remember a tool's stream that the step iterates over, to be closed before the step ends."""
        if self.open_streams is None:
            self.open_streams = []
        self.open_streams.append(stream)

    async def close_streams(self) -> None:
        """Close what the step left early."""
        for stream in self.open_streams or ():
            await stream.aclose()

    def record(self, kind: type[Envelope], payload: dict[str, Any], span_id: int | None, at: int) -> None:
        """Record an event of this step; what a thread or task of it does after the step's end is no event."""
        if not self.ended:
            self._place.run.record(self, kind, payload, span_id, at)

    @property
    def run(self) -> RunSide:
        return self._place.run


_current: ContextVar[StepContext[Any] | None] = running_step


def current_step() -> StepContext[Any] | None:
    """Return the context of the step whose code is running, None outside of one."""
    return _current.get()


enter_step = _current.set
exit_step = _current.reset


def _fields(changes: BaseModel | Mapping[str, Any] | None) -> dict[str, Any]:
    if changes is None:
        return {}
    if isinstance(changes, BaseModel):
        return fields_of(changes)
    return dict(changes)


def _validated_state(schema: Schema[Any], values: Mapping[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    model: type[BaseModel] = schema.annotation
    unknown = [name for name in given if name not in model.model_fields]
    if unknown and model.model_config.get("extra") != "allow":
        raise InvalidInput(f"set_state: {schema.name} has no field {', '.join(map(repr, unknown))}.")
    try:
        whole = schema.validate({**values, **given})
    except ValidationError as error:
        raise InvalidInput(
            f"set_state: the state does not fit {schema.name}: {describe(error, schema.annotation)}"
        ) from None
    return {name: getattr(whole, name) for name in given} if isinstance(whole, BaseModel) else given
