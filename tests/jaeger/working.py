"""Runs of every fate that sampling tells apart. Imported by a process of its own."""

import asyncio

from spanflow import StepContext, TracingOptions, Workflow, step, tool


@tool
async def look_up(number: int) -> int:
    """Find what a number is worth."""
    return 2 * number


@step
async def work(seconds: float) -> float:
    await look_up(number=1)
    await asyncio.sleep(seconds)
    return seconds


@step
async def settle(seconds: float) -> float:
    return await look_up(number=2)


@step
async def refuse(seconds: float) -> float:
    raise PermissionError("not today")


@step
async def ask(seconds: float, ctx: StepContext) -> float:
    return await ctx.suspend("go on?", resume=float)


fast = Workflow("fast", input=float).then(work).then(settle)
failing = Workflow("failing", input=float).then(work).then(refuse)
asking = Workflow("asking", input=float).then(work).then(ask).then(settle)


async def run_all(slow: float, waits: float) -> dict[str, list[str | None]]:
    """Run what is fast, fails, is slow (s), and waits (s) for an answer. Return the trace ids by fate."""
    found: dict[str, list[str | None]] = {"fast": [await _run(fast, 0) for _ in range(3)]}
    found["failed"] = [await _run(failing, 0)]
    found["slow"] = [await _run(fast, slow)]
    found["asking"] = [await _run(asking, 0, waits)]
    return found


async def _run(workflow: Workflow[float, float], seconds: float, waits: float = 0) -> str | None:
    run = await workflow.create_run()
    result = await run.start(seconds, tracing_options=TracingOptions(user_id="u-42"))
    if result.status == "suspended":
        await asyncio.sleep(waits)
        result = await run.resume(0.0)
    return result.trace_id
