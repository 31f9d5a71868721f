"""End spans without ever waiting for a processor.

``Span.end`` calls the application's processors. The SDK's batch processor only queues; any other may export on
the spot, and an exporter may hang. Those are ended on a thread of their own, in order, and a run waits for that
thread at its end, a little; the process at its exit, as long as the thread gets on.
"""

import asyncio
import atexit
import os
import queue
import threading
from functools import partial
from typing import Protocol, TypeAlias

from opentelemetry.trace import Span

from spanflow.tracing.backpressure import Owner, ending
from spanflow.tracing.metrics import guarded, warn_once

_QUEUE_SIZE = 8192  # spans: what a hanging processor may hold in memory
_PATIENCE = 1.0  # s: what the end of a run waits for processors that export on the spot


class _Signal(Protocol):
    """Set when the thread comes to it."""

    def set(self) -> None: ...


_Work: TypeAlias = "queue.Queue[tuple[Span, int, Owner] | _Signal]"


class SpanEnder:
    """Ends spans on one daemon thread, in the order they were handed over."""

    def __init__(self) -> None:
        self._queue: _Work = queue.Queue(_QUEUE_SIZE)
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._lock = threading.Lock()
        self._stalled = False

    def put(self, span: Span, end_time: int, owner: Owner) -> bool:
        """Hand a span over. Return False when the queue is full: the span is lost."""
        self._start()
        try:
            self._queue.put_nowait((span, end_time, owner))
        except queue.Full:
            return False
        return True

    async def drain(self) -> None:
        """Return when all spans handed over so far are ended, or after a second; what hangs costs that only once."""
        if self._queue.empty() and self._queue.unfinished_tasks == 0:
            self._stalled = False
            return
        if self._stalled:
            return
        reached = asyncio.Event()
        try:
            self._queue.put_nowait(_Reached(asyncio.get_running_loop(), reached))
            async with asyncio.timeout(_PATIENCE):
                await reached.wait()
        except (TimeoutError, queue.Full) as error:
            self._stalled = True
            warn_once(
                "A span processor takes longer than a second to take spans; runs no longer wait for it: %r", error
            )

    def _start(self) -> None:
        if self._thread is not None and self._pid == os.getpid():
            return
        with self._lock:
            if self._thread is not None and self._pid == os.getpid():
                return
            if self._thread is None:
                atexit.register(self._drain_at_exit)
            else:  # a fork: what the parent handed over is the parent's to end
                self._queue, self._stalled = queue.Queue(_QUEUE_SIZE), False
            self._pid = os.getpid()
            self._thread = threading.Thread(
                target=_end_spans, args=(self._queue,), name="spanflow-span-ender", daemon=True
            )
            self._thread.start()

    def _drain_at_exit(self) -> None:
        """Let the thread get on: what a daemon has not done when the process ends is lost. A hang costs one second."""
        if self._pid != os.getpid():
            return
        passed = threading.Event()
        try:
            self._queue.put_nowait(passed)
        except queue.Full:  # it hangs, or it is hopelessly behind
            return
        left = self._queue.unfinished_tasks
        while not passed.wait(_PATIENCE):
            before, left = left, self._queue.unfinished_tasks
            if left >= before:
                return


def _end_spans(work: _Work) -> None:
    while True:
        item = work.get()
        if isinstance(item, tuple):
            span, end_time, ending.owner = item
            guarded(partial(span.end, end_time))
        else:
            item.set()
        work.task_done()


class _Reached:
    """Tells an event loop that the thread came this far."""

    def __init__(self, loop: asyncio.AbstractEventLoop, reached: asyncio.Event) -> None:
        self._loop, self._reached = loop, reached

    def set(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._reached.set)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
            pass
