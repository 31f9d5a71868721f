"""Parallel, branch and foreach: price an order.

    uv run examples/containers.py apple=3 pear=12

Look at the tree: the lines of the order are priced side by side under ``foreach price``, shipping and tax overlap in
time, and the arm that the branch took is named. An unknown fruit fails its step, and the run, with a clear error.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from pydantic import BaseModel, Field

from spanflow import InvalidInput, StepContext, Workflow, configure_tracing, step

PRICES = {"apple": 40, "pear": 55, "melon": 320}  # cents


class Line(BaseModel):
    fruit: str
    count: int = Field(gt=0)


class Order(BaseModel):
    lines: list[Line]


@step
async def price(line: Line) -> int:
    await asyncio.sleep(0.01)  # where a call to the shop's price service would be
    if line.fruit not in PRICES:
        raise LookupError(f"We have no {line.fruit}. We have {', '.join(PRICES)}.")
    return line.count * PRICES[line.fruit]


@step
async def shipping(cents: int) -> int:
    await asyncio.sleep(0.01)
    return 490 if cents < 2000 else 0


@step
async def tax(cents: int) -> int:
    await asyncio.sleep(0.01)
    return round(cents * 0.07)


@step
async def by_invoice(cents: int) -> str:
    return f"{cents / 100:.2f} EUR, by invoice"


@step
async def by_card(cents: int) -> str:
    return f"{cents / 100:.2f} EUR, by card"


def lines_of(order: Order) -> list[Line]:
    return order.lines


def total_of(extras: tuple[int, int], ctx: StepContext) -> int:
    return ctx.result_of("subtotal") + sum(extras)


checkout = (
    Workflow("checkout", input=Order, output=str)
    .map(lines_of)
    .foreach(price, concurrency=4)
    .map(sum, id="subtotal")
    .parallel(shipping, tax)
    .map(total_of)
    .branch((lambda cents: cents >= 5000, by_invoice), default=by_card)
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Price an order.")
    parser.add_argument("lines", nargs="*", default=["apple=3", "pear=12"], metavar="FRUIT=COUNT")
    options = parser.parse_args(argv)
    order = {"lines": [dict(zip(("fruit", "count"), line.split("="), strict=False)) for line in options.lines]}
    with configure_tracing(service_name="shop", console=True):
        return asyncio.run(buy(order))


async def buy(order: object) -> int:
    run = await checkout.create_run()
    try:
        result = await run.start(order)  # pyright: ignore[reportArgumentType]  # checked at run time, as any request is
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if result.error is not None:
        print(f"error: {result.error.message}", file=sys.stderr)
        return 1
    print(f"{result.unwrap()}\ntrace_id  {result.trace_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
