"""Whether worker threads have work: time must not jump past what a thread is about to finish."""

import concurrent.futures.thread as pool
import sys
import threading
from collections.abc import Callable
from types import FrameType, FunctionType
from typing import Any

# The loop that each thread of a ThreadPoolExecutor runs: asyncio.to_thread and run_in_executor end up there.
_WORK: FunctionType = getattr(pool, "_worker")  # noqa: B009  # private, so pyright refuses the attribute


def pools_are_busy() -> bool:
    """Tell whether any thread pool of this process is working on something, or is about to."""
    if threading.active_count() == 1:
        return False
    workers = [thread.ident for thread in threading.enumerate() if getattr(thread, "_target", None) is _WORK]
    frames = sys._current_frames() if workers else {}  # pyright: ignore[reportPrivateUsage]  # documented
    return any(_is_busy(frames.get(ident or 0)) for ident in workers)


def _is_busy(frame: FrameType | None) -> bool:
    """Tell whether a thread of a pool, which is in this frame, has work. None: it has only just been started."""
    if frame is None or frame.f_code is not _WORK.__code__:  # on its way to its work, or deep in it
        return True
    refer: Callable[[], Any] | None = frame.f_locals.get("executor_reference")
    return refer is not None and _has_unstarted_work(refer())


def _has_unstarted_work(executor: Any) -> bool:
    """Tell whether work waits in the queue of a pool or, from Python 3.13 on, was handed to a thread that sleeps."""
    if executor is None:
        return False
    idle = getattr(getattr(executor, "_idle_semaphore", None), "_value", 0)  # threads that were given nothing
    return executor._work_queue.qsize() > 0 or idle < len(executor._threads)
