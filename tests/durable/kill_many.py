"""Kill a run at random moments, many times, and check each time what is left of it.

    uv run python tests/durable/kill_many.py --times 50
    uv run python tests/durable/kill_many.py --times 1000 --seed 7
    uv run python tests/durable/kill_many.py --store postgresql://user:password@127.0.0.1:5432/test

Each run is killed by SIGKILL from outside, at any microsecond, perhaps several times, and completed by other processes.
Then its result, the side effects of its steps, and the exported spans (ids, parents, one root, times, the whole tree)
must be those of an uninterrupted run, plus what recovery names.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))  # where it is run as a script

from spanflow.entries import Entry
from tests.durable.checking import Outcome, journal_of, outcome_of
from tests.durable.conftest import Where
from tests.durable.processes import Order, complete, finish, launch
from tests.durable.program import conclude
from tests.stores.postgres import Postgres


@dataclass(slots=True)
class Tally:
    """What was done so far."""

    kills: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0


def kill_and_complete(order: Order, kills: int, duration: float, chance: random.Random) -> list[Sequence[Entry]]:
    """Kill a run up to as many times, and let it end. Return what the journal held at each death."""
    deaths: list[Sequence[Entry]] = []
    for _ in range(kills):
        process = launch(conclude, order)
        process.join(chance.uniform(0.0, duration))
        process.kill()
        if finish(process) == 0:  # it was faster
            break
        deaths.append(journal_of(order))
    complete(conclude, order)
    return deaths


def uninterrupted(order: Order) -> tuple[Outcome, float]:
    """Return a run that nobody killed, and how long (s) its process took."""
    began = time.monotonic()
    complete(conclude, order)
    duration, outcome = time.monotonic() - began, outcome_of(order)
    problems = [*outcome.problems(), *(f"{path} was lost" for path in outcome.lost)]
    if problems:
        raise RuntimeError(f"A run that nobody killed: {'; '.join(problems)}")
    return outcome, duration


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill a run at random moments, and check what is left of it.")
    parser.add_argument("--times", type=int, default=50, help="how many runs are killed (50)")
    parser.add_argument("--seed", type=int, default=None, help="to draw the same moments again")
    parser.add_argument("--keep", action="store_true", help="keep stores and spans, not only of what is wrong")
    parser.add_argument("--store", default="sqlite", help="sqlite, or the DSN of a PostgreSQL (sqlite)")
    options = parser.parse_args(argv)
    with ExitStack() as stack:
        where = Where()
        if options.store != "sqlite":
            schema = stack.enter_context(Postgres(options.store)).schema  # dropped in the end
            where = Where(dsn=options.store, schema=schema)
        return kill_many(options, where)


def kill_many(options: argparse.Namespace, where: Where) -> int:
    seed = random.randrange(10**6) if options.seed is None else options.seed
    chance, tally = random.Random(seed), Tally()
    folder = Path(tempfile.mkdtemp(prefix="spanflow-kill-"))
    print(f"seed {seed}, runs in {folder}")
    uninterrupted(Order(folder_of(folder, "first"), run_id="first", **where))  # imports take their time once
    expected, duration = uninterrupted(Order(folder_of(folder, "expected"), run_id="expected", **where))
    for number in range(1, options.times + 1):
        order = Order(folder_of(folder, str(number)), run_id=f"r-{number}", **where)
        deaths = kill_and_complete(order, chance.choice((1, 1, 2, 3)), duration, chance)
        outcome = outcome_of(order)
        problems = list(outcome.problems(expected, deaths))
        tally.kills += len(deaths)
        tally.lost += len(outcome.lost)
        tally.doubled += len(outcome.doubled)
        tally.wrong += bool(problems)
        print(f"{number:>5}  {len(deaths)} kills, {len(outcome.lost)} attempts lost  {'; '.join(problems) or 'ok'}")
        if not problems and not options.keep:
            shutil.rmtree(order.folder)
    print(f"{options.times} runs, {tally.kills} kills, {tally.lost} attempts lost, {tally.wrong} runs wrong.")
    print(f"{tally.doubled} spans exported twice under one id, by a death between their export and the journal.")
    return 1 if tally.wrong else 0


def folder_of(parent: Path, name: str) -> Path:
    found = parent / name
    found.mkdir()
    return found


if __name__ == "__main__":
    sys.exit(main())
