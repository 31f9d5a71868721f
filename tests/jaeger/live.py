"""Workflows that outlive what started them, for processes that tests watch, kill, and let go on."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from opentelemetry import propagate, trace
from pydantic import BaseModel

from spanflow import Runtime, SQLiteStore, StepContext, TracingOptions, Workflow, configure_tracing, step, tool

RUN_ID = "watched"
WHO = TracingOptions(user_id="u-42", session_id="s-7", metadata={"customer.tier": "gold"})


class Decision(BaseModel):
    approved: bool


@tool
async def look_up(number: int) -> int:
    """Find what a number is worth."""
    return 2 * number


@step
async def prepare(number: int) -> int:
    return await look_up(number=number)


@step
async def work(number: int) -> int:
    """Goes on once somebody says so."""
    await asyncio.to_thread(sys.stdin.readline)
    return number


@step
async def approve(number: int, ctx: StepContext) -> int:
    decision = await ctx.suspend({"number": number}, resume=Decision)
    return number if decision.approved else 0


watched = Workflow("watched", input=int).then(prepare).then(work)
asking = Workflow("asking", input=int).then(prepare).then(approve)


def show(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


async def start(workflow: Workflow[int, int]) -> None:
    """Start a run in memory, say when that was, and wait for its end or for somebody who ends this process."""
    run = await workflow.create_run()
    at = time.time()
    stream = await run.stream(7, tracing_options=WHO)
    show(trace_id=stream.trace_id, at=at)
    result = await stream.get_workflow_state()
    if result.status == "suspended":
        await asyncio.to_thread(sys.stdin.readline)


async def start_stored(folder: str) -> None:
    """Start a run in a file, of which more will be heard only if this process is not killed."""
    async with Runtime(SQLiteStore(Path(folder) / "runs.db"), workflows=[watched], lease=0.5) as runtime:
        run = await runtime.create_run(watched, run_id=RUN_ID)
        stream = await run.stream(7, tracing_options=WHO)
        show(trace_id=stream.trace_id)
        await stream.get_workflow_state()


async def take_over(folder: str) -> None:
    """Bring the run of a process that died to its end."""
    async with Runtime(SQLiteStore(Path(folder) / "runs.db"), workflows=[watched], lease=0.5) as runtime:
        run = await runtime.get_run(RUN_ID)
        while (result := await run.wait()).status == "running":  # noqa: ASYNC110  # until its lease is over
            await asyncio.sleep(0.05)
        show(status=result.status, trace_id=result.trace_id)


async def ask_for_work(traceparent: str) -> None:
    """Do what another process asked for: run a workflow below its span."""
    with trace.get_tracer("worker").start_as_current_span(
        "POST", propagate.extract({"traceparent": traceparent}), trace.SpanKind.SERVER
    ):
        run = await watched.create_run()
        result = await run.start(7, tracing_options=WHO)
        show(trace_id=result.trace_id, status=result.status)


async def start_watched() -> None:
    await start(watched)


async def start_asking() -> None:
    await start(asking)


COMMANDS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "watched": start_watched,
    "asking": start_asking,
    "start": start_stored,
    "take over": take_over,
    "ask": ask_for_work,
}

if __name__ == "__main__":
    with configure_tracing():
        asyncio.run(COMMANDS[sys.argv[1]](*sys.argv[2:]))
