"""Any plan of tests/properties, executed on a durable store by processes that may die, in little time."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from spanflow import Run, RunConflict, Runtime, StepContext, TracingOptions, Workflow
from spanflow.events import StepRetry, StepSuspended, StepWaiting
from spanflow.ports import Store
from spanflow.state import PROCESS_LOST
from tests.durable.processes import Order, append_line, here, journal
from tests.durable.program import status_of
from tests.properties.building import Boom, World, build
from tests.properties.plans import ANSWER, Nested, count_early, nodes

SPEED = 1000  # a second of a plan is a millisecond
A_LONG_TIME = 3600 * 10**9  # ns: nobody waits so long; the clock jumps
OPTIONS = TracingOptions(metadata={"feature_flag.ranker": "v2"}, user_id="u-42", session_id="s-7")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOrder(Order):
    """A plan that a process shall run.

    Attributes:
        epoch: when the plan's time began, ns. All processes of a run have the same.
    """

    plan: Nested
    value: int = 0
    answering: Literal["first", "last", "all"] = "first"
    epoch: int = field(default_factory=time.time_ns)


class FastClock:
    """The machine's clock, a thousand times as fast, of which months are skipped where everybody would wait.

    What was skipped is in a file, so that the time goes on in the next process.
    """

    def __init__(self, epoch: int, file: Path) -> None:
        self._epoch = epoch
        self._file = file
        self._skipped = int(file.read_text()) if file.exists() else 0

    def time_ns(self) -> int:
        return self._epoch + (time.time_ns() - self._epoch) * SPEED + self._skipped

    async def sleep_until(self, deadline_ns: int) -> None:
        while (left := deadline_ns - self.time_ns()) > 0:
            if left > A_LONG_TIME:
                self.skip(left)
            else:
                await asyncio.sleep(left / 1e9 / SPEED)

    def timeout(self, seconds: float) -> asyncio.Timeout:
        return asyncio.timeout(seconds / SPEED)

    def skip(self, ns: int) -> None:
        self._skipped += ns
        new = self._file.with_suffix(f".{os.getpid()}")
        new.write_text(str(self._skipped))
        new.replace(self._file)


class DurableWorld(World):
    """What the steps of a run share, of which only files and the journal outlive a process."""

    def __init__(self, order: PlanOrder) -> None:
        super().__init__()
        self.fast_clock = FastClock(order.epoch, order.folder / "skipped")
        self._marks = order.marks

    async def recall(self, store: Store, run_id: str) -> None:
        """Count the executions of each step that came to an end, as the journal knows them."""
        for entry in await journal(store, run_id):
            lost = entry.kind is StepRetry and entry.payload["error"].type == PROCESS_LOST
            if entry.kind in (StepRetry, StepSuspended) and not lost:
                self.executions[entry.path] += 1

    def begin(self, ctx: StepContext) -> int:
        append_line(self._marks, {"key": ctx.idempotency_key, "attempt": ctx.attempt})
        here(f"in {ctx.path}")
        return super().begin(ctx)

    async def take(self, seconds: float) -> None:
        await self.fast_clock.sleep_until(self.fast_clock.time_ns() + int(seconds * 1e9))

    def boom(self) -> Boom:
        return Boom("boom")  # the same in each process

    def passes(self, place: str) -> None:
        here(place)


async def conclude_plan(order: PlanOrder) -> None:
    """Start the run where it is not there yet, wait until it is recovered, and give it what it waits for."""
    world = DurableWorld(order)
    workflow = build(order.plan, world)
    store = order.open_store()
    runtime = Runtime(store=store, workflows=[workflow], lease=order.lease, clock=world.fast_clock)
    if await status_of(runtime, order.run_id) is not None:
        await world.recall(store, order.run_id)
    async with runtime:
        over = asyncio.Event()
        sending = asyncio.create_task(_send_events(runtime, store, order, over))
        while (status := await status_of(runtime, order.run_id)) not in ("success", "failed", "canceled"):
            if status == "suspended" and not order.answers:
                break
            with suppress(RunConflict):  # somebody died who had just claimed the run: until that lease is over
                if status is None:
                    await _start(runtime, workflow, order)
                elif status == "suspended":
                    await _answer(await runtime.get_run(order.run_id), order)
                else:
                    await asyncio.sleep(0.002)
        over.set()
        await sending


async def _start(runtime: Runtime, workflow: Workflow[int, object], order: PlanOrder) -> None:
    run = await runtime.create_run(workflow, run_id=order.run_id)
    await run.start(order.value, tracing_options=OPTIONS)


async def _answer(run: Run[int, object], order: PlanOrder) -> None:
    waiting = sorted((await run.wait()).suspended)
    chosen = {"first": waiting[:1], "last": waiting[-1:], "all": waiting}[order.answering]
    for path in chosen:
        if path in (await run.wait()).suspended:
            await run.resume(ANSWER, step=path)


async def _send_events(runtime: Runtime, store: Store, order: PlanOrder, over: asyncio.Event) -> None:
    """Send as many events of each name as the run waits for, counting those that were sent by others before."""
    early = count_early(order.plan)
    waits = any(node.kind == "event" for node in nodes(order.plan).values())
    while waits and not over.is_set():
        await asyncio.sleep(0.002)
        if await status_of(runtime, order.run_id) is None:
            continue
        sent = Counter(message.name for message in await store.messages(order.run_id))
        run = await runtime.get_run(order.run_id)
        for name, wanted in (await _waits(store, order.run_id, early)).items():
            for _ in range(wanted - sent[name]):
                with suppress(RunConflict):  # it is over
                    await run.send_event(name, ANSWER)


async def _waits(store: Store, run_id: str, early: int) -> Mapping[str, int]:
    waits = Counter({"early": early})
    for entry in await journal(store, run_id):
        if entry.kind is StepWaiting and (entry.payload["event"] or "").startswith("late"):
            waits[entry.payload["event"]] += 1
    return waits
