"""What keeping runs in a SQLite file costs. Prints one JSON line: ``python -m benchmarks.durable --rounds 40``."""

import argparse
import asyncio
import gc
import json
import sqlite3
import sys
import tracemalloc
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TypedDict

from spanflow import MemoryStore, Runtime, SQLiteStore, StepContext, Workflow, step
from spanflow.entries import Entry
from spanflow.ports import RunRecord
from spanflow.stores.codec import encode_batch

_STEPS = 10_000
_ITEM = 200  # bytes
_APPENDS = 500  # in one round, each of which starts in another place between two checkpoints
_SUSPENDED = 200


class Found(TypedDict):
    """``floor`` and ``append``: seconds an append in each round. ``written``: bytes for each byte of payload."""

    floor: list[float]
    append: list[float]
    opened: float
    written: float
    suspended: float


@step(id="each")
async def same(text: str) -> str:
    return text


@step
async def ask(value: int, ctx: StepContext) -> int:
    return await ctx.suspend("?", resume=int)


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durable", description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    rounds: int = parser.parse_args(argv).rounds
    with TemporaryDirectory(prefix="spanflow-") as directory:
        place = Path(directory)
        floor, append = await _appends(place, rounds)
        opened, written = await _large_run(place / "large.db")
        found = Found(
            floor=floor,
            append=append,
            opened=opened,
            written=written,
            suspended=await _suspended_runs(place / "suspended.db"),
        )
    sys.stdout.write(json.dumps(found) + "\n")


async def _appends(place: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Append the events of steps; insert the very same bytes by hand into another file; turn and turn about."""
    record, first, batches = await _run_in_memory()
    bodies = [encode_batch(batch) for batch in batches]
    by_hand: list[float] = []
    ours: list[float] = []
    store = SQLiteStore(place / "ours.db")
    with closing(sqlite3.connect(place / "floor.db", isolation_level=None)) as floor:
        floor.execute("PRAGMA journal_mode = WAL")
        floor.execute("PRAGMA synchronous = NORMAL")
        floor.execute("CREATE TABLE bodies (id INTEGER PRIMARY KEY, body TEXT)")
        for number in range(rounds):
            record.run_id = f"r{number}"
            await store.create(record, first)
            gc.collect()
            started = perf_counter()
            for batch in batches:
                store.append_now(record.run_id, batch, batch[0].seq - 1)
            half = perf_counter()
            for body in bodies:
                floor.execute("INSERT INTO bodies (body) VALUES (?)", (body,))
            ours.append((half - started) / _APPENDS)
            by_hand.append((perf_counter() - half) / _APPENDS)
    await store.aclose()
    return by_hand, ours


async def _run_in_memory() -> tuple[RunRecord, Sequence[Entry], list[Sequence[Entry]]]:
    """Return a run, its first events, and what each of its steps then appends: a result, its end, the next start."""
    store = MemoryStore()
    run = await Runtime(store).create_run(_texts())
    (await run.start(["x" * _ITEM] * (_APPENDS + 1))).unwrap()
    entries = await store.read(run.run_id, limit=_APPENDS * 4)
    batches = [entries[number : number + 3] for number in range(3, 3 + 3 * _APPENDS, 3)]
    return await store.load(run.run_id), entries[:3], batches


async def _large_run(path: Path) -> tuple[float, float]:
    """Return how long it takes to open a run of many steps, in s, and what it wrote for each byte of its items."""
    texts = _texts()
    async with Runtime(SQLiteStore(path)) as runtime:
        run = await runtime.create_run(texts)
        (await run.start(["x" * _ITEM] * _STEPS)).unwrap()
    with closing(sqlite3.connect(path)) as file:
        (written,) = file.execute("SELECT sum(length(body)) FROM batches").fetchone()
    async with Runtime(SQLiteStore(path), [texts]) as runtime:
        started = perf_counter()
        again = await runtime.get_run(run.run_id)
        result = await again.wait()
        opened = perf_counter() - started
    assert len(result.unwrap()) == _STEPS
    return opened, written / (_STEPS * _ITEM)


async def _suspended_runs(path: Path) -> float:
    """Return the bytes of memory that a suspended run keeps in the process that suspended it."""
    questions = Workflow("questions", input=int).then(ask)
    async with Runtime(SQLiteStore(path)) as runtime:

        async def suspend(runs: int) -> None:
            for _ in range(runs):
                run = await runtime.create_run(questions)
                await run.start(1)

        await suspend(20)
        gc.collect()
        tracemalloc.start()
        await suspend(_SUSPENDED)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return kept / _SUSPENDED


def _texts() -> Workflow[list[str], list[str]]:
    return Workflow("texts", input=list[str]).foreach(same)


if __name__ == "__main__":
    asyncio.run(main())
