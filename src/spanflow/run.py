"""A run, as its user holds it: start it, stream it, answer it, cancel it, watch it."""

import asyncio
import reprlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, Generic

from pydantic import BaseModel
from typing_extensions import TypeVar

from spanflow.context import HasResult
from spanflow.definition import Definition
from spanflow.engines.drive import ANNOUNCE_AFTER, Drive
from spanflow.engines.launch import Launch
from spanflow.engines.local import LocalEngine
from spanflow.engines.travelling import travel
from spanflow.errors import InvalidInput, NotSuspended, RunConflict, UnknownEvent
from spanflow.events import Event, Resumed
from spanflow.inputs import json_copy, json_mapping, new_id, require_storable, schema_named, validated
from spanflow.options import NAME, is_name
from spanflow.ports import Message, RunRecord
from spanflow.result import WorkflowResult, result_of
from spanflow.schema import Schema, fields_of
from spanflow.state import RunState
from spanflow.stream import Subscription
from spanflow.tracing.options import TracingContext, TracingOptions
from spanflow.tracing.roots import open_run, reopen_run
from spanflow.tracing.spans import ambient_link

In_contra = TypeVar("In_contra", contravariant=True, default=Any)
Out_co = TypeVar("Out_co", covariant=True, default=Any)

_NO_OPTIONS = TracingOptions()


class RunStream(AsyncIterator[Event], Generic[Out_co]):
    """A subscription to one stretch of a run, from its ``start`` to its ``finish``. Leaving it does not stop the run.

    Attributes:
        run_id: the run.
        trace_id: 32 hex digits, known before the first event; None only where no tracer provider is configured.

    Example:
        >>> import asyncio
        >>> from spanflow import Workflow, step
        >>> @step
        ... async def double(value: int) -> int:
        ...     return 2 * value
        >>> async def main() -> None:
        ...     run = await Workflow("twice", input=int).then(double).create_run()
        ...     stream = await run.stream(21)
        ...     async for event in stream:
        ...         print(event.type)
        ...     print((await stream.get_workflow_state()).unwrap())
        >>> asyncio.run(main())
        start
        step-start
        step-result
        step-finish
        finish
        42
    """

    def __init__(self, run: "Run[Any, Out_co]", drive: Drive, subscription: Subscription) -> None:
        self._run = run
        self._drive = drive
        self._subscription = subscription
        self.run_id = run.run_id
        self.trace_id = drive.root.trace_id

    @property
    def stream(self) -> AsyncIterator[Event]:
        """The events; the same as iterating over this object."""
        return self

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._subscription

    def __anext__(self) -> Awaitable[Event]:
        return self._subscription.__anext__()

    async def get_workflow_state(self) -> WorkflowResult[Out_co]:
        """Return the result, once the run has ended or suspended."""
        return await self._run.result_of_stretch(self._drive)

    async def aclose(self) -> None:
        """Stop reading. The run goes on."""
        self._subscription.close()


