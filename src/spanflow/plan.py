"""The frozen tree of nodes that a workflow compiles to: plain data, stored with the run as JSON.

A plan names user code but holds none of it. A run goes on with the plan it was started with, whatever the
program says by then.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PLAN_VERSION = 1
"""Version of the shape and meaning of plans; stored with each."""

OnError = Literal["fail", "collect"]
BranchMode = Literal["first", "all"]


class _Node(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str


class RetryPlan(BaseModel):
    """A ``Retry`` as data; exception classes by qualified name."""

    model_config = ConfigDict(frozen=True)

    max_attempts: int
    delay: float
    backoff: float
    max_delay: float
    jitter: float
    retry_on: tuple[str, ...]
    give_up_on: tuple[str, ...]


class StepNode(_Node):
    """Run a step."""

    kind: Literal["step"] = "step"
    retry: RetryPlan | None = None
    timeout: float | None = None
    description: str = ""


class ToolNode(_Node):
    """Call a tool, its arguments taken from the value."""

    kind: Literal["tool"] = "tool"
    description: str = ""


class WorkflowNode(_Node):
    """Run a workflow inside this run, under its own span."""

    kind: Literal["workflow"] = "workflow"
    plan: "Plan"


Body = Annotated[StepNode | ToolNode | WorkflowNode, Field(discriminator="kind")]


class ParallelNode(_Node):
    """Give each arm the same value; the output is the tuple of theirs."""

    kind: Literal["parallel"] = "parallel"
    arms: tuple[Body, ...]
    on_error: OnError = "fail"


class BranchArm(BaseModel):
    model_config = ConfigDict(frozen=True)

    condition: str
    body: Body


class BranchNode(_Node):
    """Run the arm of the first condition that holds, or of each that holds."""

    kind: Literal["branch"] = "branch"
    arms: tuple[BranchArm, ...]
    default: Body | None = None
    mode: BranchMode = "first"


class ForeachNode(_Node):
    """Run the body for each item of a list, ``concurrency`` at a time."""

    kind: Literal["foreach"] = "foreach"
    body: Body
    concurrency: int = 1
    on_error: OnError = "fail"


class LoopNode(_Node):
    """Run the body, then ask the condition: go on while it is true, or until it is."""

    kind: Literal["loop"] = "loop"
    body: Body
    condition: str
    until: bool = False
    max_iterations: int | None = None


class MapNode(_Node):
    """Reshape the value with a function."""

    kind: Literal["map"] = "map"


class SleepNode(_Node):
    """Wait; how long is fixed (``seconds``, ``until``) or told by a function."""

    kind: Literal["sleep"] = "sleep"
    seconds: float | None = None
    until: datetime | None = None


class WaitNode(_Node):
    """Wait for an event that is sent to the run; its payload is the output."""

    kind: Literal["wait"] = "wait"
    event: str
    timeout: float | None = None
    payload_schema: dict[str, Any] = {}


Node = Annotated[
    StepNode
    | ToolNode
    | WorkflowNode
    | ParallelNode
    | BranchNode
    | ForeachNode
    | LoopNode
    | MapNode
    | SleepNode
    | WaitNode,
    Field(discriminator="kind"),
]


class Plan(BaseModel):
    """A workflow as data."""

    model_config = ConfigDict(frozen=True)

    workflow_id: str
    version: int = PLAN_VERSION
    description: str = ""
    nodes: tuple[Node, ...] = ()


WorkflowNode.model_rebuild()


def bodies(node: Node) -> tuple[StepNode | ToolNode | WorkflowNode, ...]:
    """Return the bodies that a node runs, in order; none for a node that is no container."""
    match node:
        case ParallelNode():
            return node.arms
        case BranchNode():
            arms = tuple(arm.body for arm in node.arms)
            return arms if node.default is None else (*arms, node.default)
        case ForeachNode() | LoopNode():
            return (node.body,)
        case _:
            return ()


def node_at(plan: Plan, path: str) -> Node | None:
    """Return the node that a path of a run leads to; None where the plan has none there."""
    outer, _, segment = path.rpartition("/")
    id, bracket, _ = segment.partition("#")[0].partition("[")
    return _node_of(_nodes_at(plan, outer), id, inside=bool(bracket) or "#" in segment)


def arm_at(plan: Plan, path: str) -> str | None:
    """Return which arm of a branch a path is: the number of its condition, or ``default``; None where it is none."""
    outer, _, id = path.rpartition("/")
    for node in _nodes_at(plan, outer):
        if isinstance(node, BranchNode):
            for index, arm in enumerate(node.arms):
                if arm.body.id == id:
                    return str(index)
            if node.default is not None and node.default.id == id:
                return "default"
    return None


def _nodes_at(plan: Plan, path: str) -> tuple[Node, ...]:
    """Return the nodes of the workflow that stands at a path."""
    if not path:
        return plan.nodes
    found = node_at(plan, path)
    return found.plan.nodes if isinstance(found, WorkflowNode) else ()


def _node_of(nodes: tuple[Node, ...], id: str, *, inside: bool) -> Node | None:
    for node in nodes:
        if node.id == id and not (inside and isinstance(node, ForeachNode | LoopNode)):
            return node
        for body in bodies(node):
            if body.id == id:
                return body
    return None
