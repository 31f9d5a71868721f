"""Have a provider export soon what it holds, on a thread that nobody waits for."""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from spanflow.tracing.metrics import guarded

_GATHER = 0.05  # s; runs that start together are announced together


class Flusher:
    """Flushes one provider in the background: at most one flush at a time, and at most one more that waits for it."""

    def __init__(self, provider: Any) -> None:
        self._flush: Callable[[], object] | None = getattr(provider, "force_flush", None)
        self._going_on = threading.Lock()
        self._waits = False
        self._pid = os.getpid()

    def flush_soon(self) -> None:
        """Export what has ended by now. Never waits, never raises."""
        if self._pid != os.getpid():  # a fork: the threads are those of the parent
            self._going_on, self._waits, self._pid = threading.Lock(), False, os.getpid()
        if self._waits or self._flush is None:
            return
        self._waits = True
        thread = threading.Thread(target=self._run, name="spanflow-flush", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, as in a process that ends: it will flush at its end
            self._waits = False

    def _run(self) -> None:
        time.sleep(_GATHER)
        with self._going_on:
            self._waits = False  # what ends from here on may come too late for this flush
            if self._flush is not None:
                guarded(self._flush)
