"""``@tool``: a described function with a JSON schema, callable from steps and agents."""

import asyncio
import inspect
import secrets
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Generic, Never, ParamSpec, TypeGuard, Union, cast, get_args, get_origin, overload

from pydantic import ValidationError
from typing_extensions import TypeVar

from spanflow.context import StepContext, current_step
from spanflow.errors import DefinitionError, InvalidInput, InvalidOutput
from spanflow.events import Envelope, ToolCall, ToolCallDelta, ToolCallStreamingStart, ToolResultEvent
from spanflow.explain import describe
from spanflow.failure import failure
from spanflow.options import checked_id
from spanflow.parameters import Parameters
from spanflow.schema import Schema
from spanflow.signatures import signature_types
from spanflow.step import Step, in_thread, is_async_callable, name_of
from spanflow.tracing import metrics, names
from spanflow.tracing.ids import derive_span_id
from spanflow.tracing.roots import open_tool
from spanflow.tracing.spans import Scope, current_context

P = ParamSpec("P")
T = TypeVar("T")
Out = TypeVar("Out")
Delta = TypeVar("Delta")
Result = TypeVar("Result", default=Never)
Delta_co = TypeVar("Delta_co", covariant=True)
Out_co = TypeVar("Out_co", covariant=True)
Return_co = TypeVar("Return_co", covariant=True, default=Any)


@dataclass(frozen=True, slots=True)
class ToolResult(Generic[T]):
    """Yielded by a streaming tool to say that this, and not the last delta, is its result.

    Example:
        >>> import asyncio
        >>> from collections.abc import AsyncIterator
        >>> from spanflow import ToolResult, tool
        >>> @tool
        ... async def spell(word: str) -> AsyncIterator[str | ToolResult[int]]:
        ...     "Spell a word, and count its letters."
        ...     for letter in word:
        ...         yield letter
        ...     yield ToolResult(len(word))
        >>> async def main() -> None:
        ...     print([letter async for letter in spell("abc")])
        ...     print(await spell("abc"))
        >>> asyncio.run(main())
        ['a', 'b', 'c']
        3
    """

    value: T


class Tool(Generic[P, Out_co, Return_co]):
    """A tool. Made by ``@tool``; called like the function it was made of.

    In a step a call emits ``tool-call``, then ``tool-result``, around an ``execute_tool`` span; elsewhere it is the
    function with a span. Arguments and result are validated in both.

    Attributes:
        id: the tool's name.
        description: what a model is told about it, from the docstring.
        json_schema: JSON schema of the arguments, an object.
    """

    __slots__ = (
        "_attributes",
        "_span_name",
        "description",
        "fn",
        "id",
        "is_async",
        "is_streaming",
        "output",
        "parameters",
    )

    def __init__(
        self, fn: Callable[..., Any], *, id: str, parameters: Parameters, output: Schema[Any], description: str
    ) -> None:
        self.fn = fn
        self.id = checked_id(id, "tool")
        self.parameters = parameters
        self.output = output
        self.description = description
        self.is_streaming = inspect.isasyncgenfunction(fn)
        self.is_async = is_async_callable(fn)
        self._span_name = f"execute_tool {id}"
        self._attributes = {names.OPERATION: "execute_tool", names.TOOL_NAME: id, names.TOOL_TYPE: "function"}
        if self.description:
            self._attributes[names.TOOL_DESCRIPTION] = self.description[:1024]

    @classmethod
    def of(
        cls, fn: Callable[..., Any], *, id: str, description: str | None, localns: Mapping[str, Any]
    ) -> "Tool[..., Any, Any]":
        """Read a function's signature and docstring."""
        parameters = Parameters.of(fn, localns)
        returns = signature_types(fn, localns).returns
        return Tool(
            fn,
            id=id,
            parameters=parameters,
            output=Schema(_yielded(returns) if inspect.isasyncgenfunction(fn) else returns),
            description=parameters.description if description is None else description,
        )

    @property
    def name(self) -> str:
        return self.id

    @property
    def json_schema(self) -> dict[str, Any]:
        return self.parameters.json_schema

    @property
    def returns(self) -> type[Out_co]:
        """The annotation of the result."""
        return cast("type[Out_co]", self.output.annotation)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Return_co:
        """Call the tool. An ``async def`` is awaited; one with ``yield`` may be awaited for its result or iterated.

        Raises:
            InvalidInput: the arguments do not fit.
            InvalidOutput: the result does not fit.
        """
        return cast("Return_co", self.call(self.parameters.bind(args, kwargs)))

    def call(self, arguments: Mapping[str, Any], *, tool_call_id: str | None = None) -> Any:
        """Call with arguments by name, as a model gives them; ``tool_call_id`` is the model's own id of the call."""
        if self.is_streaming:
            stream: ToolStream[Any, Any] = ToolStream(self, arguments, tool_call_id)
            return stream
        if self.is_async:
            return self._call(arguments, tool_call_id)
        invocation = Invocation(self, arguments, tool_call_id)
        with invocation:
            return invocation.complete(self.fn(**invocation.validated()))

    def with_id(self, id: str) -> "Tool[P, Out_co, Return_co]":
        """Return the same tool under another name."""
        return Tool(self.fn, id=id, parameters=self.parameters, output=self.output, description=self.description)

    def as_step(self) -> Step[Any, Out_co, Coroutine[Any, Any, Out_co]]:
        """Return the step that calls this tool with the step's value as arguments."""

        async def run(value: Any) -> Any:
            arguments = self._arguments(value)
            if self.is_async or self.is_streaming:
                return await self.call(arguments)
            return await asyncio.to_thread(in_thread, self.call, arguments)

        return Step(
            run,
            id=self.id,
            input=Schema(Any),
            output=self.output,
            wants_ctx=False,
            is_async=True,
            description=self.description,
            parameters=self.parameters,
        )

    async def _call(self, arguments: Mapping[str, Any], tool_call_id: str | None) -> Any:
        invocation = Invocation(self, arguments, tool_call_id)
        with invocation:
            await invocation.stored()
            return invocation.complete(await self.fn(**invocation.validated()))

    def _arguments(self, value: Any) -> dict[str, Any]:
        try:
            return self.parameters.from_value(value)
        except ValidationError as error:
            raise InvalidInput(
                f"Tool {self.id!r} takes {', '.join(self.parameters.names)} as a mapping or a model with those fields:"
                f" {describe(error, self.fn)}"
            ) from None

    def __repr__(self) -> str:
        return f"<Tool {self.id}({', '.join(self.parameters.names)}) → {self.output.name}>"


