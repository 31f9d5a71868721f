"""Go back in a run: which of what it has recorded lies before a point of it, and is taken over by a new run.

Pure, over the plan and the events. What stands before the point in the plan is kept, and of what stands beside it, in
other arms or items, that which succeeded: it does not depend on the point. The point, what follows it and what encloses
it runs anew, so the spans of a new run stand below spans of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, NamedTuple

from spanflow.definition import Definition
from spanflow.entries import Entry, RunIds
from spanflow.errors import InvalidInput, NotRecorded
from spanflow.events import Finish, Start, ToolCall, ToolCallStreamingStart, ToolResultEvent, leave_out_own
from spanflow.plan import (
    ForeachNode,
    LoopNode,
    Node,
    Plan,
    SleepNode,
    WaitNode,
    WorkflowNode,
    bodies,
    node_at,
)
from spanflow.schema import Schema
from spanflow.state import RunState, parent_path

_LISTED = 20  # paths that an error text names

Changes = dict[str, Any]


class Past(NamedTuple):
    """What a new run takes over: events that follow its start, and the changes that the start itself carries."""

    entries: Sequence[Entry]
    changes: Changes | None


def point_named(step: Any, run_id: str, plan: Plan, state: RunState) -> str:
    """Return the one recorded path that a step, an id or a path stands for.

    Raises:
        NotRecorded: the run has no record of it, or several.
        InvalidInput: it is no step, id or path.
    """
    name = step if isinstance(step, str) else getattr(step, "id", None)
    if not isinstance(name, str):
        raise InvalidInput(f"time_travel(step={step!r}): give the step, its id or its path, such as 'fetch[3]'.")
    fitting = [name] if name in state.steps else [path for path, known in state.steps.items() if known.id == name]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise NotRecorded(
            f"Run {run_id!r} has recorded {name!r} several times: {_listed(fitting)}. Say which: step=path.",
            run_id=run_id,
            recorded=fitting,
        )
    why = "never came to" if _has(plan, name) else "has no step"
    raise NotRecorded(
        f"Run {run_id!r} {why} {name!r}, so there is nothing to travel to. Recorded: {_listed(list(state.steps))}.",
        run_id=run_id,
        recorded=list(state.steps),
    )


def input_schema(definition: Definition, plan: Plan, path: str) -> Schema[Any]:
    """Return the type of what a step takes.

    Raises:
        InvalidInput: it takes nothing: it is a sleep or a wait.
        DefinitionError: the step is gone from the workflow.
    """
    for outer in path.split("/")[:-1]:
        definition = definition.nested(_segment(outer).id)
    match node_at(plan, path):
        case SleepNode() | WaitNode():
            raise InvalidInput(f"{path!r} waits, and takes no input. Travel to a step with input_data.")
        case ForeachNode(body=body):
            item: Any = _input(definition, body).annotation
            return Schema(list[item])
        case None:
            raise InvalidInput(f"The plan of workflow {plan.workflow_id!r} has nothing at {path!r}.")
        case node:
            return _input(definition, node)


def inputs_at(point: str, plan: Plan, state: RunState, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what steps are given instead in the new run: now, or by a travel before whose effect still stands."""
    history = _History(plan, state, point)
    before = {
        path: value
        for path, value in state.inputs.items()
        if path == point or point.startswith((f"{path}/", f"{path}[")) or history.where(path) is _Where.BESIDE
    }
    return {**before, **given}


def past_of(point: str, plan: Plan, state: RunState, entries: Sequence[Entry], run_id: str) -> Past:
    """Return what happened before a point, as the events of a new run after its start."""
    return _History(plan, state, point).told(entries, run_id)


class _Where(Enum):
    BEFORE = auto()
    BESIDE = auto()
    AFTER = auto()
    LOOP = auto()
    """In a loop that encloses the point, in an iteration that the path does not tell."""


