"""What a workflow is made of: its plan, and the user's code that the plan names. Checked whenever it grows."""

import reprlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from pydantic import ValidationError

from spanflow.annotations import annotation_name, fits
from spanflow.errors import DefinitionError
from spanflow.explain import describe
from spanflow.fitting import either, item_of, misfit
from spanflow.options import NAME, checked_choice, checked_count, checked_id, checked_timeout, is_name, is_number
from spanflow.outcome import Err, Ok
from spanflow.plan import (
    Body,
    BranchArm,
    BranchMode,
    BranchNode,
    ForeachNode,
    LoopNode,
    MapNode,
    Node,
    OnError,
    ParallelNode,
    Plan,
    RetryPlan,
    SleepNode,
    StepNode,
    ToolNode,
    WaitNode,
    WorkflowNode,
    bodies,
)
from spanflow.retry import NO_RETRY, Retry
from spanflow.schema import Schema
from spanflow.step import Step, name_of
from spanflow.tool import Tool

Locals = Mapping[str, Any]


class HasDefinition(Protocol):
    """A workflow, as the layers below it know it."""

    @property
    def definition(self) -> "Definition": ...


StepLike = Step[Any, Any, Any] | Tool[Any, Any, Any] | HasDefinition


@dataclass(frozen=True, slots=True)
class Definition:
    """A workflow as the runtime sees it. Immutable: each operation returns a larger one.

    ``bindings`` maps the names in the plan to the user's code: steps, conditions and functions as ``Step``, nested
    workflows as ``Definition``. ``output`` is the annotation of the last value.
    """

    plan: Plan
    input: Schema[Any]
    output: Any
    declared_output: Schema[Any] | None = None
    state: Schema[Any] | None = None
    retry: Retry = NO_RETRY
    bindings: Mapping[str, "Step[Any, Any, Any] | Definition"] = field(default_factory=dict[str, Any])
    events: Mapping[str, Schema[Any]] = field(default_factory=dict[str, Any])

    @property
    def id(self) -> str:
        return self.plan.workflow_id

    def step(self, name: str) -> Step[Any, Any, Any]:
        """Return the code that a node names.

        Raises:
            DefinitionError: the workflow has changed since the run was started.
        """
        found = self.bindings.get(name)
        if not isinstance(found, Step):
            raise DefinitionError(_gone(self.id, name, self.bindings))
        return found

    def nested(self, name: str) -> "Definition":
        """Return the nested workflow that a node names."""
        found = self.bindings.get(name)
        if not isinstance(found, Definition):
            raise DefinitionError(_gone(self.id, name, self.bindings))
        return found

    # --- growing

    def then(self, body: StepLike) -> "Definition":
        node, bound = self._body(body)
        self._check_fits(node, bound, self.output)
        return self._grown(node, {node.id: bound}, _output(bound))

    def parallel(self, arms: Sequence[StepLike], on_error: OnError, id: str | None) -> "Definition":
        if not arms:
            raise DefinitionError(f"Workflow {self.id!r}: parallel() needs at least one arm.")
        checked_choice(on_error, f"Workflow {self.id!r}: parallel() on_error", ("fail", "collect"))
        pairs = [self._body(arm) for arm in arms]
        for node, bound in pairs:
            self._check_fits(node, bound, self.output)
        container = ParallelNode(
            id=self._container_id(id, "parallel"), arms=tuple(node for node, _ in pairs), on_error=on_error
        )
        output: Any = types.GenericAlias(tuple, tuple(_output(bound) for _, bound in pairs))
        return self._grown(container, {node.id: bound for node, bound in pairs}, output)

    def branch(
        self,
        arms: Sequence[tuple[Callable[..., Any], StepLike]],
        default: StepLike | None,
        mode: BranchMode,
        id: str | None,
        localns: Locals,
    ) -> "Definition":
        if not arms:
            raise DefinitionError(f"Workflow {self.id!r}: branch() needs at least one (condition, step) pair.")
        checked_choice(mode, f"Workflow {self.id!r}: branch() mode", ("first", "all"))
        container_id = self._container_id(id, "branch")
        bindings: dict[str, Step[Any, Any, Any] | Definition] = {}
        made: list[BranchArm] = []
        outputs: list[Any] = []
        for index, arm in enumerate(arms):
            condition, body = _pair(arm, self.id)
            node, bound = self._body(body)
            self._check_fits(node, bound, self.output)
            name = f"{container_id}#when:{index}"
            bindings |= {name: _function(condition, name, "condition", localns), node.id: bound}
            made.append(BranchArm(condition=name, body=node))
            outputs.append(_output(bound))
        otherwise: Body | None = None
        if default is not None:
            otherwise, bound = self._body(default)
            self._check_fits(otherwise, bound, self.output)
            bindings[otherwise.id] = bound
            outputs.append(_output(bound))
        container = BranchNode(id=container_id, arms=tuple(made), default=otherwise, mode=mode)
        output: Any = either(outputs)
        return self._grown(container, bindings, dict[str, output] if mode == "all" else output)

    def foreach(self, body: StepLike, concurrency: int, on_error: OnError) -> "Definition":
        checked_count(concurrency, f"Workflow {self.id!r}: foreach() concurrency")
        checked_choice(on_error, f"Workflow {self.id!r}: foreach() on_error", ("fail", "collect"))
        node, bound = self._body(body)
        item = item_of(self.output)
        if item is None:
            raise DefinitionError(
                f"Workflow {self.id!r}: foreach({node.id}) runs over a list, but {self._before()} gives"
                f" {annotation_name(self.output)}. Return a list there, or put .map(...) in between."
            )
        self._check_fits(node, bound, item)
        output: Any = _output(bound)
        container = ForeachNode(id=node.id, body=node, concurrency=concurrency, on_error=on_error)
        given = list[Ok[output] | Err] if on_error == "collect" else list[output]
        return self._grown(container, {node.id: bound}, given)

    def loop(
        self,
        body: StepLike,
        condition: Callable[..., Any],
        *,
        until: bool,
        max_iterations: int | None,
        localns: Locals,
    ) -> "Definition":
        if max_iterations is not None:
            checked_count(max_iterations, f"Workflow {self.id!r}: max_iterations")
        node, bound = self._body(body)
        self._check_fits(node, bound, self.output)
        self._check_fits(node, bound, _output(bound), "its own last iteration")
        name = f"{node.id}#{'until' if until else 'while'}"
        container = LoopNode(id=node.id, body=node, condition=name, until=until, max_iterations=max_iterations)
        bindings = {node.id: bound, name: _function(condition, name, "condition", localns)}
        return self._grown(container, bindings, _output(bound))

    def map(self, fn: Callable[..., Any], id: str | None, localns: Locals) -> "Definition":
        node = MapNode(id=checked_id(id, "map") if id else self._free_id(name_of(fn, "map")))
        bound = _function(fn, node.id, "map function", localns)
        self._check_fits(node, bound, self.output)
        return self._grown(node, {node.id: bound}, bound.output.annotation)

    def sleep(self, duration: float | Callable[..., Any], id: str | None, localns: Locals) -> "Definition":
        node_id = checked_id(id, "sleep") if id else self._free_id("sleep")
        if callable(duration):
            bound = _function(duration, f"{node_id}#seconds", "sleep function", localns)
            return self._grown(SleepNode(id=node_id), {bound.id: bound}, self.output)
        if not (is_number(duration) and duration >= 0):
            raise DefinitionError(
                f"Workflow {self.id!r}: sleep({duration!r}) must be a number of seconds, 0 or more and finite,"
                " or a function of the value that tells it."
            )
        return self._grown(SleepNode(id=node_id, seconds=duration), {}, self.output)

    def sleep_until(self, moment: datetime | Callable[..., Any], id: str | None, localns: Locals) -> "Definition":
        node_id = checked_id(id, "sleep") if id else self._free_id("sleep")
        if isinstance(moment, datetime):
            if moment.tzinfo is None:
                raise DefinitionError(
                    f"Workflow {self.id!r}: sleep_until({moment.isoformat()}) has no time zone."
                    " Give it one: datetime(..., tzinfo=timezone.utc)."
                )
            return self._grown(SleepNode(id=node_id, until=moment), {}, self.output)
        if not callable(moment):
            raise DefinitionError(
                f"Workflow {self.id!r}: sleep_until({moment!r}) must be a datetime with a time zone,"
                " or a function of the value that tells it."
            )
        bound = _function(moment, f"{node_id}#until", "sleep_until function", localns)
        return self._grown(SleepNode(id=node_id), {bound.id: bound}, self.output)

    def wait_for_event(self, name: str, payload: Any, timeout: float | None, id: str | None) -> "Definition":
        schema: Schema[Any] = Schema(payload)
        known = self.events.get(name)
        if known is not None and known.annotation != schema.annotation:
            raise DefinitionError(
                f"Workflow {self.id!r} already waits for event {name!r} with payload {known.name}, now with"
                f" {schema.name}. Use the same payload model, or another event name."
            )
        node_id = checked_id(id, "event") if id else self._free_id(checked_id(name, "event"))
        if not is_name(name):
            raise DefinitionError(f"wait_for_event({reprlib.repr(name)}): the event needs a name of {NAME}.")
        if not name:  # with an id of its own, it may be any other text
            raise DefinitionError(f"wait_for_event({name!r}, id={id!r}): an event needs a name.")
        checked_timeout(timeout, f"wait_for_event({name!r})")
        node = WaitNode(id=node_id, event=name, timeout=timeout, payload_schema=schema.json_schema())
        grown = self._grown(node, {}, schema.annotation)
        return replace(grown, events={**self.events, name: schema})

    def with_id(self, id: str) -> "Definition":
        return replace(self, plan=self.plan.model_copy(update={"workflow_id": checked_id(id, "workflow")}))

    def complete(self) -> "Definition":
        """Check what only a whole workflow can be checked for.

        Raises:
            DefinitionError: it has no steps, or its last step does not give the declared output.
        """
        if not self.plan.nodes:
            raise DefinitionError(f"Workflow {self.id!r} has no steps. Add one: .then(step).")
        if self.declared_output is not None and not fits(self.output, self.declared_output.annotation):
            raise DefinitionError(
                f"Workflow {self.id!r} declares output={self.declared_output.name}, but {self._before()} gives"
                f" {annotation_name(self.output)}. Change one of them, or end with .map(...)."
            )
        return self

    def schema_of(self, id: str) -> Schema[Any] | None:
        """Return the type of what a node gives, None where it has no node of this id."""
        node = next((each for each in self.plan.nodes if each.id == id), None)
        if isinstance(node, WaitNode):
            return self.events[node.event]
        bound = self.bindings.get(id)
        if bound is None:
            return None
        output: Any = _output(bound)
        if isinstance(node, ForeachNode):
            return Schema(list[Ok[output] | Err] if node.on_error == "collect" else list[output])
        return Schema(output)

    def check_plan(self, plan: Plan) -> None:
        """Check that all code is here which a plan, stored with a run, names.

        Raises:
            DefinitionError: a step is gone; it names the step.
        """
        for node in plan.nodes:
            for part in bodies(node) or (node,):
                if isinstance(part, WorkflowNode):
                    self.nested(part.id).check_plan(part.plan)
                elif not isinstance(part, SleepNode | WaitNode):
                    self.step(part.id)
                elif isinstance(part, WaitNode) and part.event not in self.events:
                    raise DefinitionError(_gone(self.id, part.event, self.events))
            conditions = [arm.condition for arm in node.arms] if isinstance(node, BranchNode) else []
            for condition in [*conditions, *([node.condition] if isinstance(node, LoopNode) else [])]:
                self.step(condition)

    @property
    def result_schema(self) -> Schema[Any]:
        return self.declared_output or Schema(self.output)

    # --- pieces

    def _body(self, body: StepLike) -> tuple[Body, "Step[Any, Any, Any] | Definition"]:
        if isinstance(body, Tool):
            return ToolNode(id=body.id, description=body.description), body.as_step()
        if isinstance(body, Step):
            retry = body.retry or self.retry
            node = StepNode(
                id=body.id,
                retry=None if retry is NO_RETRY else _retry_plan(retry),
                timeout=body.timeout,
                description=body.description,
            )
            return node, body
        nested = getattr(body, "definition", None)
        if not isinstance(nested, Definition):
            raise DefinitionError(
                f"Workflow {self.id!r}: {body!r} is no step. Decorate the function with @step or @tool,"
                " or use .map(function) to reshape a value."
            )
        self._check_state(nested)
        return WorkflowNode(id=nested.id, plan=nested.complete().plan), nested

    def _check_state(self, nested: "Definition") -> None:
        """A nested workflow shares a state of the same type; any other is its own, and begins with its defaults."""
        state = nested.state
        if state is None or (self.state is not None and self.state.annotation == state.annotation):
            return
        try:
            state.validate({})
        except ValidationError as error:
            raise DefinitionError(
                f"Workflow {self.id!r}: nested workflow {nested.id!r} has a state of its own, {state.name}, that cannot"
                f" begin empty: {describe(error)} Give its fields defaults, or give {self.id!r} the same state."
            ) from None

    def _grown(self, node: Node, bindings: Mapping[str, Any], output: Any) -> "Definition":
        inside = [each.id for each in bodies(node)]
        own = [node.id] if node.id not in inside else []
        self._check_unique([*inside, *own])
        events = dict(self.events)
        for bound in bindings.values():
            if isinstance(bound, Definition):
                events |= bound.events
        plan = self.plan.model_copy(update={"nodes": (*self.plan.nodes, node)})
        return replace(self, plan=plan, bindings={**self.bindings, **bindings}, output=output, events=events)

    def _ids(self) -> set[str]:
        return {id for node in self.plan.nodes for id in (node.id, *(each.id for each in bodies(node)))}

    def _check_unique(self, ids: Iterable[str]) -> None:
        seen = self._ids()
        for id in ids:
            if id in seen:
                raise DefinitionError(
                    f"Workflow {self.id!r} has two steps with id {id!r}."
                    f" Give the second use another id: {id}.with_id('{id}_2')."
                )
            seen.add(id)

    def _container_id(self, id: str | None, default: str) -> str:
        return checked_id(id, default) if id else self._free_id(default)

    def _free_id(self, wanted: str) -> str:
        taken = self._ids()
        number, free = 1, wanted
        while free in taken:
            number += 1
            free = f"{wanted}_{number}"
        return free

    def _before(self) -> str:
        return repr(self.plan.nodes[-1].id) if self.plan.nodes else "the workflow's input"

    def _check_fits(
        self, node: Node, bound: "Step[Any, Any, Any] | Definition", given: Any, source: str | None = None
    ) -> None:
        """Refuse a body that cannot take ``given``, what ``source`` (by default the node before) returns."""
        problem = misfit(given, bound.input.annotation, bound.parameters if isinstance(bound, Step) else None)
        if problem is not None:
            raise DefinitionError(
                f"Workflow {self.id!r}: {node.id!r} {problem}, but {source or self._before()} gives"
                f" {annotation_name(given)}. Change one of the annotations, or put .map(...) in between."
            )


