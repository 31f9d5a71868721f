"""One stretch of a run in this process: from its start or resumption until it ends or suspends."""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from functools import partial
from typing import Any, cast

from pydantic import ValidationError

from spanflow.clock import Clock, RunClock
from spanflow.context import Done, Place, Recording, T, enter_step
from spanflow.definition import Definition
from spanflow.engines.closing import close_lost, close_open, end_frames
from spanflow.engines.launch import Launch
from spanflow.engines.local_ops import LocalOps
from spanflow.entries import RunIds
from spanflow.errors import DefinitionError, InvalidOutput, RunConflict, RunInterrupted, SpanflowError, StoreError
from spanflow.events import Envelope, Finish, FinishStatus, Resumed, Start, StepError
from spanflow.explain import describe
from spanflow.failure import failure
from spanflow.inputs import require_storable
from spanflow.interpret import Bailed, Canceled, Failed, Outcome, Suspended, Value, interpret
from spanflow.journal import Journal
from spanflow.plan import Plan
from spanflow.ports import CANCEL, Message, Store
from spanflow.schema import Schema
from spanflow.state import ABORTED
from spanflow.tracing import metrics, names
from spanflow.tracing.metadata import clean
from spanflow.tracing.spans import Link

_TURN = Done()

ANNOUNCE_AFTER = 1.0  # s: a run that lasts longer makes itself visible before it ends