class Invocation:
    """One call of a tool: its events and its span. Entered around the tool's own code, in whatever thread that runs."""

    def __init__(self, tool: Tool[Any, Any, Any], arguments: Mapping[str, Any], tool_call_id: str | None) -> None:
        self._tool = tool
        self._arguments = dict(arguments)
        self._step = step = current_step()
        if step is not None:
            step.run.require_storable(self._arguments, f"Tool {tool.id!r}: its arguments", InvalidInput)
        self._result: Any = None
        self._is_late = step is not None and step.ended  # in a task or thread that outlived it: a span, but no event
        self._path = path = "" if step is None else step.next_call()
        self._call_id = tool_call_id or _call_id(step, path)
        attributes = tool._attributes | {names.TOOL_CALL_ID: self._call_id}  # pyright: ignore[reportPrivateUsage]
        name = tool._span_name  # pyright: ignore[reportPrivateUsage]
        if step is None:
            self._scope = open_tool(name, attributes)
            self._started_at = self._scope.started_at
        else:
            self._started_at = at = step.run.time_ns()
            self._scope = step.scope.child(name, path, step.attempt, attributes, at, under=current_context())
            payload = {"tool_call_id": self._call_id, "tool_name": tool.id, "args": self._arguments}
            step.record(ToolCall, payload, self._scope.span_id, at)
            if not self._is_late:
                step.open_calls[path] = self
        self._scope.capture_input(names.TOOL_ARGUMENTS, self._arguments, tool.fn)

    @property
    def scope(self) -> Scope:
        return self._scope

    async def stored(self) -> None:
        """Return when the call is stored, where that outlives the process: so that what it exports has its parent."""
        if self._step is not None:
            await self._step.run.stored()

    def validated(self) -> dict[str, Any]:
        """Return the arguments as the function takes them."""
        try:
            return self._tool.parameters.validate(self._arguments)
        except ValidationError as error:
            raise InvalidInput(f"Tool {self._tool.id!r}: {describe(error, self._tool.fn)}") from None

    def complete(self, result: Any) -> Any:
        """Validate the result and keep it for ``tool-result``."""
        try:
            self._result = self._tool.output.validate(result)
        except ValidationError as error:
            tool = self._tool
            raise InvalidOutput(
                f"Tool {tool.id!r} must return {tool.output.name}: {describe(error, tool.output.annotation)}"
            ) from None
        if self._step is not None:
            self._step.run.require_storable(self._result, f"Tool {self._tool.id!r} returned what")
        self._scope.capture_output(names.TOOL_RESULT, self._result, self._tool.output.annotation)
        return self._result

    def begin_streaming(self) -> None:
        self._record(ToolCallStreamingStart, {})

    def delta(self, value: Any) -> None:
        self._record(ToolCallDelta, {"delta": value})

    def __enter__(self) -> "Invocation":
        self._token = self._scope.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not GeneratorExit:  # the loop is closing us in a context that is not ours
            self._scope.exit(self._token)
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """Record the result or error, and end the span, unless the step has ended before and done so itself."""
        step, scope, tool = self._step, self._scope, self._tool
        if step is None or self._is_late:
            pass
        elif step.open_calls.pop(self._path, None) is None or step.run.leaving:
            return
        failed = error if isinstance(error, Exception) else None
        at = self._end_span(failed)
        if step is None:
            return
        if failed is not None:
            step.scope.recorded_inside(failed)
        outcome = {"result": self._result} if error is None else {"error": failure(error, step.path)}
        payload = {"tool_call_id": self._call_id, "tool_name": tool.id, **outcome}
        step.record(ToolResultEvent, payload, scope.span_id, at)

    def abandon(self) -> None:
        """End the span: the step does not wait for this call any more."""
        if self._step is not None and not self._step.run.leaving:
            self._end_span(None)

    def _end_span(self, failed: Exception | None) -> int:
        """End the span, and return when that was, ns since the epoch."""
        step, scope, tool = self._step, self._scope, self._tool
        at = step.run.time_ns() if step is not None else scope.now()
        scope.measure(
            metrics.tool_duration,
            (at - self._started_at) / 1e9,
            {names.TOOL_NAME: tool.id, names.TOOL_TYPE: "function"},
            failed,
        )
        if failed is not None and step is not None and step.scope.has_recorded(failed):
            scope.recorded_inside(failed)
        scope.end(at, failed)
        return at

    def _record(self, kind: type[Envelope], payload: dict[str, Any]) -> None:
        step = self._step
        if step is not None:
            payload = {"tool_call_id": self._call_id, "tool_name": self._tool.id, **payload}
            step.record(kind, payload, self._scope.span_id, step.run.time_ns())


