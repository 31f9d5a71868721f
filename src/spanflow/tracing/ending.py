"""End spans without ever waiting for a processor.

``Span.end`` calls the application's processors. The SDK's batch processor only queues; any other may export on
the spot, and an exporter may hang. Those are ended on a thread of their own, in order, and a run waits for that
thread at its end, a little.
"""

import asyncio
import os
import queue
import threading
from functools import partial

from opentelemetry.trace import Span

from spanflow.tracing.metrics import guarded, warn_once

_QUEUE_SIZE = 8192  # spans: what a hanging processor may hold in memory
_PATIENCE = 1.0  # s: what the end of a run waits for processors that export on the spot


class SpanEnder:
    """Ends spans on one daemon thread, in the order they were handed over."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Span, int] | threading.Event] = queue.Queue(_QUEUE_SIZE)
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._lock = threading.Lock()
        self._stalled = False

    def put(self, span: Span, end_time: int) -> bool:
        """Hand a span over. Return False when the queue is full: the span is lost."""
        self._start()
        try:
            self._queue.put_nowait((span, end_time))
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
        passed = threading.Event()
        loop, reached = asyncio.get_running_loop(), asyncio.Event()
        marker = _Marker(passed, loop, reached)
        try:
            self._queue.put_nowait(marker)
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
            if self._thread is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._work, name="spanflow-span-ender", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, tuple):
                span, end_time = item
                guarded(partial(span.end, end_time))
            else:
                item.set()
            self._queue.task_done()


class _Marker(threading.Event):
    """Tells the event loop that the thread came this far."""

    def __init__(self, passed: threading.Event, loop: asyncio.AbstractEventLoop, reached: asyncio.Event) -> None:
        super().__init__()
        self._loop, self._reached = loop, reached

    def set(self) -> None:
        super().set()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._reached.set)
