"""Workflows for the command line to find, show and go on with. As a program: keep one running until a file is there."""

import asyncio
import sys
from pathlib import Path

from pydantic import BaseModel

from spanflow import Retry, Runtime, SQLiteStore, StepContext, Workflow, configure_tracing, step, tool
from spanflow.ports import Store


class Refund(BaseModel):
    amount: int


class Decision(BaseModel):
    approved: bool


@tool
async def look_up(amount: int) -> str:
    """Find the customer."""
    return f"customer of {amount}"


@step
async def check(refund: Refund) -> Refund:
    await look_up(amount=refund.amount)
    return refund


@step
async def approve(refund: Refund, ctx: StepContext) -> int:
    decision = await ctx.suspend({"question": f"Refund {refund.amount} EUR?"}, resume=Decision)
    return refund.amount if decision.approved else 0


@step
async def pay(amount: int) -> str:
    if amount < 0:
        raise ValueError(f"cannot pay {amount} EUR\nnot even once")
    return f"{amount} EUR refunded"


refunds = Workflow("refunds", input=Refund, output=str).then(check).then(approve).then(pay)


@step(retry=Retry(max_attempts=2, delay=60, jitter=0))
async def fetch(page: int, ctx: StepContext) -> int:
    if page == 1 and ctx.attempt == 1:
        raise ConnectionError("busy")
    return 10 // page


crawl = Workflow("crawl", input=list[int]).foreach(fetch)

nap = Workflow("nap", input=int).sleep(30 * 86_400).wait_for_event("wake", payload=str, timeout=3600)


@step
async def wait_for_file(path: str) -> str:
    while not Path(path).exists():  # noqa: ASYNC110, ASYNC240  # the file is the event
        await asyncio.sleep(0.01)
    return "there"


@step
async def say(text: str) -> str:
    return f"it is {text}"


waiting = Workflow("waiting", input=str).then(wait_for_file).then(say)

both = [refunds, waiting]


def make_runtime(store: Store) -> Runtime:
    """What an application that has more to say than workflows names on the command line."""
    return Runtime(store, workflows=both, deps={"till": 3})


async def main(database: str, run_id: str, file: str) -> None:
    async with Runtime(SQLiteStore(database), workflows=[waiting], lease=1.0) as runtime:
        run = await runtime.create_run(waiting, run_id=run_id)
        stream = await run.stream(file)
        async for event in stream:
            if event.type == "step-start" and event.path == "wait_for_file":
                print("started", flush=True)


if __name__ == "__main__":
    with configure_tracing(console=True):
        asyncio.run(main(*sys.argv[1:]))