class Run(Generic[In_contra, Out_co]):
    """One execution of a workflow. Made by ``workflow.create_run()`` or ``runtime.create_run(workflow)``.

    Attributes:
        run_id: its id, given or made up.

    Example:
        >>> import asyncio
        >>> from pydantic import BaseModel
        >>> from spanflow import StepContext, Workflow, step
        >>> class Approval(BaseModel):
        ...     approved: bool
        >>> @step
        ... async def publish(text: str, ctx: StepContext) -> str:
        ...     decision = await ctx.suspend({"publish?": text}, resume=Approval)
        ...     return f"published {text}" if decision.approved else "kept"
        >>> async def main() -> None:
        ...     run = await Workflow("press", input=str).then(publish).create_run()
        ...     result = await run.start("the news")
        ...     print(result.status, result.suspended)
        ...     result = await run.resume(Approval(approved=True))
        ...     print(result.unwrap())
        >>> asyncio.run(main())
        suspended {'publish': {'publish?': 'the news'}}
        published the news
    """

    def __init__(
        self,
        definition: Definition,
        engine: LocalEngine,
        *,
        run_id: str | None = None,
        resource_id: str | None = None,
        deps: Any = None,
        record: RunRecord | None = None,
    ) -> None:
        self.run_id = run_id or new_id()
        self._is_named = run_id is not None
        self._definition = definition
        self._engine = engine
        self._resource_id = resource_id
        self._deps = deps
        self._record = record
        self._sent_early: list[Message] = []
        self._answering: set[str] = set()
        self._resuming: asyncio.Lock | None = None

    @property
    def workflow_id(self) -> str:
        return self._definition.id

    @property
    def trace_id(self) -> str | None:
        """The trace id, once the run is started. Where each stretch has a trace of its own, that of the first."""
        return None if self._record is None else self._record.trace.trace_id

    # --- starting

    async def stream(
        self,
        input_data: In_contra,
        *,
        initial_state: BaseModel | Mapping[str, Any] | None = None,
        runtime_context: Mapping[str, Any] | None = None,
        tracing_context: TracingContext | None = None,
        tracing_options: TracingOptions | None = None,
    ) -> RunStream[Out_co]:
        """Start the run and return its events.

        Args:
            input_data: the workflow's input, validated.
            initial_state: the workflow's state to begin with.
            runtime_context: JSON for the steps, stored with the run.
            tracing_context: its ``current_span`` becomes the parent of the run; else the ambient span is.
            tracing_options: what the root span carries.

        Raises:
            InvalidInput: a value does not fit; nothing was recorded.
            RunConflict: the run was started before.
        """
        drive = await self._start(input_data, initial_state, runtime_context, tracing_context, tracing_options)
        return self._stream_of(drive)

    async def start(
        self,
        input_data: In_contra,
        *,
        initial_state: BaseModel | Mapping[str, Any] | None = None,
        runtime_context: Mapping[str, Any] | None = None,
        tracing_context: TracingContext | None = None,
        tracing_options: TracingOptions | None = None,
    ) -> WorkflowResult[Out_co]:
        """Start the run and return its result once it ended or suspended. Takes and raises what ``stream`` does.

        A failed step is a ``failed`` result, not an exception. To be canceled while waiting does not stop the run.
        """
        drive = await self._start(input_data, initial_state, runtime_context, tracing_context, tracing_options)
        return await self.result_of_stretch(drive)

    # --- answering

    async def resume(self, resume_data: Any = None, step: str | HasResult[Any] | None = None) -> WorkflowResult[Out_co]:
        """Answer a suspended step, and return the result once the run ended or suspended again.

        Args:
            resume_data: the answer, validated against the model that the step gave to ``suspend``.
            step: the step, its id or its path; may be left out where only one waits.

        Raises:
            NotSuspended: nothing waits for an answer, not this step, or several do and ``step`` is missing.
            InvalidInput: the answer does not fit; the step still waits.
            RunConflict: somebody else answered first.
        """
        return await self.result_of_stretch(await self._resume(resume_data, step))

    async def resume_stream(
        self, resume_data: Any = None, step: str | HasResult[Any] | None = None
    ) -> RunStream[Out_co]:
        """Answer a suspended step as ``resume`` does, and return the events of what follows."""
        return self._stream_of(await self._resume(resume_data, step))

    async def send_event(self, name: str, payload: Any = None) -> None:
        """Send an event to ``wait_for_event``. One that comes early is kept.

        A run that waits for it in another process has it within half a second. Until the run is started, events are
        kept in this process only: there is no run yet that a store could keep them for.

        Raises:
            UnknownEvent: the workflow waits for no event of this name.
            InvalidInput: the payload does not fit.
            RunConflict: the run is over.
        """
        schema = self._definition.events.get(name)
        if schema is None:
            raise UnknownEvent(name, workflow_id=self.workflow_id, known=sorted(self._definition.events))
        what = f"event {name!r}"
        message = Message(id=uuid.uuid4().hex, name=name, payload=validated(schema, payload, what))
        self._require_storable(message.payload, what)
        if self._record is None:
            self._sent_early.append(message)
            return
        state = await self._state()
        if state.ended:
            raise RunConflict(
                f"Run {self.run_id!r} is over ({state.status}); event {name!r} was not kept.", run_id=self.run_id
            )
        await self._engine.send(self.run_id, message)

    # --- watching and ending

    async def wait(self) -> WorkflowResult[Out_co]:
        """Return the result once the run has ended or suspended, wherever it executes."""
        while True:
            drive = self._engine.executing(self.run_id)
            if drive is not None:
                return await self.result_of_stretch(drive)
            state = await self._state()
            if state.status != "running" or self._engine.values_are_live:
                return self._result(state)
            async for _ in self.observe_stream(after=state.seq):  # until it ends or suspends, in another process
                pass

    def observe_stream(self, after: int = 0) -> AsyncIterator[Event]:
        """Replay the recorded events with ``seq > after``, then follow until the run ends or suspends."""
        return self._engine.observe(self.run_id, after)

    async def cancel(self) -> WorkflowResult[Out_co]:
        """Cancel running steps at once, and return the result. A run that is over stays as it is.

        A run that executes in another process is told there, within half a second, and this returns once it has
        ended. Should that process die, the run is ended here. Steps that do not let themselves be canceled are
        waited for.

        Raises:
            RunConflict: the run was not started.
        """
        record = self._record
        if record is None:
            raise RunConflict(f"Run {self.run_id!r} was not started: there is nothing to cancel.", run_id=self.run_id)
        return self._result(await self._engine.cancel(self.run_id, lambda state: self._recovered(state, record)))

    async def restart(self) -> "Run[In_contra, Out_co]":
        """Take over a run whose process died, and go on with it here. Completed steps are not run again.

        Raises:
            RunConflict: the run is over or suspended, executes here already, or its process is alive.
            DefinitionError: steps that the run still needs are gone from the workflow; the run is kept.
        """
        record = self._started("restart")
        if self._engine.executing(self.run_id) is not None:
            raise RunConflict(f"Run {self.run_id!r} executes here already.", run_id=self.run_id)
        state = await self._state()
        if state.status != "running":
            raise RunConflict(
                f"Run {self.run_id!r} is {state.status}: there is nothing to take over."
                + (" Answer it with resume()." if state.status == "suspended" else ""),
                run_id=self.run_id,
            )
        self._definition.check_plan(record.plan)
        await self._engine.start(self._recovered(state, record))
        return self

    async def time_travel(self, step: str | HasResult[Any], input_data: Any = None) -> "Run[In_contra, Out_co]":
        """Return a new run that goes back to a recorded step of this one and runs anew from there. It executes already.

        What came before the step is taken over as it is recorded, answers and state included, and is not run again:
        earlier steps, earlier iterations, and beside the step, in ``parallel``, ``foreach`` and ``branch``, all that
        succeeded. The new run has this one's input, plan, context, metadata and tags, and a trace of its own whose
        root is linked to this run's. This run stays as it is. It must not be running: cancel it first, or wait.

        Args:
            step: the step, its id or its path, such as ``"fetch[3]"``, ``"price#2"`` or ``"nested/price"``.
            input_data: what the step is given instead of what it was given then; None changes nothing.

        Raises:
            NotRecorded: the run has no record of this step, or several (say which by its path).
            InvalidInput: the input does not fit the step; nothing was recorded.
            RunConflict: this run was not started, or is running.
            DefinitionError: steps of the plan are gone from the workflow.

        Example:
            >>> import asyncio
            >>> from spanflow import Workflow, step
            >>> @step
            ... async def fetch(url: str) -> str:
            ...     print("fetching", url)
            ...     return "4 pages"
            >>> @step
            ... async def count(text: str) -> int:
            ...     return int(text.split()[0])
            >>> async def main() -> None:
            ...     run = await Workflow("pages", input=str).then(fetch).then(count).create_run()
            ...     print((await run.start("/")).unwrap())
            ...     again = await run.time_travel(step=count, input_data="5 pages")
            ...     print((await again.wait()).unwrap())
            >>> asyncio.run(main())
            fetching /
            4
            5
        """
        if self._record is None:
            raise RunConflict(f"Run {self.run_id!r} was not started: it has no past to travel to.", run_id=self.run_id)
        launch = await travel(self._engine, self._definition, self._record, step, input_data)
        launch.deps = self._deps
        await self._engine.start(launch)
        return Run(
            self._definition,
            self._engine,
            run_id=launch.record.run_id,
            resource_id=launch.record.resource_id,
            deps=self._deps,
            record=launch.record,
        )

    async def result_of_stretch(self, drive: Drive) -> WorkflowResult[Out_co]:
        """Return what a stretch of this run came to, once it is over."""
        await drive.ended()
        if drive.error is not None:
            raise drive.error
        return self._result(drive.state)

    # --- inside

    async def _start(
        self,
        input_data: Any,
        initial_state: BaseModel | Mapping[str, Any] | None,
        runtime_context: Mapping[str, Any] | None,
        tracing_context: TracingContext | None,
        tracing_options: TracingOptions | None,
    ) -> Drive:
        self._refuse_second_start()
        definition, options = self._definition, tracing_options or _NO_OPTIONS
        given = validated(definition.input, input_data, f"workflow {definition.id!r}: input_data")
        self._require_storable(given, f"workflow {definition.id!r}: input_data")
        state = self._initial_state(initial_state)
        context = json_mapping("runtime_context", runtime_context)
        if self._is_named:  # before it has a span, which could not be taken back
            await self._engine.refuse_taken(self.run_id)
            self._refuse_second_start()
        at = self._engine.clock.time_ns()
        root = open_run(
            self.run_id,
            definition.id,
            options=options,
            tracing_context=tracing_context,
            runtime_context=context,
            at=at,
        )
        record = RunRecord(
            run_id=self.run_id,
            workflow_id=definition.id,
            created_at=at,
            plan=definition.plan,
            trace=root.record,
            resource_id=self._resource_id,
            initial_state=state,
            runtime_context=context,
        )
        self._record = record
        start = {"workflow_id": definition.id, "input": given, "metadata": json_copy(options.metadata)}
        launch = Launch(record, definition, root, RunState(), start, self._deps, list(self._sent_early))
        try:
            drive = await self._engine.start(launch)
        except BaseException:
            self._record = None
            raise
        for message in self._sent_early:  # where a later stretch finds them, should this one not take them
            await self._engine.store.post(self.run_id, message)
        return drive

    async def _resume(self, data: Any, step: str | HasResult[Any] | None) -> Drive:
        record = self._started("resume")
        state = await self._state()
        path = self._suspended_path(state, step)
        answer = self._answer(state, path, data)
        if path in self._answering:
            raise RunConflict(
                f"Run {self.run_id!r}: {path!r} has just been answered by another resume().", run_id=self.run_id
            )
        self._answering.add(path)
        self._resuming = self._resuming or asyncio.Lock()
        try:
            async with self._resuming:  # answers of several steps at once take their turns
                while (executing := self._engine.executing(self.run_id)) is not None:
                    await executing.ended()
                state = await self._state()
                self._suspended_path(state, path)
                self._definition.check_plan(record.plan)
                resumed = Resumed(path=path, data=answer)
                launch = self._launch(state, record, {"workflow_id": self.workflow_id, "resumed": resumed})
                launch.resumed_by = ambient_link()
                return await self._engine.start(launch)
        finally:
            self._answering.discard(path)

    def _launch(self, state: RunState, record: RunRecord, start: dict[str, Any]) -> Launch:
        trace = record.trace if state.linked is None else record.trace.of_stretch(**dict(state.linked))
        announced = state.announced or state.last_at - trace.started_at > ANNOUNCE_AFTER * 1e9
        root = reopen_run(self.run_id, trace, announced=announced, steps_run=state.steps_run)
        return Launch(record, self._definition, root, state, start, self._deps)

    def _recovered(self, state: RunState, record: RunRecord) -> Launch:
        return self._launch(state, record, {"workflow_id": self.workflow_id, "recovered": True})

    def _stream_of(self, drive: Drive) -> RunStream[Out_co]:
        feed = drive.journal.feed
        subscription = Subscription(self._engine.store, self.run_id, feed, after=drive.first_seq - 1, one_stretch=True)
        return RunStream(self, drive, subscription)

    async def _state(self) -> RunState:
        executing = self._engine.executing(self.run_id)
        if executing is not None:
            return executing.state
        return await self._engine.load_state(self.run_id)

    def _result(self, state: RunState) -> WorkflowResult[Out_co]:
        output: Schema[Any] | None = None
        if state.restored:
            bailed = any(step.status == "bailed" for step in state.steps.values())
            output = self._definition.declared_output if bailed else self._definition.result_schema
        return result_of(state, output, self._definition.state)

    def _started(self, call: str) -> RunRecord:
        if self._record is None:
            raise NotSuspended(
                f"Run {self.run_id!r} was not started, so it cannot {call}. Use run.start() or run.stream().",
                run_id=self.run_id,
            )
        return self._record

    def _refuse_second_start(self) -> None:
        if self._record is not None:
            raise RunConflict(
                f"Run {self.run_id!r} was started before. A run executes once:"
                " create another with create_run(), or continue this one with resume().",
                run_id=self.run_id,
            )

    def _initial_state(self, given: BaseModel | Mapping[str, Any] | None) -> dict[str, Any]:
        schema = self._definition.state
        if schema is None:
            return json_mapping("initial_state", given if not isinstance(given, BaseModel) else given.model_dump())
        what = f"workflow {self.workflow_id!r}: initial_state"
        fields = fields_of(validated(schema, {} if given is None else given, what))
        self._require_storable(fields, what)
        return fields

    def _suspended_path(self, state: RunState, step: str | HasResult[Any] | None) -> str:
        """Find the one path that an answer is for."""
        waiting = list(state.suspended)
        name: str | None = step if step is None or isinstance(step, str) else step.id
        if not waiting:
            raise NotSuspended(
                f"Run {self.run_id!r} is {state.status}: nothing waits for an answer.", run_id=self.run_id
            )
        listed = ", ".join(map(repr, waiting))
        fitting = waiting if name is None else [p for p in waiting if name in (p, state.steps[p].id)]
        if name in waiting:
            fitting = [name]
        if not fitting:
            raise NotSuspended(
                f"Run {self.run_id!r}: {name!r} does not wait for an answer. Waiting: {listed}.",
                run_id=self.run_id,
                suspended=waiting,
            )
        if len(fitting) > 1:
            raise NotSuspended(
                f"Run {self.run_id!r}: several steps wait for an answer: {listed}."
                " Say which: resume(answer, step=path).",
                run_id=self.run_id,
                suspended=waiting,
            )
        return fitting[0]

    def _answer(self, state: RunState, path: str, data: Any) -> Any:
        schema = self._engine.resume_schema(self.run_id, path) or schema_named(state.steps[path].resume_type)
        what = f"the answer for {path!r}"
        answer = data if schema is None else validated(schema, data, what)
        self._require_storable(answer, what)
        return answer

    def _require_storable(self, value: Any, what: str) -> None:
        if not self._engine.values_are_live:
            require_storable(value, what)


def new_run(
    definition: Definition,
    engine: LocalEngine,
    run_id: str | None,
    resource_id: str | None,
    deps: Any,
) -> Run[Any, Any]:
    """Return a run that was not started yet."""
    if run_id is not None and not is_name(run_id):
        raise InvalidInput(f"run_id={reprlib.repr(run_id)} must be a text of {NAME}, or None for a new one.")
    if resource_id is not None and not is_name(resource_id):
        raise InvalidInput(f"resource_id={reprlib.repr(resource_id)} must be a text of {NAME}, or None.")
    return Run(definition.complete(), engine, run_id=run_id, resource_id=resource_id, deps=deps)