def _output(bound: "Step[Any, Any, Any] | Definition") -> Any:
    if isinstance(bound, Step):
        return bound.output.annotation
    return bound.output if bound.declared_output is None else bound.declared_output.annotation


def _function(fn: Callable[..., Any], name: str, what: str, localns: Locals) -> Step[Any, Any, Any]:
    if not callable(fn):
        raise DefinitionError(f"A {what} must be a function of (value) or (value, ctx), got {fn!r}.")
    fn = _conversion(fn) if isinstance(fn, type) and fn.__module__ == "builtins" else fn
    made = Step.of(fn, id="x", what=what, localns=dict(localns), description="", runs_inline=True)
    made.id, made.span_name = name, f"step {name}"  # ids of conditions hold characters that users' ids may not
    return made


def _conversion(kind: type) -> Callable[[Any], Any]:
    """Return what ``str``, ``bool`` and the like do to a value: they have no signature of their own to read."""

    def convert(value: Any) -> Any:
        return kind(value)

    convert.__annotations__["return"] = kind
    return convert


def _pair(arm: Any, workflow_id: str) -> tuple[Callable[..., Any], StepLike]:
    if not (isinstance(arm, tuple) and len(arm) == 2):  # pyright: ignore[reportUnknownArgumentType]  # bad input
        raise DefinitionError(f"Workflow {workflow_id!r}: branch() takes (condition, step) pairs, got {arm!r}.")
    return arm  # pyright: ignore[reportUnknownVariableType]  # checked just above


def _retry_plan(retry: Retry) -> RetryPlan:
    def names(kinds: type[Exception] | tuple[type[Exception], ...]) -> tuple[str, ...]:
        each = kinds if isinstance(kinds, tuple) else (kinds,)
        return tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in each)

    return RetryPlan(
        max_attempts=retry.max_attempts,
        delay=retry.delay,
        backoff=retry.backoff,
        max_delay=retry.max_delay,
        jitter=retry.jitter,
        retry_on=names(retry.retry_on),
        give_up_on=names(retry.give_up_on),
    )


def _gone(workflow_id: str, name: str, bindings: Mapping[str, Any]) -> str:
    return (
        f"The run was started with a plan of workflow {workflow_id!r} that names {name!r}, which the workflow no"
        f" longer has (it has {', '.join(sorted(bindings)) or 'nothing'})."
        " Bring the step back under this id to finish the run."
    )
