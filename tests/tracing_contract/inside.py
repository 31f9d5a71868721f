"""Steps and tools that open spans of the user's own, to see whose children these are."""

import asyncio
from collections.abc import AsyncGenerator

from opentelemetry import trace

from spanflow import Workflow, step, tool
from spanflow.testing import Traces
from tests.tracing_contract.reading import parent_id, span_id

user = trace.get_tracer("user")


@step
async def same(value: int) -> int:
    return value


@step
async def open_one(value: int) -> int:
    with user.start_as_current_span(f"mine {value}"):
        await asyncio.sleep(0)
    return value


@tool
async def weigh(item: int) -> int:
    """Weigh an item."""
    with user.start_as_current_span("scales"):
        return item


@tool
def weigh_now(item: int) -> int:
    """Weigh an item, blocking."""
    with user.start_as_current_span("scales"):
        return item


@tool
async def count(up_to: int) -> AsyncGenerator[int, None]:
    """Count, one by one."""
    for number in range(1, up_to + 1):
        with user.start_as_current_span(f"count {number}"):
            await asyncio.sleep(0)
        yield number


def shop() -> Workflow[int, int]:
    return Workflow("shop", input=int)


def parent_of(traces: Traces, name: str) -> str:
    """Return the name of the span that the one span of this name is a child of."""
    wanted = parent_id(traces.one(name))
    (found,) = [span.name for span in traces.spans if span_id(span) == wanted]
    return found
