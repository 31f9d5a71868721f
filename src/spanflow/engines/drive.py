"""One stretch of a run in this process: from its start or resumption until it ends or suspends."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from spanflow.clock import Clock
from spanflow.context import Place, T, enter_step
from spanflow.definition import Definition
from spanflow.engines.closing import close_open
from spanflow.engines.local_ops import LocalOps
from spanflow.errors import InvalidOutput, RunConflict
from spanflow.events import Envelope, Finish, FinishStatus, Resumed, Start, StepError
from spanflow.explain import describe
from spanflow.failure import failure
from spanflow.interpret import Bailed, Canceled, Failed, Outcome, Suspended, Value, interpret
from spanflow.journal import Journal
from spanflow.ports import Message, RunRecord, Store
from spanflow.schema import Schema
from spanflow.state import RunState
from spanflow.tracing import metrics, names
from spanflow.tracing.roots import RootScope
from spanflow.tracing.spans import Link

ANNOUNCE_AFTER = 1.0  # s: a run that lasts longer makes itself visible before it ends


@dataclass(slots=True)
class Launch:
    """All that it takes to continue a run from its journal."""

    record: RunRecord
    definition: Definition
    root: RootScope
    state: RunState
    start: dict[str, Any]
    deps: Any = None
    inbox: list[Message] = field(default_factory=lambda: [])
    resume_schemas: dict[str, Schema[Any]] = field(default_factory=lambda: {})
    resumed_by: Sequence[Link] = ()


class Drive:
    """Executes a stretch. What steps see of their run (``RunSide``), and what the engine holds of it."""

    def __init__(self, launch: Launch, store: Store, clock: Clock) -> None:
        self._launch = launch
        self._store = store
        self.clock = clock
        self.run_id = launch.record.run_id
        self.state = launch.state
        self.deps = launch.deps
        self.runtime_context: Mapping[str, Any] = launch.record.runtime_context
        self.root = launch.root
        self.resume_schemas = launch.resume_schemas
        self.journal = Journal(store, launch.state, self.run_id, launch.root.trace_id)
        self.inbox = launch.inbox
        self._arrived: asyncio.Event | None = None
        self._values_are_live = bool(getattr(store, "is_live", False))
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._task: asyncio.Task[None] | None = None
        self._on_end: Callable[[Drive], None] = _nothing
        self._finishing = False
        self._over = False
        self._canceled = False
        self._begun = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.first_seq = 1

    # --- what steps see

    def time_ns(self) -> int:
        return self.clock.time_ns()

    def record(self, kind: type[Envelope], payload: dict[str, Any], path: str, span_id: int | None, at: int) -> None:
        if threading.get_ident() == self._thread:
            self._record(kind, payload, path, span_id, at)
        else:
            self._loop.call_soon_threadsafe(self._record, kind, payload, path, span_id, at)

    def change_state(self, scope: str, values: dict[str, Any]) -> None:
        self.journal.change_state(scope, values)

    def revive(self, schema: Schema[T], value: Any) -> T:
        return schema.validate(value) if self._values_are_live else schema.restore(value)

    # --- what the engine does

    async def begin(self) -> None:
        """Record the start. Raises RunConflict where somebody else did."""
        launch, at = self._launch, self.clock.time_ns()
        self.first_seq = self.state.seq + 1
        if self.state.seq == 0:
            at = launch.record.created_at
            self.state.values[""] = dict(launch.record.initial_state)
            self.journal.record(Start, launch.start, "", self.root.span_id, at)
            await self.journal.create(launch.record)
        else:
            self.journal.record(Start, launch.start, "", self.root.span_id, at)
            await self.journal.flush()

    async def end_canceled(self) -> None:
        """Record that the run was canceled while nobody executed it."""
        await self._finish(Canceled("canceled"))
        self._end()

    def launch(self, context: Context, on_end: "Callable[[Drive], None]") -> None:
        """Execute in a task of its own, with its own copy of the caller's context."""
        self._on_end = on_end
        self._count_active(1)
        self._task = self._loop.create_task(self._run(), context=context)

    async def ended(self) -> None:
        """Return when the stretch is over. Being canceled while waiting does not stop the run."""
        if self._over:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def check_canceled(self) -> None:
        """Raise CancelledError where the run was canceled, also if a step has swallowed the first one."""
        if self._canceled:
            raise asyncio.CancelledError

    def cancel(self) -> None:
        self._canceled = True
        if self._task is not None and self._begun and not self._finishing:  # a task canceled before it runs never runs
            self._task.cancel()

    @property
    def arrived(self) -> asyncio.Event:
        """Set when a message comes. Made when somebody waits: most runs never do."""
        if self._arrived is None:
            self._arrived = asyncio.Event()
        return self._arrived

    def post(self, message: Message) -> None:
        self.inbox.append(message)
        self.arrived.set()

    def take(self, name: str) -> Message | None:
        """Take the oldest message of this name out of the inbox."""
        for message in self.inbox:
            if message.name == name:
                self.inbox.remove(message)
                return message
        return None

    def resumed_by(self, path: str) -> Sequence[Link]:
        """Return links to whoever resumed this stretch, for the step at ``path``."""
        resumed: Resumed | None = self._launch.start.get("resumed")
        return self._launch.resumed_by if resumed is not None and resumed.path == path else ()

    def announce_before(self, moment: int | None) -> None:
        """Make the run visible now if it will wait until then, long after it started."""
        if moment is None or moment - self.state.started_at > ANNOUNCE_AFTER * 1e9:
            self.root.announce()

    def _record(self, kind: type[Envelope], payload: dict[str, Any], path: str, span_id: int | None, at: int) -> None:
        known = self.state.steps.get(path)
        if self._finishing or (known is not None and known.status != "running"):
            return  # a thread or task that outlived its step, or the run
        if not kind.lifecycle:
            self.journal.stream(kind, payload, path, span_id, at)
            return
        self.journal.record(kind, payload, path, span_id, at)
        self.journal.flush_soon()

    async def _run(self) -> None:
        definition, root = self._launch.definition, self.root
        self._begun = True
        enter_step(None)
        root.enter()
        self._loop.call_soon(self._arm)
        given = self.revive(definition.input, self.state.input)
        place = Place(self, definition.id, "", given, definition.state, "")
        outcome: Outcome | None
        try:
            self.check_canceled()
            if root.spans.captures_input:
                root.capture_input(names.RUN_INPUT, given, definition.input.annotation)
            outcome = await interpret(
                self._launch.record.plan, Value(given, ""), LocalOps(self, root, definition, place)
            )
        except asyncio.CancelledError:
            outcome = Canceled("canceled")
        except RunConflict:  # somebody else drives this run now: it is theirs to finish
            outcome = None
        except Exception as error:
            outcome = Failed(failure(error, ""), recorded=False)
        finally:
            if self._timer is not None:
                self._timer.cancel()
        self._finishing = True
        if self._canceled and outcome is not None:
            outcome = Canceled("canceled")
        self._count_active(-1)
        try:
            if outcome is not None:
                await self._finish(outcome)
        finally:
            self._end()

    async def _finish(self, outcome: Outcome) -> None:
        root, definition = self.root, self._launch.definition
        if isinstance(outcome, Value | Bailed):
            outcome = self._checked(outcome, definition)
        at = self.clock.time_ns()
        status: FinishStatus = "success"
        problem: StepError | None = None
        value = Value(None, None)
        match outcome:
            case Value():
                value = outcome
            case Bailed():
                value = outcome.value
            case Failed():
                status, problem = "failed", outcome.problem
            case Suspended():
                status = "suspended"
            case Canceled():
                status = "canceled"
        if status == "suspended":
            root.announce()
        else:
            if self.state.unfinished:
                close_open(self, at)
            if status == "success":
                root.capture_output(names.RUN_OUTPUT, value.data, definition.output)
            error = outcome.exception if isinstance(outcome, Failed) else None
            root.finish(at, status, error, record=isinstance(outcome, Failed) and not outcome.recorded)
            if root.spans.measures:
                seconds = (at - self.state.started_at) / 1e9
                root.measure(metrics.workflow_duration, seconds, {names.WORKFLOW_NAME: definition.id}, error)
        if not root.spans.ends_inline:
            await root.spans.settle()
        counts = self.state.counts_with(root.spans.ended, root.spans.lost)
        payload: dict[str, Any] = {
            "status": status,
            "result": value.data,
            "result_ref": value.ref,
            "error": problem,
            "suspended": self.state.suspended if status == "suspended" else {},
            "duration": (at - self.state.started_at) / 1e9,
            "counts": counts,
        }
        self.journal.record(Finish, payload, "", root.span_id, at)
        await self.journal.flush()

    def _arm(self) -> None:
        """Set the timer of the announcement, for a run that outlives a turn of the event loop."""
        if not self._finishing:
            self._timer = self._loop.call_later(ANNOUNCE_AFTER, self._announce)

    def _announce(self) -> None:
        """Announce the run, unless its own clock says that it is not old enough."""
        if self.clock.time_ns() - self.state.started_at >= ANNOUNCE_AFTER * 1e9:
            self.root.announce()
        else:
            self._arm()

    def _count_active(self, change: int) -> None:
        if self.root.spans.measures:
            metrics.count_active(change, self.state.workflow_id)

    def _end(self) -> None:
        """Let go of the run, and tell all who wait for it."""
        self._over = True
        self._on_end(self)
        self.journal.feed.close()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _checked(self, outcome: Value | Bailed, definition: Definition) -> Outcome:
        """Validate a result against the output that the workflow declares."""
        schema = definition.declared_output
        if schema is None:
            return outcome
        value = outcome.value if isinstance(outcome, Bailed) else outcome
        try:
            return Value(schema.validate(value.data), value.ref)
        except ValidationError as error:
            problem = InvalidOutput(
                f"Workflow {definition.id!r} must give {schema.name}: {describe(error, schema.annotation)}"
            )
            return Failed(failure(problem, ""), recorded=False)


def _nothing(drive: Drive) -> None:
    """What happens at the end of a stretch that nobody holds."""
