"""A workflow with one of everything, and processes that execute it, die in the middle of it, and go on with it."""

import asyncio
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id
from pydantic import BaseModel

from spanflow import Retry, RunConflict, Runtime, SQLiteStore, StepContext, TracingOptions, Workflow, step, tool
from spanflow.events import Entry, RunStatus, StepRetry
from spanflow.ports import RunRecord
from spanflow.state import PROCESS_LOST

RUN_ID = "r-1"
INPUT = 3
RESULT = "range 2..6, twice 24, checked by Ada and Bo"

Moment = Literal["after", "before"]


@dataclass(frozen=True, slots=True)
class Order:
    """What a process shall do. ``kill`` names the journal write (from 1) or the place in the code where it dies."""

    folder: Path
    run_id: str = RUN_ID
    kill: int | str | None = None
    moment: Moment = "after"
    lease: float = 0.05
    answers: bool = True

    @property
    def store(self) -> Path:
        return self.folder / "runs.db"

    @property
    def spans(self) -> Path:
        return self.folder / "spans.jsonl"

    @property
    def marks(self) -> Path:
        return self.folder / "marks.jsonl"

    @property
    def errors(self) -> Path:
        return self.folder / "errors.txt"


@dataclass(slots=True)
class Deps:
    """What the steps of a process know of it."""

    order: Order
    store: SQLiteStore


_order: ContextVar[Order] = ContextVar("order")  # for tools, which have no deps


def here(place: str) -> None:
    """Die here, if this is the place."""
    if _order.get().kill == place:
        die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def append_line(file: Path, value: Any) -> None:
    """Add a line in one write, which a kill does not cut."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, json.dumps(value).encode() + b"\n")
    finally:
        os.close(descriptor)


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


class KillingStore(SQLiteStore):
    """Kills its process right before or after a write to the journal."""

    def __init__(self, path: Path, kill: int | None, moment: Moment) -> None:
        super().__init__(path)
        self._left = kill
        self._moment = moment
        self.writes = 0

    async def create(
        self, record: RunRecord, entries: Sequence[Entry], *, owner: str | None = None, lease_until: int = 0
    ) -> None:
        self._at("before", self.writes + 1)
        await super().create(record, entries, owner=owner, lease_until=lease_until)
        self._wrote()

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        self._at("before", self.writes + 1)
        await super().append(run_id, entries, expected_seq=expected_seq)
        self._wrote()

    def append_now(self, run_id: str, entries: Sequence[Entry], expected_seq: int) -> bool:
        self._at("before", self.writes + 1)
        done = super().append_now(run_id, entries, expected_seq)
        if done:
            self._wrote()
        return done

    def _wrote(self) -> None:
        self.writes += 1
        self._at("after", self.writes)

    def _at(self, moment: Moment, number: int) -> None:
        if self._moment == moment and self._left == number:
            die()


class FileExporter(SpanExporter):
    """Writes each span to a file at once: what it has written outlives the process."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            attributes, context = span.attributes or {}, span.get_span_context()
            assert context is not None
            line = {
                "trace_id": format_trace_id(context.trace_id),
                "span_id": format_span_id(context.span_id),
                "parent_id": None if span.parent is None else format_span_id(span.parent.span_id),
                "name": span.name,
                "start": span.start_time,
                "end": span.end_time,
                "failed": span.status.status_code is StatusCode.ERROR,
                "attributes": {key: value for key, value in attributes.items() if isinstance(value, (str, int))},
                "process": os.getpid(),
            }
            append_line(self._file, line)
        return SpanExportResult.SUCCESS


def runtime_of(order: Order, workflow: Workflow[Any, Any] = job) -> tuple[Runtime, KillingStore]:
    """Return the runtime of a process that was told to do this."""
    number = order.kill if isinstance(order.kill, int) else None
    store = KillingStore(order.store, number, order.moment)
    return Runtime(store=store, workflows=[workflow], deps=Deps(order, store), lease=order.lease), store


async def conclude(order: Order) -> None:
    """Start the run where it is not there yet, wait until it is recovered, and answer what it asks."""
    runtime, _ = runtime_of(order)
    async with runtime:
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


# --- processes

_context = multiprocessing.get_context("forkserver")  # a process of its own, without the time it takes to import
_context.set_forkserver_preload(["tests.durable.program"])


def launch(work: Callable[[Order], Coroutine[Any, Any, Any]], order: Order) -> BaseProcess:
    """Do this in another process, with spans that go to the order's file."""
    process = _context.Process(target=_execute, args=(work, order), daemon=True)
    process.start()
    return process


def finish(process: BaseProcess, timeout: float = 30.0) -> int:
    """Return the exit code of a process once it has one; that of a killed one is ``-SIGKILL``."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"Process {process.pid} did not end within {timeout:g} s.")
    return process.exitcode


def complete(order: Order) -> int:
    """Let a process work to the end, without being killed any more. Return its exit code."""
    return finish(launch(conclude, replace(order, kill=None)))


def _execute(work: Callable[[Order], Coroutine[Any, Any, Any]], order: Order) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(FileExporter(order.spans)))
    trace.set_tracer_provider(provider)
    _order.set(order)
    try:
        asyncio.run(work(order))
    except BaseException as error:
        order.errors.write_text(f"{type(error).__name__}: {error}\n")
        raise
