"""A program that the tests of SQLiteStore run, kill and starve: ``python writer.py WHAT FILE ...``.

It says on stdout what was acknowledged, a line at a time.
"""

import asyncio
import os
import resource
import sys
from importlib import import_module

from spanflow import RunConflict, SpanflowError, SQLiteStore
from tests.stores.support import appended, created, everything, record, start, step
from tests.stores.support import numbered as entries


def say(*what: object) -> None:
    print(*what, flush=True)


async def create(path: str, run_id: str) -> None:
    """Create a run in a file that other processes create at the same time."""
    sys.stdin.readline()
    store = SQLiteStore(path)
    await store.create(record(run_id), entries(start(), run_id=run_id))
    say("created")
    await store.aclose()


async def append(path: str, run_id: str) -> None:
    """Append for ever, and say how far the journal goes."""
    store = SQLiteStore(path)
    at = await created(store, run_id)
    say(at)
    while True:
        at = await appended(store, at, *step("a", "x" * 500), run_id=run_id)
        say(at)


async def race(path: str, run_id: str, rounds: str) -> None:
    """Append to a run that others append to as well; say how often it worked."""
    store, won = SQLiteStore(path), 0
    sys.stdin.readline()
    for _ in range(int(rounds)):
        at = (await everything(store, run_id))[-1].seq
        try:
            await appended(store, at, *step("a"), run_id=run_id)
            won += 1
        except RunConflict:
            pass
    say(won)
    await store.aclose()


async def starve(path: str, run_id: str) -> None:
    """Append until files may not grow, then go on once they may."""
    store = SQLiteStore(path)
    at = await created(store, run_id)
    room = os.stat(f"{path}-wal").st_size + 200_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        while True:
            at = await appended(store, at, *step("a", "x" * 10_000), run_id=run_id)
    except SpanflowError as error:
        say(type(error).__name__, error)
    say(at, len(await everything(store, run_id)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    say(await appended(store, at, *step("after"), run_id=run_id))
    await store.aclose()


def fork(path: str, run_id: str) -> None:
    """Use a store on both sides of a fork."""
    store, child_run = SQLiteStore(path), f"{run_id} of the child"

    async def begin() -> None:
        await created(store, run_id)
        await created(store, child_run)

    async def go_on(run: str) -> None:
        at = 1
        for number in range(20):
            at = await appended(store, at, *step(f"s{number}"), run_id=run)

    async def end() -> None:
        say(len(await everything(store, run_id)), len(await everything(store, child_run)))
        await store.aclose()

    asyncio.run(begin())
    child = os.fork()
    asyncio.run(go_on(run_id if child else child_run))
    if child:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        asyncio.run(end())


async def unprivileged(path: str, run_id: str) -> None:
    """Write where this user may not."""
    import_module("sqlite3")  # what is not loaded by now may be out of reach
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        await created(SQLiteStore(path), run_id)
    except SpanflowError as error:
        say(type(error).__name__, error)


PROGRAMS = (create, append, race, starve, fork, unprivileged)

if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    (program,) = (each for each in PROGRAMS if each.__name__ == what)
    doing = program(*arguments)
    if doing is not None:
        asyncio.run(doing)