class _Segment(NamedTuple):
    """A part of a path: ``fetch[3]``, ``price#2``. ``number`` is None where there is none."""

    id: str
    number: int | None


@dataclass(slots=True)
class _History:
    """A run, as seen from a point of it."""

    plan: Plan
    state: RunState
    point: str
    _known: dict[str, _Where] = field(default_factory=dict[str, _Where])
    _orders: dict[int, dict[str, int]] = field(default_factory=dict[int, dict[str, int]])

    def told(self, entries: Sequence[Entry], run_id: str) -> Past:
        """Return the events that are kept, numbered from 2, with all changes of what is kept."""
        start, *rest = entries
        arrival = next(entry.seq for entry in rest if entry.path == self.point)
        over = {entry.payload["tool_call_id"] for entry in rest if entry.kind is ToolResultEvent}
        traces: dict[str | None, RunIds] = {}
        kept: list[Entry] = []
        pending: Changes = {}
        at_start = self._changes_of(start)
        for entry in rest:
            pending = _merged(pending, self._changes_of(entry))
            if not self._keeps_event(entry, arrival, over):
                continue
            trace_id = entry.run.trace_id
            ids = traces.setdefault(trace_id, RunIds(run_id, trace_id, elsewhere=True))
            payload = entry.payload
            if "linked" in payload:  # it began a trace of that run
                payload = {name: value for name, value in payload.items() if name != "linked"}
            copy = Entry(entry.kind, payload, ids, len(kept) + 2, entry.timestamp, entry.span_id, entry.path)
            copy.changes = pending or None
            kept.append(copy)
            pending = {}
        if kept:  # what only an event that is not kept has told, e.g. the decision that led to the point
            kept[-1].changes = _merged(kept[-1].changes or {}, pending) or None
        else:
            at_start = _merged(at_start, pending)
        for copy in kept:
            if copy.changes is not None:
                leave_out_own(copy.changes, copy.path)
        return Past(kept, at_start or None)

    def where(self, path: str) -> _Where:
        """Return where a step, or what a condition decided for, stands in the plan as seen from the point."""
        known = self._known.get(path)
        if known is None:
            self._known[path] = known = self._find(path)
        return known

    def _find(self, path: str) -> _Where:
        plan, here, there = self.plan, path, self.point
        while True:
            ours, rest = _cut(here)
            theirs, below = _cut(there)
            order = self._order_of(plan)
            index, point = order[ours.id], order[theirs.id]
            if index != point:
                return _Where.BEFORE if index < point else _Where.AFTER
            if ours != theirs:
                return _beside(plan.nodes[index], ours, theirs)
            body = _body(plan.nodes[index], ours.id)
            if not rest or not below or not isinstance(body, WorkflowNode):
                return _Where.AFTER  # it encloses the point, is it, or lies inside of it
            plan, here, there = body.plan, rest, below

    def _order_of(self, plan: Plan) -> dict[str, int]:
        """Return the position of the node that an id of a workflow belongs to."""
        found = self._orders.get(id(plan))
        if found is None:
            found = {
                each: index
                for index, node in enumerate(plan.nodes)
                for each in (node.id, *(body.id for body in bodies(node)))
            }
            self._orders[id(plan)] = found
        return found

    def _keeps_event(self, entry: Entry, arrival: int, over: set[str]) -> bool:
        kind, path = entry.kind, entry.path
        if kind is Finish:
            return False
        if kind is Start:  # the answer to a step that goes on to its end is part of its past
            resumed = entry.payload.get("resumed")
            return resumed is not None and self._keeps(resumed.path)
        if kind in (ToolCall, ToolCallStreamingStart) and entry.payload["tool_call_id"] not in over:
            return False
        if path in self.state.steps:
            return self._keeps(path)
        where = self.where(path)  # a tool call of a condition
        return entry.seq < arrival if where is _Where.LOOP else where is not _Where.AFTER

    def _keeps(self, path: str) -> bool:
        """Whether what is recorded of a step is taken over."""
        where = self.where(path)
        while where is _Where.BESIDE:
            if self._has_come_out(path):
                return True
            path = parent_path(path)
            where = self.where(path) if path else _Where.AFTER
        return where is _Where.BEFORE

    def _has_come_out(self, path: str) -> bool:
        """Whether a step came to something that others build on: a value, also where that is an ``Err`` in a list."""
        step = self.state.steps.get(path)
        if step is None or step.status != "failed":
            return step is not None and step.status == "success"
        around = node_at(self.plan, parent_path(path)) if path.endswith("]") else None
        return isinstance(around, ForeachNode) and around.on_error == "collect"

    def _changes_of(self, entry: Entry) -> Changes:
        """Return those of an event's changes that were made by what is kept, each with its author."""
        changes = entry.changes
        if changes is None:
            return {}
        kept: Changes = {}
        for key, verdict in changes.get("decisions", {}).items():
            if self.where(_asked_for(key)) is not _Where.AFTER:
                kept.setdefault("decisions", {})[key] = verdict
        by = changes.get("by", {})
        for scope, values in changes.get("state", {}).items():
            authors = by.get(scope, {})
            for name, value in values.items():
                author = authors.get(name, entry.path)
                if self._keeps_author(author):
                    kept.setdefault("state", {}).setdefault(scope, {})[name] = value
                    kept.setdefault("by", {}).setdefault(scope, {})[name] = author
        return kept

    def _keeps_author(self, author: str) -> bool:
        if author in self.state.steps:
            return self._keeps(author)
        return not author or self.where(_asked_for(author)) is not _Where.AFTER  # a condition


