"""The in-process engine: runs as asyncio tasks, one for each run that executes; a suspended run is only rows."""

from collections.abc import AsyncIterator
from contextvars import copy_context
from typing import Any

from spanflow.clock import Clock
from spanflow.engines.drive import Drive, Launch
from spanflow.events import Event
from spanflow.ports import Message, Store
from spanflow.schema import Schema
from spanflow.state import RunState
from spanflow.stream import Subscription


class LocalEngine:
    """Executes runs in this process. ``start``, resume and restart are one verb: continue from the journal."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self._drives: dict[str, Drive] = {}
        self._resume_schemas: dict[str, dict[str, Schema[Any]]] = {}

    async def start(self, launch: Launch) -> Drive:
        """Continue a run from its journal. Raises RunConflict where somebody else has."""
        run_id = launch.record.run_id
        launch.resume_schemas = self._resume_schemas.get(run_id, {})
        drive = Drive(launch, self.store, self.clock)
        await drive.begin()
        self._drives[run_id] = drive
        drive.launch(copy_context(), self._ended)
        return drive

    async def end_canceled(self, launch: Launch) -> Drive:
        """End a run that nobody executes, e.g. a suspended one, as canceled."""
        drive = Drive(launch, self.store, self.clock)
        await drive.end_canceled()
        self._ended(drive)
        return drive

    async def load_state(self, run_id: str) -> RunState:
        """Fold a run's journal."""
        state, page = RunState(), await self.store.read(run_id)
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

    async def aclose(self) -> None:
        """Cancel all that executes here."""
        for run_id in list(self._drives):
            await self.cancel(run_id)

    def _ended(self, drive: Drive) -> None:
        run_id = drive.run_id
        if self._drives.get(run_id) is drive:
            del self._drives[run_id]
        if drive.state.status == "suspended":
            self._resume_schemas[run_id] = drive.resume_schemas
        else:
            self._resume_schemas.pop(run_id, None)
