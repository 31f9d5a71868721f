"""``@step``: a typed unit of work."""

import inspect
import sys
import types
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Annotated, Any, Generic, NoReturn, Union, cast, get_args, get_origin, overload

from typing_extensions import TypeVar

from spanflow.annotations import fits
from spanflow.context import StepContext
from spanflow.errors import DefinitionError
from spanflow.options import checked_id, checked_timeout
from spanflow.parameters import Parameters
from spanflow.retry import Retry, checked_retry
from spanflow.schema import Schema
from spanflow.signatures import signature_types

In = TypeVar("In")
Out = TypeVar("Out")
Deps = TypeVar("Deps")
In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)
Return_co = TypeVar("Return_co", covariant=True, default=Any)


class Step(Generic[In_contra, Out_co, Return_co]):
    """A step of a workflow: immutable, and still callable as the function it was made of.

    Made by ``@step``. The types of its value and result come from the annotations and are validated in a run, in and
    out; a direct call validates nothing.
    """

    __slots__ = (
        "annotation",
        "description",
        "fn",
        "id",
        "input",
        "is_async",
        "output",
        "parameters",
        "retry",
        "runs_inline",
        "span_name",
        "timeout",
        "wants_ctx",
    )

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        id: str,
        input: Schema[Any],
        output: Schema[Any],
        wants_ctx: bool,
        is_async: bool,
        retry: Retry | None = None,
        timeout: float | None = None,
        description: str = "",
        runs_inline: bool = False,
        parameters: Parameters | None = None,
    ) -> None:
        self.fn = fn
        self.id = id
        self.span_name = f"step {id}"
        self.input = input
        self.output = output
        self.wants_ctx = wants_ctx
        self.is_async = is_async
        self.retry = retry
        self.timeout = timeout
        self.description = description
        self.runs_inline = runs_inline
        self.parameters = parameters

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        *,
        id: str,
        what: str,
        localns: dict[str, Any],
        retry: Retry | None = None,
        timeout: float | None = None,
        description: str | None = None,
        runs_inline: bool = False,
    ) -> "Step[Any, Any, Any]":
        """Read a function's signature. ``what`` names the kind of thing in errors."""
        value, wants_ctx, returns = read_function(fn, what, localns)
        return Step(
            fn,
            id=checked_id(id, what),
            input=Schema(value),
            output=Schema(returns),
            wants_ctx=wants_ctx,
            is_async=is_async_callable(fn),
            retry=checked_retry(retry, f"{what} {id!r}"),
            timeout=checked_timeout(timeout, f"{what} {id!r}"),
            description=inspect.cleandoc(fn.__doc__ or "") if description is None else description,
            runs_inline=runs_inline,
        )

    @property
    def returns(self) -> type[Out_co]:
        """The annotation of the result."""
        return cast("type[Out_co]", self.output.annotation)

    def __call__(self, value: In_contra, ctx: StepContext[Any] | None = None) -> Return_co:
        """Call the function itself, as a unit test would: no run, no span, no validation."""
        if not self.wants_ctx:
            return cast("Return_co", self.fn(value))
        if ctx is None and _needs_two(self.fn):
            raise DefinitionError(
                f"Step {self.id!r} takes a StepContext: call it as {self.id}(value, ctx),"
                " with a ctx from spanflow.testing.step_context()."
            )
        return cast("Return_co", self.fn(value) if ctx is None else self.fn(value, ctx))

    def with_id(self, id: str) -> "Step[In_contra, Out_co, Return_co]":
        """Return the same step under another id, to use it a second time in one workflow."""
        return Step(
            self.fn,
            id=checked_id(id, "step"),
            input=self.input,
            output=self.output,
            wants_ctx=self.wants_ctx,
            is_async=self.is_async,
            retry=self.retry,
            timeout=self.timeout,
            description=self.description,
            runs_inline=self.runs_inline,
            parameters=self.parameters,
        )

    def __repr__(self) -> str:
        return f"<Step {self.id}: {self.input.name} → {self.output.name}>"


class StepDecorator:
    """What ``@step(...)`` with options returns."""

    def __init__(self, id: str | None, retry: Retry | None, timeout: float | None, description: str | None) -> None:
        self._id = id
        self._retry = retry
        self._timeout = timeout
        self._description = description

    @overload
    def __call__(self, fn: Callable[[In], Coroutine[Any, Any, Out]]) -> Step[In, Out, Coroutine[Any, Any, Out]]: ...
    @overload
    def __call__(
        self, fn: Callable[[In, StepContext[Deps]], Coroutine[Any, Any, Out]]
    ) -> Step[In, Out, Coroutine[Any, Any, Out]]: ...
    @overload
    def __call__(self, fn: Callable[[In], Out]) -> Step[In, Out, Out]: ...
    @overload
    def __call__(self, fn: Callable[[In, StepContext[Deps]], Out]) -> Step[In, Out, Out]: ...
    def __call__(self, fn: Callable[..., Any]) -> Step[Any, Any, Any]:
        return self._make(fn, sys._getframe(1))  # pyright: ignore[reportPrivateUsage]  # as namedtuple and NewType do

    def _make(self, fn: Callable[..., Any], caller: FrameType) -> Step[Any, Any, Any]:
        if not callable(fn):
            raise DefinitionError(f"@step needs a function, got {fn!r}. Options are keywords: @step(id='price').")
        return Step.of(
            fn,
            id=self._id or name_of(fn, "step"),
            what="step",
            localns=caller.f_locals,
            retry=self._retry,
            timeout=self._timeout,
            description=self._description,
        )


