"""Walk a plan. Pure: what a run does to the world goes through ``Ops``.

No clock, no random, no I/O, no pydantic, no OpenTelemetry and no user code in here: conditions and functions are
asked for through ``Ops`` as well, and a fork is data. So the same plan runs on asyncio and on a distributed engine,
and walking it again over a journal takes the same turns.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, assert_never, overload

from spanflow.errors import LoopLimit, NoBranchMatched, SpanflowError
from spanflow.events import Ref, StepError
from spanflow.plan import (
    Body,
    BranchNode,
    ForeachNode,
    LoopNode,
    MapNode,
    Node,
    ParallelNode,
    Plan,
    SleepNode,
    StepNode,
    ToolNode,
    WaitNode,
    WorkflowNode,
)

T = TypeVar("T")


class Value:
    """A value on its way through the plan, and where it is already stored. Also the outcome of what succeeded."""

    __slots__ = ("data", "ref")

    def __init__(self, data: Any, ref: Ref | None) -> None:
        self.data = data
        self.ref = ref


class ReadFailure(SpanflowError):
    """Stands for an exception that was lost with its process: the journal has its type and message."""

    def __init__(self, problem: StepError) -> None:
        super().__init__(problem.message)
        self.error_type = problem.type


@dataclass(slots=True)
class Failed:
    """Something failed. ``recorded``: a span has the exception already."""

    problem: StepError
    recorded: bool = True
    _read: ReadFailure | None = field(default=None, repr=False, compare=False)

    @property
    def exception(self) -> BaseException:
        """The exception itself; one of ours in its place where the failure was read from a journal."""
        if self.problem.exception is not None:
            return self.problem.exception
        self._read = self._read or ReadFailure(self.problem)
        return self._read


@dataclass(slots=True)
class Suspended:
    """At least one step waits for an answer, and nothing else is left to do."""


@dataclass(slots=True)
class Bailed:
    """A step ended the run with this value."""

    value: Value


@dataclass(slots=True)
class Canceled:
    """A step aborted the run, for a reason, or a sibling's failure stopped this one."""

    reason: str = ""
    path: str = ""


Outcome: TypeAlias = Value | Failed | Suspended | Bailed | Canceled


class Position(NamedTuple):
    """Which item, iteration or arm a node runs as; for events and attributes only."""

    foreach_index: int | None = None
    loop_iteration: int | None = None
    branch_arm: str | None = None


NOWHERE = Position()


class Fork(NamedTuple):
    """One of several bodies to run side by side."""

    body: Body
    path: str
    value: Value
    position: Position = NOWHERE


class Lazily(Sequence[T]):
    """A sequence whose elements are made each time they are asked for: of 100,000 forks few are under way at a time."""

    __slots__ = ("_indices", "_make")

    def __init__(self, length: int, make: Callable[[int], T]) -> None:
        self._indices = range(length)
        self._make = make

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[T]:
        return map(self._make, self._indices)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self._make(each) for each in self._indices[index]]
        return self._make(self._indices[index])


@dataclass(frozen=True, slots=True)
class Joined:
    """What forks came to, in their order; ``decisive`` is the one that stopped the others, if any did."""

    outcomes: Sequence[Outcome]
    decisive: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """A node that others run inside of, with events and a span of its own."""

    kind: Literal["workflow", "foreach"]
    id: str
    path: str
    position: Position = NOWHERE


class Ops(Protocol):
    """All that the interpreter may touch. Each operation on a path that has completed returns what it came to."""

    def step(
        self, node: StepNode | ToolNode | MapNode, path: str, value: Value, position: Position
    ) -> Awaitable[Outcome]:
        """Run user code with its retries and timeout."""
        ...

    async def test(self, key: str, name: str, value: Value) -> bool | Failed:
        """Ask a condition. ``key`` addresses the decision in the run."""
        ...

    async def within(self, frame: Frame, value: Value, body: "Callable[[Ops, Value], Awaitable[Outcome]]") -> Outcome:
        """Run ``body`` inside a frame, with the ``Ops`` of that frame."""
        ...

    async def fork(self, forks: Sequence[Fork], limit: int | None, *, keep_going: bool) -> Joined:
        """Run bodies side by side, ``limit`` at a time; the first failure stops the rest unless ``keep_going``."""
        ...

    async def items(self, path: str, value: Value) -> Sequence[Value] | Failed:
        """Return the items of a list."""
        ...

    def collected(self, path: str, outcomes: Sequence[Outcome]) -> Value:
        """Return the outcomes of a ``foreach(on_error="collect")`` as a list of ``Ok`` and ``Err``."""
        ...

    def failure(self, path: str, error: BaseException, *, recorded: bool = False) -> Failed:
        """Describe an error of the plan itself."""
        ...

    async def sleep(self, node: SleepNode, path: str, value: Value) -> Outcome:
        """Wait for a time."""
        ...

    async def wait(self, node: WaitNode, path: str) -> Outcome:
        """Wait for an event."""
        ...


async def interpret(plan: Plan, value: Value, ops: Ops, prefix: str = "") -> Outcome:
    """Run the nodes of a plan one after the other, each with the output of the one before."""
    for node in plan.nodes:
        outcome = await _node(node, value, ops, prefix)
        if type(outcome) is not Value:
            return outcome
        value = outcome
    return value


