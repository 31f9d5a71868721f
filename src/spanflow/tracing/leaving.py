"""Export what is queued before the process ends: at its exit, when it is terminated, and as a worker of a pool.

What no handler sees is lost: ``kill -9``, ``os._exit``, and ``os.fork`` without either.
"""

import atexit
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def call_before_leaving(close: Callable[[], None]) -> None:
    """Call ``close`` at the exit of this process, and of those forked from it, and when SIGTERM would end them.

    A handler for SIGTERM is installed only where the application has none, from the main thread. One that it installs
    later takes its place; then the exit that it leads to calls ``close``.
    """
    atexit.register(close)
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _closing_first(close))
    except ValueError:  # only the main thread may
        pass


def call_before_worker_ends(close: Callable[[], None]) -> None:
    """Call ``close`` when this process ends as a child of ``multiprocessing``: such a child skips ``atexit``."""
    if multiprocessing.parent_process() is not None and "multiprocessing.util" in sys.modules:
        util: Any = importlib.import_module("multiprocessing.util")
        util.Finalize(None, close, exitpriority=-100)  # after what the program has registered


def forget(close: Callable[[], None]) -> None:
    """Do not call at exit what was called already."""
    atexit.unregister(close)


def _closing_first(close: Callable[[], None]) -> Callable[[int, FrameType | None], None]:
    def terminate(number: int, _: FrameType | None) -> None:
        close()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # so that whoever waits for the process sees what ended it

    return terminate
