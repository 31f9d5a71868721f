"""Whether worker threads have work: time must not jump past what a thread is about to finish."""

import concurrent.futures.thread as pool
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

# The loop that each thread of a ThreadPoolExecutor runs: asyncio.to_thread and run_in_executor end up there.
_WORK: CodeType = getattr(pool, "_worker").__code__  # noqa: B009  # private, so pyright refuses the attribute


def pools_are_busy() -> bool:
    """Tell whether any thread pool of this process is working on something, or is about to."""
    if threading.active_count() == 1:
        return False
    return any(map(_is_busy, sys._current_frames().values()))  # pyright: ignore[reportPrivateUsage]  # documented


def _is_busy(frame: FrameType | None) -> bool:
    if frame is not None and frame.f_code is _WORK:  # waits for work; some may be on its way to it
        refer: Callable[[], Any] | None = frame.f_locals.get("executor_reference")
        return refer is not None and _has_unstarted_work(refer())
    while frame is not None:
        if frame.f_code is _WORK:
            return True
        frame = frame.f_back
    return False


def _has_unstarted_work(executor: Any) -> bool:
    """Tell whether work waits in the queue of a pool or, from Python 3.13 on, was handed to a thread that sleeps."""
    if executor is None:
        return False
    idle = getattr(getattr(executor, "_idle_semaphore", None), "_value", 0)  # threads that were given nothing
    return executor._work_queue.qsize() > 0 or idle < len(executor._threads)