class Drive:
    """Executes a stretch. What steps see of their run (``RunSide``), and what the engine holds of it."""

    def __init__(self, launch: Launch, store: Store, clock: Clock) -> None:
        launch.begin_trace(clock)
        self._launch = launch
        self._store = store
        self.stores_json = not getattr(store, "is_live", False)
        self._values_are_live = not launch.state.restored
        self.clock = RunClock(clock, launch.state.last_at)
        self.run_id = launch.record.run_id
        self.state = launch.state
        self.deps = launch.deps
        self.runtime_context: Mapping[str, Any] = launch.record.runtime_context
        self.root = launch.root
        self.resume_schemas = launch.resume_schemas
        trace_id, first = launch.root.trace_id, launch.record.trace.trace_id
        ids = RunIds(self.run_id, trace_id, elsewhere=trace_id != first)
        self.journal = Journal(store, launch.state, ids, self._stop)
        if self.stores_json:
            self.journal.settle_before_append(self._settles())
        self.error: SpanflowError | None = None
        self._inbox = {message.id: message for message in launch.inbox}
        self._arrived: asyncio.Event | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._task: asyncio.Task[None] | None = None
        self._on_end: Callable[[Drive], None] = _nothing
        self._finishing = False
        self._over = False
        self._canceled = False
        self._interrupted = False
        self.stopping = False  # also where a step has swallowed its CancelledError
        self._begun = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._handed_over: deque[Callable[[], None]] = deque()
        self.first_seq = 1

    # --- what steps see

    @property
    def plan(self) -> Plan:
        """The plan that the run was started with."""
        return self._launch.record.plan

    def time_ns(self) -> int:
        return self.clock.time_ns()

    def record(
        self, step: Recording, kind: type[Envelope], payload: dict[str, Any], span_id: int | None, at: int
    ) -> None:
        if threading.get_ident() == self._thread:
            self._record(step, kind, payload, span_id, at)
        else:
            self._hand_over(partial(self._record, step, kind, payload, span_id, at))

    async def stored(self) -> None:
        if self.root.spans.room.crowded:
            await self.root.spans.room.room()
        if threading.get_ident() == self._thread and not self.journal.flushes_in_turn():
            await self.journal.flush()

    def change_state(self, scope: str, values: dict[str, Any], by: str) -> None:
        if threading.get_ident() == self._thread:
            self.journal.change_state(scope, values, by)
        else:  # who changes it sees that at once
            self.state.values.setdefault(scope, {}).update(values)
            self._hand_over(partial(self.journal.change_state, scope, values, by))

    def catch_up(self) -> None:
        while self._handed_over:
            self._handed_over.popleft()()

    def revive(self, schema: Schema[T], value: Any) -> T:
        if self._values_are_live:
            return cast("T", value)
        try:
            return schema.restore(value)
        except (
            Exception
        ) as error:  # not only ValidationError: a validator that is given its own result may raise anything
            problem = describe(error, schema.annotation) if isinstance(error, ValidationError) else repr(error)
            raise _Misfit(
                f"Run {self.run_id!r} holds a value that is no {schema.name} any more: {problem}"
                " The type has changed since it was recorded, or its validator does not take what it gives."
                " Bring back what fits; the run is kept as it is."
            ) from None

    def require_storable(self, value: Any, what: str, refusal: type[SpanflowError] = InvalidOutput) -> None:
        if self.stores_json:
            require_storable(value, what, refusal)

    # --- what the engine does

    async def begin(self) -> None:
        """Record the start. Raises RunConflict where somebody else did."""
        launch, at = self._launch, self.clock.time_ns()
        self.first_seq = self.state.seq + 1
        if self.state.seq == 0:
            at = launch.record.created_at
            self.state.values[""] = dict(launch.record.initial_state)
            if launch.past is not None:
                self.journal.carry(launch.past.changes)
            self.journal.record(Start, launch.start, "", self.root.span_id, at)
            if launch.past is not None:
                self.journal.take_over(launch.past.entries)
            await self.journal.create(launch.record, launch.lease)
        else:
            self._record_start(at)
            await self.journal.flush()  # from here on the run is ours
            close_lost(self, at)
            await self.journal.flush()

    def _record_start(self, at: int) -> None:
        """Record that the run goes on, at the moment in which its trace begins, if one does."""
        start = self._launch.start
        self.journal.record(Start, start, "", self.root.span_id, self.root.started_at if "linked" in start else at)

    async def end_canceled(self) -> None:
        """Record that the run was canceled while nobody executed it."""
        if "linked" in self._launch.start:
            self._record_start(self.root.started_at)
        await self._finish(Canceled())
        self._end()

    def launch(self, context: Context, on_end: "Callable[[Drive], None]") -> None:
        """Execute in a task of its own, with its own copy of the caller's context."""
        self._on_end = on_end
        self._count_active(1)
        self._task = self._loop.create_task(self._run(), context=context)

    @property
    def over(self) -> bool:
        return self._over

    async def ended(self) -> None:
        """Return when the stretch is over. Being canceled while waiting does not stop the run."""
        if not self._over:
            await _TURN  # a run that waits for nothing is over in the turn in which it begins
        if self._over:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _settles(self) -> Callable[[], Awaitable[None]] | None:
        """What has to be awaited before a durable append, so that a span is out before the journal says it is over."""
        spans = self.root.spans
        return None if spans.ends_inline or spans.tracer is None else spans.settle

    @property
    def leaving(self) -> bool:
        """Whether this process no longer drives the run: then nothing is recorded, and open spans stay open."""
        return self._interrupted or self.journal.broken is not None

    async def assure(self) -> None:
        """Make sure that the run is still ours, after this process may have been paused.

        Raises:
            RunConflict: somebody else has taken it over; nothing more is recorded, and no span ended.
        """
        lease = self._launch.lease
        if lease is None or not lease.is_over or self.journal.broken is not None:
            return
        now, until = lease.now(), lease.until()
        mine = await self._store.claim(self.run_id, lease.owner, now=now, lease_until=until)
        if not mine or await self.journal.is_behind():
            conflict = f"Run {self.run_id!r} was taken over while this process did not show a sign of life."
            self.journal.broken = RunConflict(conflict, run_id=self.run_id)
            raise self.journal.broken

    def interrupt(self) -> None:
        """Stop executing without ending the run: whoever comes next goes on from its journal."""
        if not self._finishing:  # what is about to be recorded is fenced by the journal
            self._interrupted = self.stopping = True
            self._stop()

    def _stop(self) -> None:
        if self._task is not None and self._begun and not self._finishing:  # a task canceled before it runs never runs
            self._task.cancel()

    def cancel(self) -> None:
        self._canceled = self.stopping = True
        self._stop()

    @property
    def arrived(self) -> asyncio.Event:
        """Set when a message comes. Made when somebody waits: most runs never do."""
        if self._arrived is None:
            self._arrived = asyncio.Event()
        return self._arrived

    def post(self, message: Message) -> None:
        """Take a message in: once, however often and from wherever it comes."""
        if message.id in self._inbox or message.id in self.state.consumed:
            return
        self._inbox[message.id] = message
        if message.name != CANCEL:
            self.arrived.set()
        elif not self._canceled:
            self.cancel()

    def take(self, name: str) -> Message | None:
        """Take the oldest message of this name out of the inbox."""
        found = next((message for message in self._inbox.values() if message.name == name), None)
        return None if found is None else self._inbox.pop(found.id)

    def resumed_by(self, path: str) -> Sequence[Link]:
        """Return links to whoever resumed this stretch, for the step at ``path``."""
        resumed: Resumed | None = self._launch.start.get("resumed")
        return self._launch.resumed_by if resumed is not None and resumed.path == path else ()

    def announce_before(self, moment: int | None) -> None:
        """Make the run visible now if it will wait until then, long after it started."""
        if self._is_ours and (moment is None or moment - self.root.started_at > ANNOUNCE_AFTER * 1e9):
            self.root.announce()

    def _record(
        self, step: Recording, kind: type[Envelope], payload: dict[str, Any], span_id: int | None, at: int
    ) -> None:
        if self._finishing or self.leaving or step.ended:
            return  # a thread or task that outlived its step, or the run
        if not kind.lifecycle:
            self.journal.stream(kind, payload, step.path, span_id, at)
            return
        self.journal.record(kind, payload, step.path, span_id, at)
        self.journal.flush_soon()

    def _hand_over(self, call: Callable[[], None]) -> None:
        """Have the loop do what a thread must not."""
        self._handed_over.append(call)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.catch_up)

    async def _run(self) -> None:
        definition, root = self._launch.definition, self.root
        self._begun = True
        enter_step(None)
        root.enter()
        self.journal.next_turn(self._arm)
        outcome: Outcome
        try:
            if self.stopping:
                raise asyncio.CancelledError
            given = self.revive(definition.input, self.state.input)
            place = Place(self, definition.id, "", given, definition.state, "", definition.schema_of)
            if root.spans.captures_input:
                root.capture_input(names.RUN_INPUT, given, definition.input.annotation)
            outcome = await interpret(
                self._launch.record.plan, Value(given, ""), LocalOps(self, root, definition, place)
            )
        except GeneratorExit:  # the loop is closing us: there is nobody left to record for
            raise
        except (KeyboardInterrupt, SystemExit):  # the process is about to end
            self._interrupted = True
            self._finishing = True
            self.error = RunInterrupted(self.run_id)
            self._end()
            raise
        except asyncio.CancelledError:  # by cancel(), or because the event loop ends
            self._interrupted = self._interrupted or (self.stores_json and not self._canceled)
            outcome = Canceled()
        except BaseException as error:
            self.error = _misfit_in(error)
            outcome = Failed(failure(error, ""), recorded=False)
        finally:
            if self._timer is not None:
                self._timer.cancel()
        self._finishing = True
        self._count_active(-1)
        try:
            if self.error is None and not self.leaving:
                await self.assure()
                await self._finish(Canceled() if self._canceled else outcome)
            elif self._interrupted and self.journal.broken is None:
                await self.journal.flush()
        except SpanflowError as error:  # the store has failed; the journal keeps what it has
            self.error = error
        finally:
            self.error = self.error or self.journal.broken
            if self.error is None and self._interrupted:
                self.error = RunInterrupted(self.run_id)
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
                if outcome.reason:
                    problem = StepError(path=outcome.path, type=ABORTED, message=clean(outcome.reason))
        if status == "suspended" and self._launch.links:
            end_frames(self, at)
            self._capture(None)
            root.finish(at, status, None, record=False)
        elif status == "suspended":
            root.announce()
        else:
            if self.state.unfinished or self.state.stretch > 1:  # an earlier stretch may have left more open than that
                close_open(self, at)
            self._capture(value if status == "success" else None)
            error = outcome.exception if isinstance(outcome, Failed) else None
            root.finish(at, status, error, record=isinstance(outcome, Failed) and not outcome.recorded)
            if root.spans.measures:
                seconds = (at - self.state.started_at) / 1e9
                root.measure(metrics.workflow_duration, seconds, {names.WORKFLOW_NAME: definition.id}, error)
        if not root.spans.ends_inline:
            await root.spans.settle()
        if root.spans.room.losing:
            await root.spans.room.drained()
        counts = self.state.counts_with(root.spans.ended, root.spans.dropped, root.spans.left_out.total)
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

    def _capture(self, result: Value | None) -> None:
        """Record input and output on the root, where asked for; one that an earlier stretch started is made first."""
        root, definition = self.root, self._launch.definition
        if not (root.spans.captures_input or root.spans.captures_output):
            return
        if self.state.stretch > 1:
            root.revive()
            root.capture_input(names.RUN_INPUT, self.state.input, definition.input.annotation)
        if result is not None:
            root.capture_output(names.RUN_OUTPUT, result.data, definition.output)

    def _arm(self) -> None:
        """Set the timer of the announcement, for a run that outlives a turn of the event loop."""
        if not self._finishing:
            self._timer = self._loop.call_later(ANNOUNCE_AFTER, self._announce)

    def _announce(self) -> None:
        """Announce the run, unless its own clock says that it is not old enough, or it may have an heir by now."""
        if self.leaving:
            return
        if self._is_ours and self.clock.time_ns() - self.root.started_at >= ANNOUNCE_AFTER * 1e9:
            self.root.announce()
        else:
            self._arm()

    @property
    def _is_ours(self) -> bool:
        """Whether nobody can have taken the run over. Where somebody may have, ``assure`` finds out."""
        lease = self._launch.lease
        return not self.leaving and (lease is None or not lease.is_over)

    def _count_active(self, change: int) -> None:
        if self.root.spans.measures:
            metrics.count_active(change, self.state.workflow_id)

    def _end(self) -> None:
        """Let go of the run, and tell all who wait for it."""
        self._over = True
        self._on_end(self)
        self.journal.close(self.error)
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


class _Misfit(DefinitionError):
    """A recorded value does not fit the type that the workflow now gives it."""


def _misfit_in(error: BaseException) -> SpanflowError | None:
    """Return what says that the workflow has changed under the run, or that the store failed: the run is then kept."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return next((found for each in group.exceptions if (found := _misfit_in(each)) is not None), None)
    return error if isinstance(error, (DefinitionError, RunConflict, StoreError)) else None


def _nothing(drive: Drive) -> None:
    """What happens at the end of a stretch that nobody holds."""
