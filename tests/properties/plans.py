"""Workflows as small data: what hypothesis draws and shrinks. Every value in them is an ``int``.

A node's id follows from where it stands, so that the workflow that is built of a plan and the reference that predicts
it agree without sharing code. ``divisor`` says for which values something happens: 1 for all, 0 for none.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ANSWER = 7  # what every question is answered with, and every event carries
REASON = "enough"  # what a step aborts its run for
LOST = 1000  # what counts for an item that failed
TOOL_ADDS = 2
STEP_ADDS = 1
SURVIVED_ADDS = 5

ToolKind = Literal["async", "plain", "streaming"]
OnError = Literal["fail", "collect"]


def strikes(divisor: int, value: int) -> bool:
    return divisor > 0 and value % divisor == 0


# ---------------------------------------------------------------- what a step does, one thing after the other


@dataclass(frozen=True)
class Take:
    """Take a time on the run's clock."""

    seconds: int


@dataclass(frozen=True)
class Emit:
    """Stream something to whoever watches."""


@dataclass(frozen=True)
class Keep:
    """Set the field of the workflow's state that has this step's path for a name."""


@dataclass(frozen=True)
class Mark:
    """Open a span of the user's own."""


@dataclass(frozen=True)
class Call:
    """Call a tool. It may fail, and the step may survive that; of a streaming one the step may leave early."""

    kind: ToolKind
    seconds: int = 0
    divisor: int = 0
    survives: bool = False
    iterates: bool = False
    leaves: bool = False


@dataclass(frozen=True)
class Ask:
    """Suspend until there is an answer."""


@dataclass(frozen=True)
class Fail:
    """Raise, in the first so many executions of a path."""

    divisor: int
    executions: int


@dataclass(frozen=True)
class Leave:
    """End the run, as ``ctx.bail`` or ``ctx.abort`` do, or the step with an output that does not fit."""

    how: Literal["bail", "abort", "wrong output"]
    divisor: int


Action = Take | Emit | Keep | Mark | Call | Ask | Fail | Leave


# ---------------------------------------------------------------- bodies: what may stand anywhere


@dataclass(frozen=True)
class Tries:
    """A ``Retry``."""

    attempts: int
    delay: int
    backoff: int = 1

    def delay_after(self, failures: int) -> int:
        return self.delay * self.backoff ** (failures - 1)


@dataclass(frozen=True)
class Task:
    """A step. In a thread it does only what a plain ``def`` can do."""

    actions: tuple[Action, ...] = ()
    in_thread: bool = False
    tries: Tries | None = None
    timeout: float | None = None

    @property
    def done(self) -> tuple[Action, ...]:
        if not self.in_thread:
            return self.actions
        return tuple(each for each in self.actions if not isinstance(each, Take | Ask) and not _is_awaited(each))


def _is_awaited(action: Action) -> bool:
    return isinstance(action, Call) and action.kind != "plain"


@dataclass(frozen=True)
class ToolTask:
    """A tool as a step."""

    kind: ToolKind
    divisor: int = 0


@dataclass(frozen=True)
class Nested:
    """A workflow. The whole plan is one, too."""

    parts: "tuple[Part, ...]"
    tries: Tries | None = None


Body = Task | ToolTask | Nested


# ---------------------------------------------------------------- parts of a workflow


@dataclass(frozen=True)
class Condition:
    """Holds where the value can be divided; raises where ``breaks`` divides it."""

    divisor: int
    holds: bool = True
    breaks: int = 0
    calls: bool = False
    seconds: int = 0

    def verdict(self, value: int) -> bool:
        return strikes(self.divisor, value) == self.holds


@dataclass(frozen=True)
class Then:
    body: Body


@dataclass(frozen=True)
class Parallel:
    arms: tuple[Body, ...]
    on_error: OnError = "fail"


@dataclass(frozen=True)
class Branch:
    arms: tuple[tuple[Condition, Body], ...]
    default: Body | None = None
    mode: Literal["first", "all"] = "first"


@dataclass(frozen=True)
class Foreach:
    """The value becomes a list of so many items, and their results are summed up."""

    body: Body
    items: int
    concurrency: int = 1
    on_error: OnError = "fail"


@dataclass(frozen=True)
class Loop:
    body: Body
    condition: Condition
    until: bool
    cap: int


@dataclass(frozen=True)
class Reshape:
    """A map function, which may raise."""

    divisor: int = 0


@dataclass(frozen=True)
class Pause:
    """A sleep; its length may be told by a function of the value."""

    seconds: int
    asks: bool = False


@dataclass(frozen=True)
class Await:
    """A wait for an event that was sent before, is sent some seconds after the wait began, or never comes."""

    comes: Literal["early", "late", "never"]
    after: int = 1
    timeout: float | None = None

    @property
    def event(self) -> str:
        return f"late-{self.after}" if self.comes == "late" else self.comes


