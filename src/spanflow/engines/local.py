"""The in-process engine: runs as asyncio tasks, one for each run that executes; a suspended run is only rows."""

from collections.abc import AsyncIterator
from contextvars import copy_context
from typing import Any

from spanflow.clock import Clock
from spanflow.engines.drive import Drive, Launch
from spanflow.errors import RunConflict, RunNotFound
from spanflow.events import Event
from spanflow.lease import Lease
from spanflow.ports import Message, Store
from spanflow.schema import Schema
from spanflow.state import RunState
from spanflow.stream import Subscription


class LocalEngine:
    """Executes runs in this process. ``start``, resume and restart are one verb: continue from the journal."""

    def __init__(self, store: Store, clock: Clock, lease: Lease | None = None) -> None:
        self.store = store
        self.clock = clock
        self.lease = lease
        self._drives: dict[str, Drive] = {}
        self._starting: set[str] = set()
        self._resume_schemas: dict[str, dict[str, Schema[Any]]] = {}

    async def start(self, launch: Launch) -> Drive:
        """Continue a run from its journal. Raises RunConflict where somebody else has."""
        run_id = launch.record.run_id
        launch.lease = self.lease
        if run_id in self._drives or run_id in self._starting:
            raise RunConflict(f"Run {run_id!r} executes here already.", run_id=run_id)
        self._starting.add(run_id)
        try:
            if launch.state.seq > 0:
                launch.resume_schemas = self._resume_schemas.get(run_id, {})
                await self._claim(launch)
            drive = Drive(launch, self.store, self.clock)
            try:
                await drive.begin()
            except BaseException:
                await self._release(run_id)
                raise
            self._drives[run_id] = drive
        finally:
            self._starting.discard(run_id)
        drive.launch(copy_context(), self._ended)
        return drive

    async def refuse_taken(self, run_id: str) -> None:
        """Raise RunConflict where the store has a run of this id."""
        try:
            await self.store.load(run_id)
        except RunNotFound:
            return
        raise RunConflict(
            f"Run {run_id!r} already exists. Leave run_id out for a new one, or continue it with get_run().",
            run_id=run_id,
        )

    async def end_canceled(self, launch: Launch) -> Drive:
        """End a run that nobody executes, e.g. a suspended one, as canceled."""
        await self._claim(launch)
        drive = Drive(launch, self.store, self.clock)
        await drive.end_canceled()
        self._ended(drive)
        return drive

    async def load_state(self, run_id: str) -> RunState:
        """Fold a run's journal."""
        record = await self.store.load(run_id)
        state = RunState(restored=not self.values_are_live)
        state.values[""] = dict(record.initial_state)
        page = await self.store.read(run_id)
        while page:
            for entry in page:
                state.apply(entry)
            page = await self.store.read(run_id, after=state.seq)
        return state

    @property
    def values_are_live(self) -> bool:
        """Whether the store gives back the very objects it was given, not their JSON."""
        return bool(getattr(self.store, "is_live", False))

    def executing(self, run_id: str) -> Drive | None:
        """Return the stretch that is executing here, if one is."""
        return self._drives.get(run_id)

    def resume_schema(self, run_id: str, path: str) -> Schema[Any] | None:
        """Return what a suspended step of this process wants as its answer."""
        drive = self._drives.get(run_id)
        schemas = self._resume_schemas.get(run_id, {}) if drive is None else drive.resume_schemas
        return schemas.get(path)

    async def cancel(self, run_id: str) -> None:
        """Cancel what is executing here, and return when it has ended."""
        drive = self._drives.get(run_id)
        if drive is not None:
            drive.cancel()
            await drive.ended()

    async def send(self, run_id: str, message: Message) -> None:
        """Keep a message for a run, and wake it."""
        await self.store.post(run_id, message)
        drive = self._drives.get(run_id)
        if drive is not None:
            drive.post(message)

    def observe(self, run_id: str, after: int) -> AsyncIterator[Event]:
        """Replay what was recorded, then follow."""
        drive = self._drives.get(run_id)
        return Subscription(self.store, run_id, drive.journal.feed if drive else None, after=after)

    async def keep_alive(self) -> None:
        """Show a sign of life for all that executes here, and stop what somebody else has taken over."""
        lease = self.lease
        if lease is None:
            return
        mine, until = list(self._drives.values()), lease.until()
        kept = await self.store.renew(lease.owner, lease_until=until) if mine else frozenset[str]()
        lease.ends = until
        for drive in mine:
            if drive.run_id not in kept and not drive.over:
                drive.interrupt()

    async def aclose(self) -> None:
        """Stop all that executes here. Runs in memory are canceled; of others the lease is given back at once."""
        for drive in list(self._drives.values()):
            if self.values_are_live:
                drive.cancel()
            else:
                drive.interrupt()
            await drive.ended()
            await self._release(drive.run_id)

    async def _claim(self, launch: Launch) -> None:
        run_id = launch.record.run_id
        if self.lease is None:
            return
        now, until = self.lease.now(), self.lease.until()
        if not await self.store.claim(run_id, self.lease.owner, now=now, lease_until=until):
            raise RunConflict(f"Run {run_id!r} executes in another process, which is alive.", run_id=run_id)

    async def _release(self, run_id: str) -> None:
        if self.lease is not None:
            await self.store.release(run_id, self.lease.owner)

    def _ended(self, drive: Drive) -> None:
        run_id = drive.run_id
        if self._drives.get(run_id) is drive:
            del self._drives[run_id]
        if drive.state.status == "suspended":
            self._resume_schemas[run_id] = drive.resume_schemas
        else:
            self._resume_schemas.pop(run_id, None)
