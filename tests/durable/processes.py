"""Processes that execute runs on a store, and die at a moment that they were told."""

import asyncio
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from spanflow import PostgresStore, SQLiteStore
from spanflow.entries import Entry
from spanflow.ports import RunRecord, Store

RUN_ID = "r-1"
PATIENCE = 100.0  # s that tests wait for what another process does in a fraction of one
POSTGRES_AT_ONCE = 2  # connections of a process: many processes share a server


@dataclass(frozen=True, slots=True)
class Order:
    """What a process shall do.

    Attributes:
        folder: where its files are.
        kill: the moment at which it dies: a name, or how many moments it has passed by then, from 1.
        lease: seconds.
        answers: whether it answers what the run asks.
        dsn: of the PostgreSQL that keeps the run; a file of SQLite does where there is none.
        schema: where in that.
        exports_inline: whether spans are exported by the event loop itself, which the runtime is told never blocks.
    """

    folder: Path
    run_id: str = RUN_ID
    kill: int | str | None = None
    lease: float = 0.05
    answers: bool = True
    dsn: str = ""
    schema: str = ""
    exports_inline: bool = False

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

    @property
    def moments(self) -> Path:
        """How many moments each process has passed that was not killed."""
        return self.folder / "moments.jsonl"

    def open_store(self) -> Store:
        """Return the store of the order; in it, each write is a moment before and a moment after."""
        if self.dsn:
            return KillingPostgresStore(self.dsn, schema=self.schema, pool_size=POSTGRES_AT_ONCE)
        return KillingSQLiteStore(self.store)


AnyOrder = TypeVar("AnyOrder", bound=Order)


# --- moments


class Moments:
    """Counts what happens in this process, and kills it at one of these moments."""

    def __init__(self, kill: int | str | None = None) -> None:
        self._kill = kill
        self._lock = threading.Lock()  # spans end in a thread of their own
        self.passed = 0
        self.writes = 0

    def passes(self, place: str) -> None:
        with self._lock:
            self.passed += 1
            if self._kill is not None and self._kill in (place, self.passed):
                die()

    def wrote(self) -> None:
        self.writes += 1
        self.passes(f"after write {self.writes}")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_moments = Moments()


def here(place: str) -> None:
    """Die here, if this is the place."""
    _moments.passes(place)


def before_write() -> None:
    """Come to a write to the journal. Their names as moments have their number, from 1."""
    here(f"before write {_moments.writes + 1}")


async def _written(write: Coroutine[Any, Any, None]) -> None:
    before_write()
    await write
    _moments.wrote()


class KillingSQLiteStore(SQLiteStore):
    """May kill its process right before or after a write."""

    async def create(
        self, record: RunRecord, entries: Sequence[Entry], *, owner: str | None = None, lease_until: int = 0
    ) -> None:
        await _written(super().create(record, entries, owner=owner, lease_until=lease_until))

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        await _written(super().append(run_id, entries, expected_seq=expected_seq))

    def append_now(self, run_id: str, entries: Sequence[Entry], expected_seq: int) -> bool:
        before_write()
        done = super().append_now(run_id, entries, expected_seq)
        if done:
            _moments.wrote()
        return done

    async def claim(self, run_id: str, owner: str, *, now: int, lease_until: int) -> bool:
        here("before claim")
        mine = await super().claim(run_id, owner, now=now, lease_until=lease_until)
        here("after claim")
        return mine


class KillingPostgresStore(PostgresStore):
    """May kill its process right before or after a write."""

    async def create(
        self, record: RunRecord, entries: Sequence[Entry], *, owner: str | None = None, lease_until: int = 0
    ) -> None:
        await _written(super().create(record, entries, owner=owner, lease_until=lease_until))

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        await _written(super().append(run_id, entries, expected_seq=expected_seq))

    async def claim(self, run_id: str, owner: str, *, now: int, lease_until: int) -> bool:
        here("before claim")
        mine = await super().claim(run_id, owner, now=now, lease_until=lease_until)
        here("after claim")
        return mine


# --- what they leave


async def journal(store: Store, run_id: str) -> list[Entry]:
    """Return all events of a run."""
    entries: list[Entry] = []
    while page := await store.read(run_id, after=entries[-1].seq if entries else 0):
        entries.extend(page)
    return entries


def append_line(file: Path, value: Any) -> None:
    """Add a line in one write, which a kill does not cut."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, json.dumps(value).encode() + b"\n")
    finally:
        os.close(descriptor)


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class FileExporter(SpanExporter):
    """Writes each span to a file at once: what it has written outlives the process."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            attributes, context, scope = span.attributes or {}, span.get_span_context(), span.instrumentation_scope
            assert context is not None
            assert scope is not None
            line = {
                "trace_id": format_trace_id(context.trace_id),
                "span_id": format_span_id(context.span_id),
                "parent_id": None if span.parent is None else format_span_id(span.parent.span_id),
                "name": span.name,
                "scope": scope.name,
                "start": span.start_time,
                "end": span.end_time,
                "failed": span.status.status_code is StatusCode.ERROR,
                "attributes": {key: value for key, value in attributes.items() if isinstance(value, (str, int))},
                "process": os.getpid(),
            }
            here(f"before span {span.name}")
            append_line(self._file, line)
            here(f"after span {span.name}")
        return SpanExportResult.SUCCESS


class InlineProcessor(SimpleSpanProcessor):
    """Is trusted to return at once, so that spans are exported by the event loop."""

    never_blocks = True


# --- launching them

_context = multiprocessing.get_context("forkserver")  # a process of its own, without the time it takes to import
_context.set_forkserver_preload(["pytest", "tests.durable.program", "tests.durable.random_program", "psycopg_pool"])
_starting = threading.Lock()  # to start a process collects the exit codes of others, each of which is there only once


def launch(work: Callable[[AnyOrder], Coroutine[Any, Any, Any]], order: AnyOrder) -> BaseProcess:
    """Do this in another process, with spans that go to the order's file."""
    process = _context.Process(target=_execute, args=(work, order), daemon=True)
    with _starting:
        process.start()
    return process


def finish(process: BaseProcess, timeout: float = PATIENCE) -> int:
    """Return the exit code of a process once it has one; that of a killed one is ``-SIGKILL``."""
    if not wait([process.sentinel], timeout):
        process.kill()
        raise TimeoutError(f"Process {process.pid} did not end within {timeout:g} s.")
    with _starting:
        code = process.exitcode
    assert code is not None
    return code


def complete(work: Callable[[AnyOrder], Coroutine[Any, Any, Any]], order: AnyOrder) -> None:
    """Let a process work to the end, without being killed any more."""
    code = finish(launch(work, replace(order, kill=None)))
    if code:
        said = order.errors.read_text() if order.errors.exists() else "without a word"
        raise AssertionError(f"A process that was to complete {order} ended with {code}: {said}")


def _execute(work: Callable[[AnyOrder], Coroutine[Any, Any, Any]], order: AnyOrder) -> None:
    global _moments  # one order for each process
    _moments = Moments(order.kill)
    provider = TracerProvider()
    processor = InlineProcessor if order.exports_inline else SimpleSpanProcessor
    provider.add_span_processor(processor(FileExporter(order.spans)))
    trace.set_tracer_provider(provider)
    try:
        asyncio.run(work(order))
    except BaseException as error:
        with suppress(OSError):  # the folder may be gone with the test
            order.errors.write_text(f"{type(error).__name__}: {error}\n")
        raise
    append_line(order.moments, {"process": os.getpid(), "passed": _moments.passed})