def _beside(node: Node, ours: _Segment, theirs: _Segment) -> _Where:
    """Tell where one part of a container stands as seen from another."""
    match node:
        case LoopNode():
            if ours.number is None or theirs.number is None:
                return _Where.LOOP
            return _Where.BEFORE if ours.number < theirs.number else _Where.AFTER
        case ForeachNode():
            return _Where.AFTER if ours.number is None or theirs.number is None else _Where.BESIDE
        case _:
            return _Where.BESIDE


def _cut(path: str) -> tuple[_Segment, str]:
    first, _, rest = path.partition("/")
    return _segment(first), rest


def _segment(text: str) -> _Segment:
    if text.endswith("]"):
        id, _, number = text[:-1].rpartition("[")
        return _Segment(id, int(number))
    id, loop, number = text.partition("#")
    return _Segment(id, int(number) if loop else None)


def _asked_for(key: str) -> str:
    """Return the path that a condition or function of the plan is asked for: ``nested/check?0`` → ``nested/check``."""
    return key.rpartition("?")[0]


def _body(node: Node, id: str) -> Node:
    return next((body for body in bodies(node) if body.id == id), node)


def _input(definition: Definition, node: Node) -> Schema[Any]:
    if isinstance(node, WorkflowNode):
        return definition.nested(node.id).input
    return definition.step(node.id).input


def _has(plan: Plan, name: str) -> bool:
    """Whether a plan has a node of this id or path, on any level."""
    if node_at(plan, name) is not None:
        return True
    inside = [part for node in plan.nodes for part in (bodies(node) or (node,)) if isinstance(part, WorkflowNode)]
    return any(_has(part.plan, name) for part in inside)


def _merged(first: Changes, second: Changes) -> Changes:
    """Return both changes as one, the second on top."""
    if not first or not second:
        return second or first
    merged: Changes = {"decisions": {**first.get("decisions", {}), **second.get("decisions", {})}}
    for part in ("state", "by"):
        before, after = first.get(part, {}), second.get(part, {})
        merged[part] = {scope: {**before.get(scope, {}), **after.get(scope, {})} for scope in {**before, **after}}
    return {part: values for part, values in merged.items() if values}


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
    return (", ".join(map(repr, paths[:_LISTED])) or "nothing") + more