class ToolStream(Generic[Delta_co, Out_co]):
    """A call of a streaming tool: await it for the result, or iterate over what it yields."""

    def __init__(self, tool: Tool[Any, Any, Any], arguments: Mapping[str, Any], tool_call_id: str | None) -> None:
        self._tool = tool
        self._arguments = arguments
        self._call_id = tool_call_id

    def __await__(self) -> Generator[Any, Any, Out_co]:
        return self._result().__await__()

    def __aiter__(self) -> AsyncIterator[Delta_co]:
        deltas, step = self._deltas(), current_step()
        if step is not None:
            step.opened(deltas)
        return deltas

    async def _result(self) -> Any:
        """Run the tool to its end inside its span, and return the result."""
        invocation = Invocation(self._tool, self._arguments, self._call_id)
        with invocation:
            await invocation.stored()
            values = self._tool.fn(**invocation.validated())
            invocation.begin_streaming()
            last: Any = None
            async for value in values:
                if _is_result(value):
                    last = value.value
                    await values.aclose()
                    break
                last = value
                invocation.delta(value)
            return invocation.complete(last)

    async def _deltas(self) -> AsyncGenerator[Any, None]:
        """Yield the deltas. The tool's span is current while the tool runs, never while the caller does."""
        invocation = Invocation(self._tool, self._arguments, self._call_id)
        values: Any = None
        last: Any = None
        error: BaseException | None = None
        try:
            values = self._tool.fn(**invocation.validated())
            invocation.begin_streaming()
            while True:
                token = invocation.scope.enter()
                try:
                    value = await anext(values)
                except StopAsyncIteration:
                    break
                finally:
                    invocation.scope.exit(token)
                if _is_result(value):
                    last = value.value
                    break
                last = value
                invocation.delta(value)
                yield value
            invocation.complete(last)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if values is not None:
                await values.aclose()
            invocation.end(error)


