"""What the tests of the contract share: steps, and short forms of events."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from spanflow import Event, MemoryStore, Run, Workflow, WorkflowResult, step
from spanflow.ports import RunRecord


class Boom(Exception):
    """What a step of these tests raises."""


@step
async def double(value: int) -> int:
    return 2 * value


@step
async def increment(value: int) -> int:
    return value + 1


@step
async def describe(value: int) -> str:
    return f"number {value}"


@step
async def explode(value: int) -> int:
    raise Boom(f"cannot do {value}")


@step
async def endless(value: int) -> int:
    await asyncio.Event().wait()
    return value


@step
async def never(value: Any) -> Any:
    raise AssertionError("the run was to be left before this step")


def as_int(value: Any) -> int:
    return value


def list_of_int(value: Any) -> list[int]:
    return value


async def result_of(workflow: Workflow[Any, Any], value: Any, **options: Any) -> WorkflowResult[Any]:
    """The result of a new run."""
    run = await workflow.create_run()
    return await run.start(value, **options)


class SlowStore(MemoryStore):
    """A store that takes its time, as one on a disk does."""

    stored = 0

    async def create(
        self, record: RunRecord, entries: Sequence[Any], *, owner: str | None = None, lease_until: int = 0
    ) -> None:
        await turns(3)
        await super().create(record, entries, owner=owner, lease_until=lease_until)
        self.stored = len(entries)

    async def append(self, run_id: str, entries: Sequence[Any], *, expected_seq: int) -> None:
        await turns(3)
        await super().append(run_id, entries, expected_seq=expected_seq)
        self.stored = expected_seq + len(entries)

    async def read(self, run_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[Any]:
        await turns(3)
        return await super().read(run_id, after=after, limit=limit)


def untyped(value: object) -> Any:
    """Hide a type, for calls that a type checker would refuse: here it is the run time that must."""
    return value


async def read_all(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


async def recorded(run: Run[Any, Any]) -> list[Event]:
    """Return all that was stored of a run that is not executing."""
    return await read_all(run.observe_stream())


async def read_up_to_now(run: Run[Any, Any]) -> list[Event]:
    """The events of a run that still executes, as far as they go."""
    events: AsyncIterator[Event] = run.observe_stream()
    seen: list[Event] = []
    following = asyncio.ensure_future(anext(events))
    await turns()
    while following.done():
        seen.append(following.result())
        following = asyncio.ensure_future(anext(events))
        await turns()
    following.cancel()
    return seen


def lines(events: Sequence[Event], *, only: str | None = None) -> list[str]:
    """One line an event: ``step-start price``; of one path, or of all."""
    return [f"{event.type} {event.path}".rstrip() for event in events if only is None or event.path == only]


async def until(events: AsyncIterator[Event], type: str, path: str | None = None) -> Any:
    """Read on to the next event of a type, and return it."""
    async for event in events:
        if event.type == type and path in (None, event.path):
            return event
    raise AssertionError(f"the stream ended without {type} at {path}")


async def turns(count: int = 20) -> None:
    """Let everything that is ready run: to show that something does *not* happen."""
    for _ in range(count):
        await asyncio.sleep(0)
