"""A workflow with one of everything, and how a process executes it, or goes on with it."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from spanflow import Retry, RunConflict, Runtime, StepContext, TracingOptions, Workflow, step, tool
from spanflow.events import RunStatus, StepRetry
from spanflow.ports import Store
from spanflow.state import PROCESS_LOST
from tests.durable.processes import Order, append_line, here

INPUT = 3
RESULT = "range 2..6, twice 24, checked by Ada and Bo"


@dataclass(slots=True)
class Deps:
    """What the steps of a process know of it."""

    order: Order
    store: Store


# --- the workflow


class Approval(BaseModel):
    by: str


def mark(ctx: StepContext[Deps]) -> None:
    """Leave a trace of this attempt outside of the run, as a payment would."""
    order = ctx.deps.order
    append_line(order.marks, {"key": ctx.idempotency_key, "attempt": ctx.attempt})
    here(f"in {ctx.path}")


@tool
async def look_up(number: int) -> int:
    """Find what a number is worth."""
    here(f"tool with {number}")
    await asyncio.sleep(0)
    return 2 * number


@step
async def prepare(count: int, ctx: StepContext[Deps]) -> list[int]:
    mark(ctx)
    count = await look_up(number=count) // 2
    return list(range(1, count + 1))


@step
async def measure(number: int, ctx: StepContext[Deps]) -> int:
    mark(ctx)
    if number == 2:
        await ctx.suspend({"check": number}, resume=Approval)
    return await look_up(number=number)


@step
async def span_of(numbers: list[int], ctx: StepContext[Deps]) -> str:
    mark(ctx)
    await asyncio.sleep(0.002)
    return f"{numbers[0]}..{numbers[-1]}"


@step
def total(numbers: list[int], ctx: StepContext[Deps]) -> int:
    mark(ctx)
    return sum(numbers)


@step(retry=Retry(max_attempts=3, delay=0.01))
async def flaky(parts: tuple[str, int], ctx: StepContext[Deps]) -> tuple[str, int]:
    mark(ctx)
    if await recorded_failures(ctx) == 0:
        raise ConnectionError("busy")
    return parts


@step
async def grow(parts: tuple[str, int], ctx: StepContext[Deps]) -> tuple[str, int]:
    mark(ctx)
    return parts[0], parts[1] + 6


def enough(parts: tuple[str, int]) -> bool:
    return parts[1] >= 24


@step
async def approve(parts: tuple[str, int], ctx: StepContext[Deps]) -> str:
    mark(ctx)
    approval = await ctx.suspend({"parts": parts}, resume=Approval)
    return f"range {parts[0]}, twice {parts[1]}, checked by Ada and {approval.by}"


@step
async def report(text: str, ctx: StepContext[Deps]) -> str:
    mark(ctx)
    await ctx.emit({"length": len(text)})
    return text


async def recorded_failures(ctx: StepContext[Deps]) -> int:
    """How often this step has failed, as the journal knows it; not the attempts that were lost."""
    entries = await ctx.deps.store.read(ctx.run_id)
    retries = [entry for entry in entries if entry.kind is StepRetry and entry.path == ctx.path]
    return sum(entry.payload["error"].type != PROCESS_LOST for entry in retries)


review = Workflow("review", input=tuple[str, int]).then(flaky).do_until(grow, enough, max_iterations=9).then(approve)

job = (
    Workflow("job", input=int)
    .then(prepare)
    .foreach(measure, concurrency=2)
    .parallel(span_of, total)
    .then(review)
    .sleep(0.01)
    .then(report)
)

ANSWERS = {"measure[1]": Approval(by="Ada"), "review/approve": Approval(by="Bo")}
OPTIONS = TracingOptions(metadata={"feature_flag.ranker": "v2"}, user_id="u-42")


# --- its process


def runtime_of(order: Order, workflow: Workflow[Any, Any] = job) -> Runtime:
    """Return the runtime of a process that was told to do this."""
    store = order.open_store()
    return Runtime(store=store, workflows=[workflow], deps=Deps(order, store), lease=order.lease)


async def conclude(order: Order) -> None:
    """Start the run where it is not there yet, wait until it is recovered, and answer what it asks."""
    async with runtime_of(order) as runtime:
        while (status := await status_of(runtime, order.run_id)) not in ("success", "failed", "canceled"):
            if status == "suspended" and not order.answers:
                return
            with suppress(RunConflict):  # somebody died who had just claimed the run: until that lease is over
                await _go_on(runtime, order, status)


async def status_of(runtime: Runtime, run_id: str) -> RunStatus | None:
    """Return what the store says of a run; None where it has no such run."""
    return next((found.status for found in await runtime.find_runs() if found.run_id == run_id), None)


async def _go_on(runtime: Runtime, order: Order, status: RunStatus | None) -> None:
    if status is None:
        run = await runtime.create_run(job, run_id=order.run_id)
        await run.start(INPUT, tracing_options=OPTIONS)
    elif status == "suspended":
        run = await runtime.get_run(order.run_id)
        for path in (await run.wait()).suspended:
            await run.resume(ANSWERS[path], step=path)
    else:
        await asyncio.sleep(0.005)
