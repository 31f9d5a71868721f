"""The in-process engine: runs as asyncio tasks, one for each run that executes; a suspended run is only rows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from typing import Any

from spanflow.clock import Clock
from spanflow.engines.drive import Drive
from spanflow.engines.launch import Launch
from spanflow.engines.watch import Watch
from spanflow.entries import Entry
from spanflow.errors import RunConflict, RunNotFound
from spanflow.events import Event
from spanflow.inputs import new_id
from spanflow.lease import Lease
from spanflow.ports import CANCEL, Message, Store
from spanflow.schema import Schema
from spanflow.state import RunState
from spanflow.stream import Subscription

_LOOK = 0.1  # s between two looks at a run that was told to cancel


class LocalEngine:
    """Executes runs in this process. ``start``, resume and restart are one verb: continue from the journal."""

    def __init__(self, store: Store, clock: Clock, lease: Lease | None = None) -> None:
        self.store = store
        self.clock = clock
        self.lease = lease
        self._drives: dict[str, Drive] = {}
        self._starting: set[str] = set()
        self._resume_schemas: dict[str, dict[str, Schema[Any]]] = {}
        self._watch = None if lease is None else Watch(store, lease, self._drives)

    async def start(self, launch: Launch) -> Drive:
        """Continue a run from its journal. Raises RunConflict where somebody else has."""
        run_id, continued = launch.record.run_id, launch.state.seq > 0
        self._reserve(launch)
        try:
            if continued:
                launch.resume_schemas = self._resume_schemas.get(run_id, {})
                await self._claim(run_id)
            drive = Drive(launch, self.store, self.clock)
            try:
                await drive.begin()
                if continued:
                    for message in await self.store.messages(run_id):
                        drive.post(message)
            except BaseException:
                await self._release(run_id)
                raise
            self._drives[run_id] = drive
        finally:
            self._starting.discard(run_id)
        if self._watch is not None:
            self._watch.begin()
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

    async def load_state(self, run_id: str, seen: list[Entry] | None = None) -> RunState:
        """Fold a run's journal. Its events are added to ``seen``."""
        record = await self.store.load(run_id)
        state = RunState(restored=not self.values_are_live)
        state.values[""] = dict(record.initial_state)
        await self._catch_up(run_id, state, seen)
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

    async def cancel(self, run_id: str, continued: Callable[[RunState], Launch]) -> RunState:
        """End a run as canceled, wherever it executes, and return its state. One that is over stays as it is.

        One whose process is alive is told by a message, and awaited. One without a process is ended here, also where
        its process dies meanwhile: ``continued`` gives what that takes, as for a run that is taken over.
        """
        told = False
        await self._cancel_here(run_id)
        state = await self.load_state(run_id)
        while not state.ended:
            known = state.seq
            try:
                if state.status == "suspended":
                    await self._end_canceled(continued(state))
                    continue
                if not told:
                    await self.store.post(run_id, Message(id=new_id(), name=CANCEL))
                    told = True
                drive = await self.start(continued(state))  # finds the message, and goes no further
                await drive.ended()
                if drive.error is not None:
                    raise drive.error
            except RunConflict:  # its process is alive and will find the message, or somebody else was faster
                await asyncio.sleep(_LOOK)
                await self._cancel_here(run_id)
                if state.seq == known:
                    await self._catch_up(run_id, state)
                else:  # it holds what could not be stored
                    state = await self.load_state(run_id)
        return state

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

    async def aclose(self) -> None:
        """Stop all that executes here. Runs in memory are canceled; of others the lease is given back at once."""
        for drive in list(self._drives.values()):
            if self.values_are_live:
                drive.cancel()
            else:
                drive.interrupt()
            await drive.ended()
            await self._release(drive.run_id)
        if self._watch is not None:
            await self._watch.aclose()

    async def _end_canceled(self, launch: Launch) -> None:
        """End a suspended run as canceled. Raises RunConflict where somebody else has gone on with it."""
        run_id = launch.record.run_id
        self._reserve(launch)
        try:
            await self._claim(run_id)
            try:
                if await self.store.read(run_id, after=launch.state.seq, limit=1):
                    raise RunConflict(f"Run {run_id!r} was continued meanwhile.", run_id=run_id)
                drive = Drive(launch, self.store, self.clock)
                await drive.end_canceled()
            except BaseException:
                await self._release(run_id)
                raise
        finally:
            self._starting.discard(run_id)
        self._ended(drive)

    async def _cancel_here(self, run_id: str) -> None:
        drive = self._drives.get(run_id)
        if drive is not None:
            drive.cancel()
            await drive.ended()

    async def _catch_up(self, run_id: str, state: RunState, seen: list[Entry] | None = None) -> None:
        """Apply what was recorded since."""
        while page := await self.store.read(run_id, after=state.seq):
            for entry in page:
                state.apply(entry)
            if seen is not None:
                seen += page

    def _reserve(self, launch: Launch) -> None:
        """Keep a run from being started here twice."""
        run_id = launch.record.run_id
        if run_id in self._drives or run_id in self._starting:
            raise RunConflict(f"Run {run_id!r} executes here already.", run_id=run_id)
        lease = launch.lease = self.lease
        if lease is not None and not self._drives and not self._starting:
            lease.ends = lease.until()  # nobody was there to show signs of life for
        self._starting.add(run_id)

    async def _claim(self, run_id: str) -> None:
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
        if self._watch is not None and not self._drives:
            self._watch.end()
