"""``@tool``: a described function with a JSON schema, callable from steps and agents."""

import asyncio
import inspect
import sys
from collections.abc import AsyncIterable, Callable, Coroutine, Mapping
from types import FrameType
from typing import Any, Generic, Never, ParamSpec, Union, cast, get_args, get_origin, overload

from pydantic import ValidationError
from typing_extensions import TypeVar

from spanflow.calls import Invocation, ToolResult, ToolStream
from spanflow.errors import DefinitionError, InvalidInput
from spanflow.explain import describe
from spanflow.options import checked_id
from spanflow.parameters import Parameters
from spanflow.schema import Schema
from spanflow.signatures import signature_types
from spanflow.step import Step, in_thread, is_async_callable, name_of
from spanflow.tracing import names

P = ParamSpec("P")
Out = TypeVar("Out")
Delta = TypeVar("Delta")
Result = TypeVar("Result", default=Never)
Out_co = TypeVar("Out_co", covariant=True)
Return_co = TypeVar("Return_co", covariant=True, default=Any)


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
        "attributes",
        "description",
        "fn",
        "id",
        "is_async",
        "is_streaming",
        "output",
        "parameters",
        "span_name",
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
        self.span_name = f"execute_tool {id}"
        self.attributes = {names.OPERATION: "execute_tool", names.TOOL_NAME: id, names.TOOL_TYPE: "function"}
        if self.description:
            self.attributes[names.TOOL_DESCRIPTION] = self.description[:1024]

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
