"""The steps and tools of which these tests build their workflows."""

import asyncio

from spanflow import (
    StepContext,
    Workflow,
    step,
    tool,
)
from tests.tracing_contract.scenario import OutOfStock

OUT_OF_STOCK = "tests.tracing_contract.scenario.OutOfStock"


@step
async def same(value: int) -> int:
    return value


@step
async def twice(value: int) -> int:
    return 2 * value


@step
async def fail(value: int) -> int:
    raise OutOfStock(f"no {value}")


@step
async def fail_odd(value: int) -> int:
    if value % 2:
        raise OutOfStock(f"no {value}")
    return value


@tool
async def weigh(item: int) -> int:
    """Weigh an item."""
    return item


@tool
async def weigh_nothing(item: int) -> int:
    """Fail to weigh an item."""
    raise OutOfStock(f"tool {item}")


@step
async def ask(value: int, ctx: StepContext) -> int:
    return await ctx.suspend({"value": value}, resume=int)


@step
async def last_forever(value: int) -> int:
    await asyncio.Event().wait()
    return value


def workflow(id: str = "shop") -> Workflow[int, int]:
    return Workflow(id, input=int)
