"""``Workflow``: compose steps. Each operation returns a new workflow and checks its types at once."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from datetime import datetime
from typing import Any, Generic, Literal, Never, TypeAlias, Union, cast, overload

from pydantic import BaseModel
from typing_extensions import TypeVar

from spanflow.annotations import annotation_name
from spanflow.clock import Clock, SystemClock
from spanflow.context import StepContext
from spanflow.definition import Definition
from spanflow.engines.local import LocalEngine
from spanflow.errors import DefinitionError
from spanflow.options import checked_id
from spanflow.outcome import Err, Ok
from spanflow.plan import BranchMode, OnError, Plan
from spanflow.render import to_mermaid
from spanflow.retry import NO_RETRY, Retry, checked_retry
from spanflow.run import Run, new_run
from spanflow.schema import Schema
from spanflow.step import Step
from spanflow.stores.memory import MemoryStore
from spanflow.tool import Tool

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)
In = TypeVar("In")
Out = TypeVar("Out")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")

# Outputs of arms that a branch may do without: Never where they are left out, and so no part of the union.
B0 = TypeVar("B0", default=Never)
C0 = TypeVar("C0", default=Never)
D0 = TypeVar("D0", default=Never)
R0 = TypeVar("R0", default=Never)
F0 = TypeVar("F0", default=Never)

_CLOCK = SystemClock()

Body: TypeAlias = Union[Step[In, Out, Any], Tool[..., Out, Any], "Workflow[In, Out]"]
Verdict: TypeAlias = bool | Awaitable[bool]
Condition: TypeAlias = Callable[[In], Verdict] | Callable[[In, StepContext[Any]], Verdict]
Arm: TypeAlias = tuple[Condition[In], Body[In, Out]]
Seconds: TypeAlias = float | Awaitable[float]
Moment: TypeAlias = datetime | Awaitable[datetime]


class Workflow(Generic[In_contra, Out_co]):
    """A workflow: its input type, and the type that its last step gives.

    Immutable; every operation returns a new workflow, so a workflow can be shared and built upon. It is a step itself:
    ``outer.then(inner)`` runs ``inner`` as a nested run in the same trace.

    Args:
        id: names the workflow in spans and in the store.
        input: what a run takes, any type that pydantic validates.
        output: what it must give; checked when the workflow is used, and each result against it. May be left out.
        state: a model that steps share through ``ctx.state``.
        retry: for the steps that have none of their own.
        description: for people.

    Raises:
        DefinitionError: by every operation, for what cannot work: types that do not fit, duplicate ids,
            impossible options.

    Example:
        >>> from spanflow import Workflow, step
        >>> @step
        ... async def double(value: int) -> int:
        ...     return 2 * value
        >>> Workflow("twice", input=int).then(double).then(double.with_id("again"))
        <Workflow twice: int → int>
    """

    @overload
    def __init__(
        self: "Workflow[In, In]",
        id: str,
        input: type[In],
        output: Any = None,
        state: type[BaseModel] | None = None,
        retry: Retry | None = None,
        description: str | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: "Workflow[Any, Any]",
        id: str,
        input: Any,
        output: Any = None,
        state: type[BaseModel] | None = None,
        retry: Retry | None = None,
        description: str | None = None,
    ) -> None: ...
    def __init__(
        self,
        id: str,
        input: Any,
        output: Any = None,
        state: type[BaseModel] | None = None,
        retry: Retry | None = None,
        description: str | None = None,
    ) -> None:
        given: Schema[Any] = Schema(input)
        self._definition = Definition(
            plan=Plan(workflow_id=checked_id(id, "workflow"), description=description or ""),
            input=given,
            output=given.annotation,
            declared_output=None if output is None else Schema(output),
            state=None if state is None else Schema(_checked_state(state, id), by_name=True),
            retry=checked_retry(retry, f"workflow {id!r}") or NO_RETRY,
        )

    @property
    def id(self) -> str:
        return self._definition.id

    @property
    def definition(self) -> Definition:
        """The workflow as the runtime sees it."""
        return self._definition

    @property
    def plan(self) -> Plan:
        """The frozen tree of nodes, as JSON with ``plan.model_dump_json()``."""
        return self._definition.plan

    @property
    def returns(self) -> type[Out_co]:
        """The annotation of the output."""
        return cast("type[Out_co]", self._definition.output)

    def with_id(self, id: str) -> "Workflow[In_contra, Out_co]":
        """Return the same workflow under another id, to nest it a second time."""
        return self._grown(self._definition.with_id(id))

    def to_mermaid(self) -> str:
        """Draw the workflow as a Mermaid flowchart."""
        return to_mermaid(self.plan)

    async def create_run(
        self,
        run_id: str | None = None,
        resource_id: str | None = None,
        deps: Any = None,
        *,
        clock: Clock | None = None,
    ) -> Run[In_contra, Out_co]:
        """Return a new run that lives in this process's memory, as long as it is held. ``Runtime`` is for all others.

        Args:
            run_id: made up where it is left out.
            resource_id: what the run belongs to, for the application.
            deps: live objects for the steps, as ``ctx.deps``.
            clock: where the run takes its time from; for tests.

        Raises:
            DefinitionError: the workflow has no steps, or does not give its declared output.
        """
        engine = LocalEngine(MemoryStore(keep_finished=None), clock or _CLOCK)
        return new_run(self._definition, engine, run_id, resource_id, deps)

    # --- operations

    def then(self, step: Body[Out_co, R]) -> "Workflow[In_contra, R]":
        """Run a step, a tool or a workflow on the previous output."""
        return self._grown(self._definition.then(step))

    @overload
    def parallel(
        self, a: Body[Out_co, A], /, *, on_error: OnError = "fail", id: str | None = None
    ) -> "Workflow[In_contra, tuple[A]]": ...
    @overload
    def parallel(
        self, a: Body[Out_co, A], b: Body[Out_co, B], /, *, on_error: OnError = "fail", id: str | None = None
    ) -> "Workflow[In_contra, tuple[A, B]]": ...
    @overload
    def parallel(
        self,
        a: Body[Out_co, A],
        b: Body[Out_co, B],
        c: Body[Out_co, C],
        /,
        *,
        on_error: OnError = "fail",
        id: str | None = None,
    ) -> "Workflow[In_contra, tuple[A, B, C]]": ...
    @overload
    def parallel(
        self,
        a: Body[Out_co, A],
        b: Body[Out_co, B],
        c: Body[Out_co, C],
        d: Body[Out_co, D],
        /,
        *,
        on_error: OnError = "fail",
        id: str | None = None,
    ) -> "Workflow[In_contra, tuple[A, B, C, D]]": ...
    @overload
    def parallel(
        self,
        a: Body[Out_co, A],
        b: Body[Out_co, B],
        c: Body[Out_co, C],
        d: Body[Out_co, D],
        e: Body[Out_co, E],
        /,
        *,
        on_error: OnError = "fail",
        id: str | None = None,
    ) -> "Workflow[In_contra, tuple[A, B, C, D, E]]": ...
    @overload
    def parallel(
        self,
        a: Body[Out_co, R],
        b: Body[Out_co, R],
        c: Body[Out_co, R],
        d: Body[Out_co, R],
        e: Body[Out_co, R],
        f: Body[Out_co, R],
        /,
        *arms: Body[Out_co, R],
        on_error: OnError = "fail",
        id: str | None = None,
    ) -> "Workflow[In_contra, tuple[R, ...]]": ...
    def parallel(self, *arms: Body[Any, Any], on_error: OnError = "fail", id: str | None = None) -> Any:
        """Give each arm the same value and run them side by side; the output is the tuple of theirs, in order.

        The first failure cancels the others; with ``on_error="collect"`` all run, and an ``ExceptionGroup`` of the
        failures fails the run.
        """
        return self._grown(self._definition.parallel(arms, on_error, id))

    @overload
    def branch(
        self,
        a: Arm[Out_co, A],
        b: Arm[Out_co, B0] = ...,  # pyright: ignore[reportInvalidTypeVarUse]  # has a default
        c: Arm[Out_co, C0] = ...,  # pyright: ignore[reportInvalidTypeVarUse]  # has a default
        d: Arm[Out_co, D0] = ...,  # pyright: ignore[reportInvalidTypeVarUse]  # has a default
        /,
        *arms: Arm[Out_co, R0],
        default: Body[Out_co, F0] | None = None,
        mode: Literal["first"] = "first",
        id: str | None = None,
    ) -> "Workflow[In_contra, A | B0 | C0 | D0 | R0 | F0]": ...
    @overload
    def branch(
        self,
        a: Arm[Out_co, A],
        b: Arm[Out_co, B0] = ...,  # pyright: ignore[reportInvalidTypeVarUse]  # has a default
        c: Arm[Out_co, C0] = ...,  # pyright: ignore[reportInvalidTypeVarUse]  # has a default
        d: Arm[Out_co, D0] = ...,  # pyright: ignore[reportInvalidTypeVarUse]  # has a default
        /,
        *arms: Arm[Out_co, R0],
        default: Body[Out_co, F0] | None = None,
        mode: Literal["all"],
        id: str | None = None,
    ) -> "Workflow[In_contra, dict[str, A | B0 | C0 | D0 | R0 | F0]]": ...
    def branch(
        self,
        *arms: Arm[Any, Any],
        default: Body[Any, Any] | None = None,
        mode: BranchMode = "first",
        id: str | None = None,
    ) -> Any:
        """Run the arm of the first condition that holds, in order; ``default`` where none does.

        No match and no default fails the run with ``NoBranchMatched``; a condition that raises fails it too. With
        ``mode="all"`` every arm whose condition holds runs, side by side, and the output maps their ids to outputs.
        """
        return self._grown(self._definition.branch(arms, default, mode, id, _locals()))

    @overload
    def foreach(
        self: "Workflow[In, Sequence[A]]",
        step: Body[A, R],
        *,
        concurrency: int = 1,
        on_error: Literal["fail"] = "fail",
    ) -> "Workflow[In, list[R]]": ...
    @overload
    def foreach(
        self: "Workflow[In, Sequence[A]]", step: Body[A, R], *, concurrency: int = 1, on_error: Literal["collect"]
    ) -> "Workflow[In, list[Ok[R] | Err]]": ...
    def foreach(
        self: "Workflow[Any, Any]", step: Body[Any, Any], *, concurrency: int = 1, on_error: OnError = "fail"
    ) -> Any:
        """Run a step for each item of a list, ``concurrency`` at a time; the output is the list in input order.

        The window slides: the next item starts when any ends. The first failure cancels what runs, and no further item
        starts; with ``on_error="collect"`` all run, and the output is a list of ``Ok`` and ``Err``.
        """
        return self._grown(self._definition.foreach(step, concurrency, on_error))

    @overload
    def do_while(
        self, step: Body[Out_co, R], condition: Callable[[R], Verdict], *, max_iterations: int | None = None
    ) -> "Workflow[In_contra, R]": ...
    @overload
    def do_while(
        self,
        step: Body[Out_co, R],
        condition: Callable[[R, StepContext[Any]], Verdict],
        *,
        max_iterations: int | None = None,
    ) -> "Workflow[In_contra, R]": ...
    def do_while(self, step: Body[Any, Any], condition: Condition[Any], *, max_iterations: int | None = None) -> Any:
        """Run a step, and again on its own output as long as the condition holds for it.

        A condition that still holds after ``max_iterations`` fails the run with ``LoopLimit``.
        """
        definition = self._definition.loop(
            step, condition, until=False, max_iterations=max_iterations, localns=_locals()
        )
        return self._grown(definition)

    @overload
    def do_until(
        self, step: Body[Out_co, R], condition: Callable[[R], Verdict], *, max_iterations: int | None = None
    ) -> "Workflow[In_contra, R]": ...
    @overload
    def do_until(
        self,
        step: Body[Out_co, R],
        condition: Callable[[R, StepContext[Any]], Verdict],
        *,
        max_iterations: int | None = None,
    ) -> "Workflow[In_contra, R]": ...
    def do_until(self, step: Body[Any, Any], condition: Condition[Any], *, max_iterations: int | None = None) -> Any:
        """Run a step, and again on its own output until the condition holds for it. See ``do_while``."""
        definition = self._definition.loop(
            step, condition, until=True, max_iterations=max_iterations, localns=_locals()
        )
        return self._grown(definition)

    @overload
    def map(self, fn: Callable[[Out_co], Awaitable[R]], *, id: str | None = None) -> "Workflow[In_contra, R]": ...
    @overload
    def map(
        self, fn: Callable[[Out_co, StepContext[Any]], Awaitable[R]], *, id: str | None = None
    ) -> "Workflow[In_contra, R]": ...
    @overload
    def map(self, fn: Callable[[Out_co], R], *, id: str | None = None) -> "Workflow[In_contra, R]": ...
    @overload
    def map(
        self, fn: Callable[[Out_co, StepContext[Any]], R], *, id: str | None = None
    ) -> "Workflow[In_contra, R]": ...
    def map(self, fn: Callable[..., Any], *, id: str | None = None) -> Any:
        """Reshape the value with a function of ``(value)`` or ``(value, ctx)``, sync or async; lambdas too.

        It runs on the event loop: work that takes its time belongs in a step.
        """
        return self._grown(self._definition.map(fn, id, _locals()))

    @overload
    def sleep(
        self, seconds: float | Callable[[Out_co], Seconds], *, id: str | None = None
    ) -> "Workflow[In_contra, Out_co]": ...
    @overload
    def sleep(
        self, seconds: Callable[[Out_co, StepContext[Any]], Seconds], *, id: str | None = None
    ) -> "Workflow[In_contra, Out_co]": ...
    def sleep(self, seconds: float | Callable[..., Seconds], *, id: str | None = None) -> Any:
        """Wait that many seconds, or as many as a function of the value says; any length, also months."""
        return self._grown(self._definition.sleep(seconds, id, _locals()))

    @overload
    def sleep_until(
        self, moment: datetime | Callable[[Out_co], Moment], *, id: str | None = None
    ) -> "Workflow[In_contra, Out_co]": ...
    @overload
    def sleep_until(
        self, moment: Callable[[Out_co, StepContext[Any]], Moment], *, id: str | None = None
    ) -> "Workflow[In_contra, Out_co]": ...
    def sleep_until(self, moment: datetime | Callable[..., Moment], *, id: str | None = None) -> Any:
        """Wait until a moment (a datetime with a time zone), or until one that a function of the value names."""
        return self._grown(self._definition.sleep_until(moment, id, _locals()))

    @overload
    def wait_for_event(
        self, name: str, payload: type[R], *, timeout: float | None = None, id: str | None = None
    ) -> "Workflow[In_contra, R]": ...
    @overload
    def wait_for_event(
        self, name: str, payload: Any = Any, *, timeout: float | None = None, id: str | None = None
    ) -> "Workflow[In_contra, Any]": ...
    def wait_for_event(
        self, name: str, payload: Any = Any, *, timeout: float | None = None, id: str | None = None
    ) -> Any:
        """Wait for ``run.send_event(name, payload)``; the payload is the output. An event sent early is kept.

        Args:
            name: of the event.
            payload: the type of its payload.
            timeout: seconds, after which the run fails with ``EventTimeout``.
            id: defaults to the event's name.
        """
        return self._grown(self._definition.wait_for_event(name, payload, timeout, id))

    def _grown(self, definition: Definition) -> "Workflow[Any, Any]":
        grown: Workflow[Any, Any] = copy(self)
        grown._definition = definition
        return grown

    def __repr__(self) -> str:
        definition = self._definition
        return f"<Workflow {self.id}: {definition.input.name} → {Schema(definition.output).name}>"


def _checked_state(state: Any, id: str) -> type[BaseModel]:
    if not (isinstance(state, type) and issubclass(state, BaseModel)):
        raise DefinitionError(
            f"Workflow {id!r}: state={annotation_name(state)} must be a pydantic model: class State(BaseModel)."
        )
    return state


def _locals() -> dict[str, Any]:
    """Return the names at hand where an operation was called, to resolve the annotations of local functions."""
    return sys._getframe(2).f_locals  # pyright: ignore[reportPrivateUsage]  # as namedtuple and NewType do