Part = Then | Parallel | Branch | Foreach | Loop | Reshape | Pause | Await


# ---------------------------------------------------------------- a run of a plan


@dataclass(frozen=True)
class Scenario:
    """A plan, and what is done to a run of it from outside.

    ``joins`` are readers that join late: after how many live events of the first stretch, and with which ``after``.
    """

    plan: Nested
    value: int = 0
    answering: Literal["first", "last", "all"] = "first"
    canceled_after: float | None = None
    through_json: bool = False
    joins: tuple[tuple[int, int], ...] = ()


# ---------------------------------------------------------------- what follows from a plan


@dataclass(frozen=True)
class Node:
    """What a path of a plan stands for."""

    kind: Literal["step", "map", "workflow", "foreach", "sleep", "event", "condition"]
    id: str
    in_thread: bool = False
    collects: bool = False

    @property
    def is_frame(self) -> bool:
        return self.kind in ("workflow", "foreach")

    @property
    def span_name(self) -> str:
        match self.kind:
            case "step" | "map":
                return f"step {self.id}"
            case "workflow":
                return f"invoke_workflow {self.id}"
            case "foreach":
                return f"foreach {self.id}"
            case "sleep":
                return "sleep"
            case "event":
                return f"wait {self.id}"
            case "condition":
                raise AssertionError("a condition has no span of its own")


def nodes(plan: Nested, prefix: str = "") -> dict[str, Node]:
    """Return what may run, by path; indices and iterations are left out of it: ``s0[]/s1#``."""
    found: dict[str, Node] = {}
    for index, part in enumerate(plan.parts):
        found |= _nodes(part, str(index), prefix)
    return found


def _nodes(part: Part, n: str, prefix: str) -> dict[str, Node]:
    one, listed, summed = f"s{n}", f"list{n}", f"sum{n}"
    match part:
        case Then(body):
            return _body_nodes(body, one, f"{prefix}{one}")
        case Loop(body):
            decides = {f"{prefix}{one}": Node("condition", one)}
            return decides | _body_nodes(body, one, f"{prefix}{one}#")
        case Foreach(body, on_error=on_error):
            maps = {f"{prefix}{each}": Node("map", each) for each in (listed, summed)}
            frame = Node("foreach", one, collects=on_error == "collect")
            return maps | {prefix + one: frame} | _body_nodes(body, one, f"{prefix}{one}[]")
        case Parallel(arms):
            return {f"{prefix}{summed}": Node("map", summed)} | _arm_nodes(arms, n, prefix)
        case Branch(arms, default, mode):
            maps = {f"{prefix}branch{n}": Node("condition", f"branch{n}")}
            if mode == "all":
                maps[f"{prefix}{summed}"] = Node("map", summed)
            otherwise = {} if default is None else _body_nodes(default, f"s{n}d", f"{prefix}s{n}d")
            return maps | _arm_nodes([body for _, body in arms], n, prefix) | otherwise
        case Reshape():
            return {f"{prefix}map{n}": Node("map", f"map{n}")}
        case Pause():
            return {f"{prefix}sleep{n}": Node("sleep", f"sleep{n}")}
        case Await():
            return {f"{prefix}event{n}": Node("event", f"event{n}")}


def _arm_nodes(arms: Sequence[Body], n: str, prefix: str) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for letter, arm in zip("abc", arms, strict=False):
        found |= _body_nodes(arm, f"s{n}{letter}", f"{prefix}s{n}{letter}")
    return found


def _body_nodes(body: Body, id: str, path: str) -> dict[str, Node]:
    if isinstance(body, Nested):
        return {path: Node("workflow", id)} | nodes(body, f"{path}/")
    in_thread = body.in_thread if isinstance(body, Task) else body.kind == "plain"
    return {path: Node("step", id, in_thread)}


def without_numbers(path: str) -> str:
    return re.sub(r"\d+(?=\])|(?<=#)\d+", "", path)


def count_early(plan: Nested) -> int:
    """Return how many events at most a run of this plan takes of those that were sent before it started."""
    total = 0
    for part in plan.parts:
        match part:
            case Await(comes="early"):
                total += 1
            case Then(body):
                total += _count_early(body)
            case Loop(body, cap=times) | Foreach(body, items=times):
                total += times * _count_early(body)
            case Parallel(arms):
                total += sum(map(_count_early, arms))
            case Branch(arms, default):
                total += sum(_count_early(body) for _, body in arms) + (0 if default is None else _count_early(default))
            case _:
                pass
    return total


def _count_early(body: Body) -> int:
    return count_early(body) if isinstance(body, Nested) else 0
