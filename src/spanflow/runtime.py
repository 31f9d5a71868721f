"""A runtime: a store, the workflows that run on it, and the runs it executes."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from typing_extensions import TypeVar

from spanflow.clock import Clock, SystemClock
from spanflow.definition import Definition
from spanflow.engines.local import LocalEngine
from spanflow.errors import DefinitionError, InvalidInput, RunConflict, RunNotFound, SpanflowError
from spanflow.events import RunStatus
from spanflow.lease import Lease, checked_lease
from spanflow.options import is_count, is_name
from spanflow.ports import FoundRun, RunQuery, Store
from spanflow.result import WorkflowResult
from spanflow.run import Run, new_run
from spanflow.schema import Schema
from spanflow.stores.memory import MemoryStore
from spanflow.workflow import Workflow

_log = logging.getLogger("spanflow")

In = TypeVar("In")
Out = TypeVar("Out")


class Runtime:
    """Create runs on a store, and find them again.

    Use it as ``async with Runtime(store=..., workflows=[...]) as runtime``. Inside the block a runtime on a durable
    store takes over runs whose process died. At the end of the block runs that still execute are canceled where the
    store is memory; of others the lease is given back, so that any runtime can go on with them at once.

    Without the block all calls work too, and while a run executes here, the runtime shows signs of life for it and
    brings it what other processes send, as within the block. It takes over nothing by itself: call ``recover``. In the
    end call ``aclose``; else runs that still execute count as alive until their lease is over, and the store stays
    open.

    Args:
        store: where journals live; by default this process's memory.
        workflows: those whose runs may be found and continued here.
        deps: live objects for the steps, as ``ctx.deps``, where a run is given none of its own.
        clock: where runs take their time from; for tests.
        lease: seconds after which, without a sign of life, the owner of a run counts as dead. There is one every third
            of it, on the clock of the owner's machine: machines that share a store must have clocks that differ by less
            than two thirds of it, or one that is ahead takes over what another still executes. That one then stops.

    Raises:
        DefinitionError: two workflows have the same id, or one is not complete.

    Example:
        >>> import asyncio
        >>> from spanflow import Runtime, Workflow, step
        >>> @step
        ... async def double(value: int) -> int:
        ...     return 2 * value
        >>> twice = Workflow("twice", input=int).then(double)
        >>> async def main() -> None:
        ...     async with Runtime(workflows=[twice]) as runtime:
        ...         run = await runtime.create_run(twice, run_id="r-1")
        ...         await run.start(21)
        ...         found = await runtime.find_runs(workflow=twice, status="success")
        ...         print([each.run_id for each in found])
        >>> asyncio.run(main())
        ['r-1']
    """

    def __init__(
        self,
        store: Store | None = None,
        workflows: Sequence[Workflow[Any, Any]] = (),
        *,
        deps: Any = None,
        clock: Clock | None = None,
        lease: float = 15.0,
    ) -> None:
        self._store: Store = MemoryStore() if store is None else store
        owned = None if self._store.is_live else Lease(checked_lease(lease))
        self._engine = LocalEngine(self._store, clock or SystemClock(), owned)
        self._keeper: asyncio.Task[None] | None = None
        self._deps = deps
        self._definitions: dict[str, Definition] = {}
        self._left_alone: set[str] = set()
        for workflow in workflows:
            self._register(workflow)

    async def __aenter__(self) -> Self:
        if self._engine.lease is not None:
            self._keeper = asyncio.create_task(self._keep(self._engine.lease), name="spanflow-keeper")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop what executes here, give its leases back, and close the store."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        await self._engine.aclose()
        await self._store.aclose()

    async def recover(self) -> list[Run[Any, Any]]:
        """Take over the runs whose process died, and return those that now execute here.

        Completed steps are not run again; a step that was cut short runs again as its next attempt. Of several runtimes
        on one store exactly one gets each run. A runtime in an ``async with`` block does this by itself, on a period.
        """
        lease = self._engine.lease
        if lease is None:
            return []
        recovered: list[Run[Any, Any]] = []
        for run_id in await self._store.orphans(lease.now()):
            run = await self._taken_over(run_id)
            if run is not None:
                recovered.append(run)
        return recovered

    async def _taken_over(self, run_id: str) -> Run[Any, Any] | None:
        """Continue a run here; None where somebody was faster, or its workflow is not here or has changed too much."""
        try:
            run = await self.get_run(run_id)
            return await run.restart()
        except RunConflict:
            return None
        except SpanflowError as error:
            if run_id not in self._left_alone:
                self._left_alone.add(run_id)
                _log.warning("Run %s was not taken over: %s", run_id, error)
            return None

    async def _keep(self, lease: Lease) -> None:
        """Look for runs without a sign of life, as long as the runtime is open."""
        while True:
            try:
                await self.recover()
            except SpanflowError as error:  # the store is away for a while
                _log.warning("The store could not be reached to look for runs whose process died: %s", error)
            if self._keeper is None:  # we are closing, and a driver has swallowed the cancellation
                return
            await asyncio.sleep(lease.seconds / 3)

    async def create_run(
        self,
        workflow: Workflow[In, Out],
        run_id: str | None = None,
        resource_id: str | None = None,
        deps: Any = None,
    ) -> Run[In, Out]:
        """Return a new run of a workflow on this runtime's store.

        Raises:
            DefinitionError: another workflow of the same id is registered here.
        """
        known = self._definitions.get(workflow.id)
        if known is None:
            self._register(workflow)
        elif known is not workflow.definition and known.plan != workflow.plan:
            raise DefinitionError(
                f"This runtime has another workflow with id {workflow.id!r}. Give one of them another id: with_id()."
            )
        return new_run(workflow.definition, self._engine, run_id, resource_id, self._deps if deps is None else deps)

    async def get_run(self, run_id: str, deps: Any = None) -> Run[Any, Any]:
        """Return a run of this store, to watch or continue it.

        Raises:
            RunNotFound: the store has no such run.
            SpanflowError: its workflow is not among those of this runtime.
        """
        if not is_name(run_id):  # no run can have such an id, and not all databases can look for it
            raise RunNotFound(run_id)
        record = await self._store.load(run_id)
        definition = self._definitions.get(record.workflow_id)
        if definition is None:
            known = ", ".join(map(repr, self._definitions)) or "none"
            raise SpanflowError(
                f"Run {run_id!r} is of workflow {record.workflow_id!r}, which this runtime does not know"
                f" (it knows {known}). Add it: Runtime(workflows=[...])."
            )
        return Run(
            definition,
            self._engine,
            run_id=run_id,
            resource_id=record.resource_id,
            deps=self._deps if deps is None else deps,
            record=record,
        )

    async def find_runs(
        self,
        *,
        status: RunStatus | tuple[RunStatus, ...] | None = None,
        workflow: str | Workflow[Any, Any] | None = None,
        trace_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        limit: int = 100,
        after: FoundRun | None = None,
    ) -> Sequence[FoundRun]:
        """Return the runs that match all that is given, the newest first.

        Args:
            status: one, or any of several.
            workflow: it or its id.
            trace_id: 32 hex digits, as Jaeger shows it; of any of its traces, where each stretch has its own.
            metadata: keys of the root span, ``user.id`` and ``session.id`` among them, and their values.
            started_after: a time with a time zone; ``started_before`` likewise.
            limit: how many at most.
            after: the last run of the page before, for the next one.

        Raises:
            InvalidInput: a time has no time zone, or ``limit`` is no number from 1.
        """
        if not is_count(limit):
            raise InvalidInput(f"limit={limit!r} must be a whole number, at least 1.")
        wanted = workflow.id if isinstance(workflow, Workflow) else workflow
        if not all(text is None or is_name(text) for text in (wanted, trace_id)):
            return []  # nothing has such a name, and not all databases can look for it
        query = RunQuery(
            status=status,
            workflow=wanted,
            trace_id=trace_id,
            metadata=dict(metadata or {}),
            started_after=_ns("started_after", started_after),
            started_before=_ns("started_before", started_before),
            limit=limit,
            after=None if after is None else after.cursor,
        )
        return await self._store.find(query)

    async def cancel_run(self, run_id: str) -> WorkflowResult[Any]:
        """Cancel a run of this store, also one whose workflow is not among those of this runtime.

        As ``run.cancel()``, but what such a run was given is not recorded on its root span: only its workflow knows
        what of that is to be redacted.

        Raises:
            RunNotFound: the store has no such run.
        """
        record = await self._store.load(run_id)
        definition = self._definitions.get(record.workflow_id)
        if definition is None:
            definition = Definition(record.plan, Schema(Any), Any)
            record = replace(record, trace=replace(record.trace, hide_input=True, hide_output=True))
        return await Run(definition, self._engine, run_id=run_id, record=record).cancel()

    async def delete_run(self, run_id: str) -> None:
        """Forget a run and all that belongs to it.

        Raises:
            RunConflict: it executes here.
            RunNotFound: the store has no such run.
        """
        if not is_name(run_id):
            raise RunNotFound(run_id)
        if self._engine.executing(run_id) is not None:
            raise RunConflict(f"Run {run_id!r} executes here. Cancel it before it is deleted.", run_id=run_id)
        await self._store.delete(run_id)

    async def delete_ended(self, *, before: datetime) -> int:
        """Forget the runs that ended before a time (with a time zone), and return how many those were."""
        return await self._store.delete_ended(_ns("before", before) or 0)

    def _register(self, workflow: Workflow[Any, Any]) -> None:
        if workflow.id in self._definitions:
            raise DefinitionError(f"Two workflows have the id {workflow.id!r}. Give one of them another: with_id().")
        self._definitions[workflow.id] = workflow.definition.complete()


def _ns(name: str, moment: datetime | None) -> int | None:
    """Return a time as ns since the epoch."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise InvalidInput(f"{name}={moment.isoformat()} has no time zone. Give it one: datetime(..., tzinfo=UTC).")
    return int(moment.timestamp() * 1e9)
