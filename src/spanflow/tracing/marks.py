"""Wait for the thread that exports: as a task of an event loop, which never blocks, or as a thread, which may."""

import asyncio
import threading

EXPORTS = "spanflow-export"
"""The name of threads that export."""


class Mark:
    """Set when the worker comes to it; awaited by a task or waited for by a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._reached = threading.Event()
        self._awaited = None if loop is None else asyncio.Event()

    def set(self) -> None:
        self._reached.set()
        if self._loop is not None and self._awaited is not None:
            try:
                self._loop.call_soon_threadsafe(self._awaited.set)
            except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
                pass

    def wait(self, timeout: float | None) -> bool:
        return self._reached.wait(timeout)

    async def reached_within(self, seconds: float) -> bool:
        assert self._awaited is not None
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._awaited.wait()
        except TimeoutError:
            return False
        return True


def may_block() -> bool:
    """Tell whether this thread may wait a little: not one that runs an event loop, nor one that exports."""
    if threading.current_thread().name == EXPORTS:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False
