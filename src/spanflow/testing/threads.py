"""Whether worker threads have work: time must not jump past what a thread is about to finish."""

import concurrent.futures.thread as pool
import sys
import threading
from types import CodeType, FrameType

# The loop that each thread of a ThreadPoolExecutor runs: asyncio.to_thread and run_in_executor end up there.
_WORK: CodeType = getattr(pool, "_worker").__code__  # noqa: B009  # private, so pyright refuses the attribute


def pools_are_busy() -> bool:
    """Tell whether any thread pool of this process is working on something, or is about to."""
    if threading.active_count() == 1:
        return False
    return any(map(_is_busy, sys._current_frames().values()))  # pyright: ignore[reportPrivateUsage]  # documented


def _is_busy(frame: FrameType | None) -> bool:
    if frame is not None and frame.f_code is _WORK:  # waits for work; there may be some that it has not taken yet
        queue = frame.f_locals.get("work_queue")
        return queue is not None and queue.qsize() > 0
    while frame is not None:
        if frame.f_code is _WORK:
            return True
        frame = frame.f_back
    return False
