"""One workflow that has every kind of span, and the run of it from start to end, answered once on the way."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from pydantic import BaseModel

from spanflow import Event, Retry, Run, StepContext, TracingOptions, Workflow, WorkflowResult, step, tool


class Order(BaseModel):
    items: list[str]


class Decision(BaseModel):
    approved: bool


class OutOfStock(Exception):
    """A failure of the user's own, in a module of the user's own."""


@tool
async def price_of(item: str, currency: str = "EUR") -> int:
    """Look up the price of an item."""
    await asyncio.sleep(0)
    return len(item) if currency == "EUR" else 2 * len(item)


@tool
async def spell(word: str) -> AsyncGenerator[str, None]:
    """Spell a word, letter by letter."""
    for letter in word:
        yield letter


@tool
def reserve(item: str) -> bool:
    """Reserve an item."""
    return item != "unicorn"


@step
async def read(order: Order) -> list[str]:
    return order.items


@step
async def quote(item: str) -> int:
    letters = [letter async for letter in spell(word=item)]
    assert "".join(letters) == item
    return await price_of(item=item)


@step
def total(prices: list[int]) -> int:
    return sum(prices)


@step(retry=Retry(max_attempts=2, delay=0.001, jitter=0))
async def flaky(value: int, ctx: StepContext) -> int:
    if ctx.attempt == 1:
        raise OutOfStock("the shelf is empty")
    return value


@step
async def tax(value: int) -> int:
    return value // 5


@step
async def postage(value: int) -> int:
    return 3


@step
async def cheap(value: int) -> int:
    return value


@step
async def expensive(value: int) -> int:
    return value - 1


@step
async def halve(value: int) -> int:
    return value // 2


@step
async def approve(value: int, ctx: StepContext) -> int:
    await ctx.emit({"asking": value})
    decision = await ctx.suspend({"total": value}, resume=Decision)
    return value if decision.approved else 0


@step
async def shelve(value: int, ctx: StepContext) -> int:
    return value if reserve(item="book") else 0


delivery = Workflow("delivery", input=int).then(shelve).parallel(tax, postage).map(lambda pair: sum(pair), id="add")

everything = (
    Workflow("everything", input=Order)
    .then(read)
    .foreach(quote, concurrency=2)
    .then(total)
    .then(flaky)
    .branch((lambda value: value > 1000, expensive), default=cheap)
    .do_while(halve, lambda value: value > 4, max_iterations=9)
    .sleep(0.001)
    .then(delivery)
    .then(approve)
    .wait_for_event("paid", int)
)

METADATA = {"user.id": "u-42", "session.id": "s-7", "feature_flag": {"ranker": "v2"}}
ORDER = Order(items=["pen", "book", "lamp"])


async def run_everything(
    run: Run[Order, Any], options: TracingOptions | None = None
) -> tuple[list[Event], WorkflowResult[Any]]:
    """Start, answer and end a run; return the events of both its stretches and its result."""
    first = await run.stream(ORDER, tracing_options=options or TracingOptions(metadata=METADATA))
    await run.send_event("paid", 7)
    events = [event async for event in first]
    assert (await first.get_workflow_state()).status == "suspended"
    second = await run.resume_stream({"approved": True})
    events += [event async for event in second]
    return events, await second.get_workflow_state()
