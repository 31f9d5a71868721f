"""A run that needs more room than its process may take. Run as a program, it says how the run ends."""

import asyncio
import resource
import signal
import sys

from spanflow import Runtime, SpanflowError, SQLiteStore, Workflow, step

STEPS = 60
_ROOM = 300_000  # bytes that a file of this process may grow to; the journal needs four times as many


@step
async def grow(pages: list[str]) -> list[str]:
    return [*pages, "x" * 600]


def _is_full(pages: list[str]) -> bool:
    return len(pages) >= STEPS


def _count(pages: list[str]) -> int:
    return len(pages)


growing = (
    Workflow("growing", input=list[str]).do_until(grow, _is_full, max_iterations=STEPS + 1).map(_count, id="count")
)


async def _run(path: str) -> None:
    async with Runtime(SQLiteStore(path), workflows=[growing], lease=1.0) as runtime:
        run = await runtime.create_run(growing, run_id="r-1")
        await run.start([])


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM, _ROOM))
    try:
        asyncio.run(_run(sys.argv[1]))
    except SpanflowError as error:
        print(f"{type(error).__name__}: {error}")