class ToolDecorator:
    """What ``@tool(...)`` with options returns."""

    def __init__(self, id: str | None, description: str | None) -> None:
        self._id = id
        self._description = description

    @overload
    def __call__(self, fn: Callable[P, AsyncIterable[ToolResult[Out]]]) -> Tool[P, Out, ToolStream[Never, Out]]: ...
    @overload
    def __call__(
        self, fn: Callable[P, AsyncIterable[Delta | ToolResult[Result]]]
    ) -> Tool[P, Delta | Result, ToolStream[Delta, Delta | Result]]: ...
    @overload
    def __call__(self, fn: Callable[P, AsyncIterable[Any]]) -> Tool[P, Any, ToolStream[Any, Any]]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, Out]]) -> Tool[P, Out, Coroutine[Any, Any, Out]]: ...
    @overload
    def __call__(self, fn: Callable[P, Out]) -> Tool[P, Out, Out]: ...
    def __call__(self, fn: Callable[..., Any]) -> Any:
        return self._make(fn, sys._getframe(1))  # pyright: ignore[reportPrivateUsage]  # as namedtuple and NewType do

    def _make(self, fn: Callable[..., Any], caller: FrameType) -> Tool[Any, Any, Any]:
        if not callable(fn):
            raise DefinitionError(f"@tool needs a function, got {fn!r}. Options are keywords: @tool(id='search').")
        id = self._id or name_of(fn, "")
        if not id:
            raise DefinitionError(f"The tool {fn!r} has no name to be called by. Give it one: @tool(id='search').")
        return Tool.of(fn, id=id, description=self._description, localns=caller.f_locals)


@overload
def tool(fn: Callable[P, AsyncIterable[ToolResult[Out]]], /) -> Tool[P, Out, ToolStream[Never, Out]]: ...
@overload
def tool(
    fn: Callable[P, AsyncIterable[Delta | ToolResult[Result]]], /
) -> Tool[P, Delta | Result, ToolStream[Delta, Delta | Result]]: ...
@overload
def tool(fn: Callable[P, AsyncIterable[Any]], /) -> Tool[P, Any, ToolStream[Any, Any]]: ...
@overload
def tool(fn: Callable[P, Coroutine[Any, Any, Out]], /) -> Tool[P, Out, Coroutine[Any, Any, Out]]: ...
@overload
def tool(fn: Callable[P, Out], /) -> Tool[P, Out, Out]: ...
@overload
def tool(*, id: str | None = None, description: str | None = None) -> ToolDecorator: ...
def tool(fn: Callable[..., Any] | None = None, /, *, id: str | None = None, description: str | None = None) -> Any:
    """Make a tool of a function: name, description and JSON schema from its signature and docstring.

    An ``async def`` with ``yield`` streams: each value is a ``tool-call-delta``, the last one, or a ``ToolResult``, is
    the result. A plain ``def`` runs where it is called; as a step of a workflow it runs in a worker thread.

    Args:
        fn: the function; its docstring may describe the arguments (Google, NumPy or Sphinx style).
        id: the name, by default the function's.
        description: by default the docstring's text.

    Raises:
        DefinitionError: a parameter has no name for a model, or no JSON schema.

    Example:
        >>> @tool
        ... def add(a: int, b: int = 1) -> int:
        ...     "Add two numbers."
        ...     return a + b
        >>> add
        <Tool add(a, b) → int>
        >>> add(2)
        3
    """
    decorator = ToolDecorator(id, description)
    if fn is None:
        return decorator
    return decorator._make(fn, sys._getframe(1))  # pyright: ignore[reportPrivateUsage]  # same module; caller's names


def _call_id(step: StepContext[Any] | None, path: str) -> str:
    if step is None:
        return f"call_{secrets.token_hex(8)}"
    return f"call_{derive_span_id(step.run_id, path, step.attempt):016x}"


def _is_result(value: object) -> TypeGuard[ToolResult[Any]]:
    return isinstance(value, ToolResult)


def _yielded(returns: Any) -> Any:
    """Return the annotation of the result of an async generator: what ``ToolResult`` holds, or what is yielded."""
    arguments = get_args(returns)
    if not arguments:
        return Any
    yielded = arguments[0]
    if get_origin(yielded) is ToolResult:
        return get_args(yielded)[0]
    members = get_args(yielded) if get_origin(yielded) in (Union, type(int | str)) else (yielded,)
    results = [(get_args(each) or (Any,))[0] if (get_origin(each) or each) is ToolResult else each for each in members]
    return Union[tuple(results)]  # noqa: UP007  # made at run time
