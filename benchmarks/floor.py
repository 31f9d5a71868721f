"""The floor: what a good engineer writes by hand to get the same values, the same validation and the same spans.

No retries, no events, no journal, no resume: asyncio, pydantic, and OpenTelemetry's own ``start_as_current_span``.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from opentelemetry.trace import Tracer
from pydantic import BaseModel, ConfigDict, TypeAdapter


class V(BaseModel):
    """What goes in and out of every step."""

    v: int


Function: TypeAlias = Callable[[V], Awaitable[V]]

_ONE = TypeAdapter(V)
_MANY = TypeAdapter(list[V])


async def add_one(value: V) -> V:
    """The work of every step, on both sides: next to none, so that only the cost around it shows."""
    return V(v=value.v + 1)


class FloorEvent(BaseModel):
    """An event as a hand-written stream would type it."""

    model_config = ConfigDict(frozen=True)

    type: str
    run_id: str
    timestamp: int
    path: str
    payload: Any


Maker: TypeAlias = Callable[[str, str, V], Any]


def plain_event(type: str, path: str, value: V) -> dict[str, Any]:
    return {"type": type, "path": path, "payload": value}


def typed_event(type: str, path: str, value: V) -> FloorEvent:
    return FloorEvent(type=type, run_id="floor", timestamp=time.time_ns(), path=path, payload=value)


class Floor:
    """Runs ``fn`` in each of the shapes that are measured."""

    def __init__(self, tracer: Tracer, fn: Function) -> None:
        self._tracer = tracer
        self._fn = fn

    async def sequential(self, value: V, ids: Sequence[str]) -> V:
        with self._tracer.start_as_current_span("invoke_workflow floor", attributes=_root()) as root:
            value = _ONE.validate_python(value)
            for id in ids:
                value = await self._step(id, id, value)
            root.set_attribute("spanflow.run.status", "success")
            return value

    async def parallel(self, value: V, ids: Sequence[str]) -> tuple[V, ...]:
        with self._tracer.start_as_current_span("invoke_workflow floor", attributes=_root()) as root:
            value = _ONE.validate_python(value)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._step(id, id, value)) for id in ids]
            root.set_attribute("spanflow.run.status", "success")
            return tuple(task.result() for task in tasks)

    async def foreach(self, values: list[V], id: str, concurrency: int) -> list[V]:
        """Workers that share an iterator: 10 tasks where a semaphore needs 1000, and a good deal faster."""
        start_span = self._tracer.start_as_current_span
        with start_span("invoke_workflow floor", attributes=_root()) as root:
            given = _MANY.validate_python(values)
            attributes = {"spanflow.step.id": id, "spanflow.step.path": id}
            with start_span(f"foreach {id}", attributes=attributes) as span:
                results = await self._share_out(given, id, concurrency)
                span.set_attributes({"spanflow.succeeded": len(results), "spanflow.failed": 0})
            root.set_attribute("spanflow.run.status", "success")
            return results

    async def stream(self, value: V, ids: Sequence[str], make: "Maker") -> AsyncIterator[Any]:
        """Two events a step, made by a task of its own, so that the reader's spans are not the run's.

        ``make`` builds an event: ``plain_event`` a dict, ``typed_event`` the frozen model that spanflow streams too.
        """
        queue: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.create_task(self._produce(queue, value, ids, make))
        while (event := await queue.get()) is not None:
            yield event
        await task

    async def _produce(self, queue: asyncio.Queue[Any], value: V, ids: Sequence[str], make: "Maker") -> None:
        with self._tracer.start_as_current_span("invoke_workflow floor", attributes=_root()) as root:
            value = _ONE.validate_python(value)
            for id in ids:
                queue.put_nowait(make("step-start", id, value))
                value = await self._step(id, id, value)
                queue.put_nowait(make("step-finish", id, value))
            root.set_attribute("spanflow.run.status", "success")
        queue.put_nowait(None)

    async def _share_out(self, given: list[V], id: str, concurrency: int) -> list[V]:
        results = list(given)
        queue = iter(enumerate(given))

        async def work() -> None:
            for index, item in queue:
                results[index] = await self._step(id, f"{id}[{index}]", item, {"spanflow.foreach.index": index})

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
        return results

    async def _step(self, id: str, path: str, value: V, more: dict[str, int] | None = None) -> V:
        attributes: dict[str, str | int] = {
            "spanflow.step.id": id,
            "spanflow.step.path": path,
            "spanflow.step.attempt": 1,
        }
        if more is not None:
            attributes.update(more)
        with self._tracer.start_as_current_span(f"step {id}", attributes=attributes):
            return _ONE.validate_python(await self._fn(_ONE.validate_python(value)))


def _root() -> dict[str, str]:
    return {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "floor",
        "spanflow.run.id": str(uuid.uuid4()),
    }
