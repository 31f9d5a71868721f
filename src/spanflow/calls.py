"""One call of a tool: its events, its span, and what a streaming one yields."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeGuard, TypeVar

from pydantic import ValidationError

from spanflow.context import StepContext, ToolCalls, current_step
from spanflow.errors import InvalidInput, InvalidOutput
from spanflow.events import Envelope, ToolCall, ToolCallDelta, ToolCallStreamingStart, ToolResultEvent
from spanflow.explain import describe
from spanflow.failure import failure
from spanflow.parameters import Parameters
from spanflow.schema import Schema
from spanflow.tracing import metrics, names
from spanflow.tracing.ids import derive_span_id
from spanflow.tracing.roots import open_tool
from spanflow.tracing.spans import Scope, current_context

T = TypeVar("T")
Delta_co = TypeVar("Delta_co", covariant=True)
Out_co = TypeVar("Out_co", covariant=True)


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


class Called(Protocol):
    """What a call needs of its tool. ``attributes`` and ``span_name`` are those of each of its spans."""

    fn: Callable[..., Any]
    id: str
    parameters: Parameters
    output: Schema[Any]
    attributes: dict[str, Any]
    span_name: str


class Invocation:
    """One call of a tool: its events and its span. Entered around the tool's own code, in whatever thread that runs."""

    def __init__(self, tool: Called, arguments: Mapping[str, Any], tool_call_id: str | None) -> None:
        self._tool = tool
        self._arguments = dict(arguments)
        self._step = step = current_step()
        if step is not None:
            step.run.require_storable(self._arguments, f"Tool {tool.id!r}: its arguments", InvalidInput)
        self._result: Any = None
        self._others: ToolCalls | None = None  # of the step, unless it has ended: then there is a span, but no event
        self._path, others = ("", None) if step is None else step.next_call()
        self._call_id = tool_call_id or _call_id(step, self._path)
        attributes = tool.attributes | {names.TOOL_CALL_ID: self._call_id}
        name = tool.span_name
        if step is None or others is None:
            self._scope = open_tool(name, attributes)
            self._started_at = self._scope.started_at
        else:
            self._started_at = at = step.run.time_ns()
            self._scope = step.scope.child(name, self._path, step.attempt, attributes, at, under=current_context())
            payload = {"tool_call_id": self._call_id, "tool_name": tool.id, "args": self._arguments}
            with others.lock:
                if not step.ended:
                    step.record(ToolCall, payload, self._scope.span_id, at)
                    others.open[self._path] = self
                    self._others = others
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
        step, others = self._step, self._others
        failed = error if isinstance(error, Exception) else None
        if step is None or others is None:
            self._end_span(failed)
            return
        with others.lock:  # the span and the event say the same, also of a thread whose step is canceled meanwhile
            if others.open.pop(self._path, None) is None or step.run.leaving:
                return
            at = self._end_span(failed)
            if failed is not None:
                step.scope.recorded_inside(failed)
            outcome = {"result": self._result} if error is None else {"error": failure(error, step.path)}
            payload = {"tool_call_id": self._call_id, "tool_name": self._tool.id, **outcome}
            step.record(ToolResultEvent, payload, self._scope.span_id, at)

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

    def __init__(self, tool: Called, arguments: Mapping[str, Any], tool_call_id: str | None) -> None:
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


def _call_id(step: StepContext[Any] | None, path: str) -> str:
    if step is None:
        return f"call_{secrets.token_hex(8)}"
    return f"call_{derive_span_id(step.run_id, path, step.attempt):016x}"


def _is_result(value: object) -> TypeGuard[ToolResult[Any]]:
    return isinstance(value, ToolResult)