def run_body(body: Body, path: str, value: Value, ops: Ops, position: Position) -> Awaitable[Outcome]:
    """Run a step, tool or nested workflow at a path. ``Ops.fork`` calls this for each of its forks."""
    if isinstance(body, StepNode | ToolNode):
        return ops.step(body, path, value, position)
    plan = body.plan

    async def inside(nested: Ops, given: Value) -> Outcome:
        return await interpret(plan, given, nested, f"{path}/")

    return ops.within(Frame("workflow", body.id, path, position), value, inside)


def _node(node: Node, value: Value, ops: Ops, prefix: str) -> Awaitable[Outcome]:
    match node:
        case StepNode() | ToolNode() | MapNode():
            return ops.step(node, prefix + node.id, value, NOWHERE)
        case WorkflowNode():
            return run_body(node, prefix + node.id, value, ops, NOWHERE)
        case ParallelNode():
            return _parallel(node, value, ops, prefix)
        case BranchNode():
            return _branch(node, value, ops, prefix)
        case ForeachNode():
            return _foreach(node, value, ops, prefix)
        case LoopNode():
            return _loop(node, value, ops, prefix)
        case SleepNode():
            return ops.sleep(node, prefix + node.id, value)
        case WaitNode():
            return ops.wait(node, prefix + node.id)
        case _:
            assert_never(node)


async def _parallel(node: ParallelNode, value: Value, ops: Ops, prefix: str) -> Outcome:
    forks = [Fork(arm, prefix + arm.id, value) for arm in node.arms]
    joined = await ops.fork(forks, None, keep_going=node.on_error == "collect")
    values = _values(joined, f"parallel {node.id!r}", prefix + node.id, ops)
    if not isinstance(values, list):
        return values
    return Value(tuple(each.data for each in values), [each.ref for each in values])


async def _branch(node: BranchNode, value: Value, ops: Ops, prefix: str) -> Outcome:
    path = prefix + node.id
    chosen: list[Fork] = []
    for index, arm in enumerate(node.arms):
        verdict = await ops.test(f"{path}?{index}", arm.condition, value)
        if isinstance(verdict, Failed):
            return verdict
        if verdict:
            chosen.append(Fork(arm.body, prefix + arm.body.id, value, Position(branch_arm=str(index))))
            if node.mode == "first":
                break
    if not chosen and node.default is not None:
        chosen.append(Fork(node.default, prefix + node.default.id, value, Position(branch_arm="default")))
    if not chosen:
        return ops.failure(path, NoBranchMatched(path, [arm.body.id for arm in node.arms]))
    if node.mode == "first":
        only = chosen[0]
        return await run_body(only.body, only.path, value, ops, only.position)
    values = _values(await ops.fork(chosen, None, keep_going=False), f"branch {node.id!r}", path, ops)
    if not isinstance(values, list):
        return values
    named = {fork.body.id: each for fork, each in zip(chosen, values, strict=True)}
    return Value({id: each.data for id, each in named.items()}, {id: each.ref for id, each in named.items()})


async def _foreach(node: ForeachNode, value: Value, ops: Ops, prefix: str) -> Outcome:
    path = prefix + node.id

    async def inside(nested: Ops, given: Value) -> Outcome:
        items = await nested.items(path, given)
        if isinstance(items, Failed):
            return items

        def fork(index: int) -> Fork:
            return Fork(node.body, f"{path}[{index}]", items[index], Position(foreach_index=index))

        forks = Lazily(len(items), fork)
        collect = node.on_error == "collect"
        joined = await nested.fork(forks, node.concurrency, keep_going=collect)
        if collect and joined.decisive is None and not any(isinstance(each, Suspended) for each in joined.outcomes):
            return nested.collected(path, joined.outcomes)
        values = _values(joined, f"foreach {node.id!r}", path, ops)
        if not isinstance(values, list):
            return values
        return Value([each.data for each in values], f"{path}[*]")

    return await ops.within(Frame("foreach", node.id, path), value, inside)


async def _loop(node: LoopNode, value: Value, ops: Ops, prefix: str) -> Outcome:
    iteration = 0
    while True:
        iteration += 1
        path = f"{prefix}{node.body.id}#{iteration}"
        outcome = await run_body(node.body, path, value, ops, Position(loop_iteration=iteration))
        if type(outcome) is not Value:
            return outcome
        value = outcome
        verdict = await ops.test(f"{path}?", node.condition, value)
        if isinstance(verdict, Failed):
            return verdict
        if verdict == node.until:
            return value
        if iteration == node.max_iterations:
            return ops.failure(prefix + node.id, LoopLimit(prefix + node.id, iteration))


def _values(joined: Joined, what: str, path: str, ops: Ops) -> list[Value] | Outcome:
    """Return all the values of a join, or the outcome that speaks for all: what stopped it, failures, suspension."""
    if joined.decisive is not None:
        return joined.decisive
    suspended = next((each for each in joined.outcomes if isinstance(each, Suspended)), None)
    if suspended is not None:  # all are to run to their end before the failures of some fail the run
        return suspended
    failures = [each for each in joined.outcomes if isinstance(each, Failed)]
    if failures:
        errors = [each.exception for each in failures]
        return ops.failure(path, BaseExceptionGroup(f"{what}: {len(errors)} failed", errors), recorded=True)
    return [each for each in joined.outcomes if isinstance(each, Value)]