@overload
def step(fn: Callable[[In], Coroutine[Any, Any, Out]], /) -> Step[In, Out, Coroutine[Any, Any, Out]]: ...
@overload
def step(
    fn: Callable[[In, StepContext[Deps]], Coroutine[Any, Any, Out]], /
) -> Step[In, Out, Coroutine[Any, Any, Out]]: ...
@overload
def step(fn: Callable[[In], Out], /) -> Step[In, Out, Out]: ...
@overload
def step(fn: Callable[[In, StepContext[Deps]], Out], /) -> Step[In, Out, Out]: ...
@overload
def step(
    *, id: str | None = None, retry: Retry | None = None, timeout: float | None = None, description: str | None = None
) -> StepDecorator: ...
def step(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    id: str | None = None,
    retry: Retry | None = None,
    timeout: float | None = None,
    description: str | None = None,
) -> Any:
    """Make a step of ``async def f(value)`` or ``async def f(value, ctx)``.

    A plain ``def`` runs in a worker thread, with the trace context carried over; once started it cannot be stopped.
    Where a run goes on in another process, what its steps gave is read from JSON and validated once more: so a
    validator of your own must take what it gives.

    Args:
        fn: the function; its annotations say what is validated.
        id: defaults to the function's name; unique in a workflow.
        retry: when a failed attempt is tried again; defaults to the workflow's.
        timeout: seconds for one attempt.
        description: defaults to the docstring.

    Raises:
        DefinitionError: the function takes no value, too many, or types that pydantic cannot handle.

    Example:
        >>> @step
        ... async def double(value: int) -> int:
        ...     return 2 * value
        >>> double
        <Step double: int → int>
    """
    decorator = StepDecorator(id, retry, timeout, description)
    if fn is None:
        return decorator
    return decorator._make(fn, sys._getframe(1))  # pyright: ignore[reportPrivateUsage]  # same module; caller's names


def read_function(fn: Callable[..., Any], what: str, localns: dict[str, Any]) -> tuple[Any, bool, Any]:
    """Return the annotation of the value, whether the function takes a context, and the annotation of the result."""
    read = signature_types(fn, localns)
    required = [
        each for each in read.parameters if each.required and each.kind.name not in ("VAR_POSITIONAL", "VAR_KEYWORD")
    ]
    if not read.positional or len(required) > 2 or not all(each.positional for each in required):
        _refuse_signature(fn, what)
    value, *others = read.positional
    if _is_context(value.annotation):
        _refuse_signature(fn, what)
    if others and others[0].required and not fits(StepContext, others[0].annotation):
        _refuse_signature(fn, what)
    if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
        raise DefinitionError(
            f"The {what} {name_of(fn, repr(fn))} yields, but gives one value. Return it, and report progress with"
            " ctx.emit(); or make it a @tool, which may stream."
        )
    wants_ctx = bool(others) and (others[0].required or _is_context(others[0].annotation))
    return value.annotation, wants_ctx, read.returns


def in_thread(fn: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a worker thread. A future cannot hold StopIteration; generators turn it into this as well."""
    try:
        return fn(*arguments)
    except StopIteration as error:
        raise RuntimeError("a plain def raised StopIteration") from error


def is_async_callable(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004  # the method itself is asked for


def name_of(fn: Callable[..., Any], default: str) -> str:
    """Return a function's name, ``default`` for a lambda or an object without one."""
    name = getattr(fn, "__name__", default)
    return default if name == "<lambda>" else name


def _is_context(annotation: Any) -> bool:
    """Tell whether this is the type of a context, also as one of several: ``StepContext | None``."""
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, StepContext):
        return True
    return origin in (Union, types.UnionType, Annotated) and any(map(_is_context, get_args(annotation)))


def _needs_two(fn: Callable[..., Any]) -> bool:
    return sum(parameter.default is parameter.empty for parameter in inspect.signature(fn).parameters.values()) > 1


def _refuse_signature(fn: Callable[..., Any], what: str) -> NoReturn:
    raise DefinitionError(
        f"The {what} {name_of(fn, repr(fn))}{inspect.signature(fn)} must take (value) or (value, ctx: StepContext)."
        " Put further inputs into one model, and live objects such as clients into deps."
    )
