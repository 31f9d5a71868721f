"""Look after the runs that execute here: show signs of life, and bring them what other processes have sent."""

import asyncio
import logging
from collections.abc import Mapping
from contextvars import Context

from spanflow.engines.drive import Drive
from spanflow.errors import SpanflowError
from spanflow.lease import Lease
from spanflow.ports import Store

_log = logging.getLogger("spanflow")

_PERIOD = 0.25  # s that a message may lie in the store before a run that waits for it has it


class Watch:
    """Looks into the store on a period, with one query for all runs, as long as any of them executes here.

    It holds a timer between two looks, no task: when nothing executes any more, nothing of it is left.
    """

    def __init__(self, store: Store, lease: Lease, drives: Mapping[str, Drive]) -> None:
        self._store = store
        self._lease = lease
        self._drives = drives
        self._brought: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._renew_at = 0.0
        self._is_away = False

    def begin(self) -> None:
        """Look after the runs that execute here, from now on."""
        if self._timer is None and self._looking is None:
            self._renew_at = asyncio.get_running_loop().time() + self._lease.seconds / 3
            self._set_timer()

    def end(self) -> None:
        """Stop, if nothing executes here any more."""
        if self._timer is not None and not self._drives:
            self._timer.cancel()
            self._timer = None

    async def aclose(self) -> None:
        """Return when the store is not looked into any more."""
        self.end()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    def _set_timer(self) -> None:
        period = min(_PERIOD, self._lease.seconds / 3)
        self._timer = asyncio.get_running_loop().call_later(period, self._begin_look, context=Context())

    def _begin_look(self) -> None:
        self._timer = None
        self._looking = asyncio.get_running_loop().create_task(self._look(), name="spanflow-watch")

    async def _look(self) -> None:
        try:
            now = asyncio.get_running_loop().time()
            if now >= self._renew_at:
                await self._show_life()
                self._renew_at = now + self._lease.seconds / 3
            await self._bring_messages()
            self._is_away = False
        except SpanflowError as error:  # the store is away for a while; leases outlive a few missed signs
            if not self._is_away:
                self._is_away = True
                _log.warning("The store could not be reached to look after the runs that execute here: %s", error)
        finally:
            self._looking = None
            if self._drives:
                self._set_timer()

    async def _show_life(self) -> None:
        """Extend the leases of all that executes here, and stop what somebody else has taken over."""
        lease, mine = self._lease, list(self._drives.values())
        until = lease.until()
        kept = await self._store.renew(lease.owner, lease_until=until)
        lease.ends = until
        for drive in mine:
            if drive.run_id not in kept and not drive.over:
                drive.interrupt()

    async def _bring_messages(self) -> None:
        """Give each run what was posted since the last look. What it has already it does not take again."""
        brought: dict[str, int] = {}
        for run_id, count in (await self._store.posted(self._lease.owner)).items():
            drive = self._drives.get(run_id)
            if drive is None:  # it is about to begin, and reads its messages by itself
                continue
            if count != self._brought.get(run_id):
                for message in await self._store.messages(run_id):
                    drive.post(message)
            brought[run_id] = count
        self._brought = brought
