"""Measure all cases and print one table. Timings never decide the exit code, unless ``--check`` asks for it."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.cases import NAMES
from benchmarks.footprint import import_seconds

_ROOT = Path(__file__).parent.parent
_GOALS = {"on": 1.5, "off": 6.0}  # off: 30 µs a step where the floor takes 5
_EXPORT = "export"
_LEAK = 100.0  # bytes a run
_COLUMNS = "{:<44} {:<7} {:>10} {:>10} {:>7} {:>7}   {}"
_NOTES = """
floor: the same work, validation and spans, written by hand (benchmarks/floor.py), in the same process, turn and turn
about. Times are medians over the rounds; ratio: median of the rounds' ratios; (best): ratio of the two best rounds.
Of the export the floor is the SDK's batch processor with a queue for all of the spans, each side once and in a process
of its own, by OTLP over HTTP to a sink in another one, until that has the last span.
Of SQLite the floor is one INSERT and commit of the same bytes; times are means, since its log is moved now and then.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``goal`` is the most that the ratio may be or, where there is no floor, the value."""

    what: str
    tracing: str
    unit: str
    floor: float | None
    spanflow: float
    ratio: float | None
    ratio_of_minima: float | None
    goal: float | None

    @property
    def met(self) -> bool:
        measured = self.spanflow if self.ratio is None else self.ratio
        return self.goal is None or measured <= self.goal


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code."""
    options = _options(argv)
    timed = [name for name in options.case or NAMES if name != _EXPORT]
    rows = [row for tracing in ("off", "on") if timed for row in _timings(tracing, timed, options.rounds)]
    if not options.case or _EXPORT in options.case:
        rows += _exports(min(options.rounds * 2500, 100_000))
    if not options.case:
        rows += [_memory(tracing, options.rounds * 10) for tracing in ("off", "on")]
        rows += _durable(options.rounds)
        rows.append(_imports(min(options.rounds, 5)))
    print(json.dumps([asdict(row) | {"met": row.met} for row in rows]) if options.json else table(rows))
    return exit_code(rows, check=options.check)


def exit_code(rows: Sequence[Row], *, check: bool) -> int:
    """Return 1 where the goals are to be checked and one of them is missed, else 0."""
    return int(check and not all(row.met for row in rows))


def table(rows: Sequence[Row]) -> str:
    """Write the rows for people."""
    head = _COLUMNS.format("", "tracing", "floor", "spanflow", "ratio", "(best)", "goal")
    return "\n".join([head, *map(_line, rows), _NOTES.rstrip()])


def _line(row: Row) -> str:
    values = [_number(each, 1) for each in (row.floor, row.spanflow)]
    ratios = [_number(each, 2) for each in (row.ratio, row.ratio_of_minima)]
    unit = "" if row.ratio is not None else f" {row.unit}"
    goal = "" if row.goal is None else f"≤ {row.goal:g}{unit}, {'met' if row.met else 'MISSED'}"
    return _COLUMNS.format(f"{row.what}, {row.unit}", row.tracing, *values, *ratios, goal).rstrip()


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _timings(tracing: str, names: Sequence[str], rounds: int) -> list[Row]:
    chosen = [f"--case={name}" for name in names]
    output = _run("benchmarks.worker", f"--tracing={tracing}", f"--rounds={rounds}", *chosen)
    return [_timing(json.loads(line)) for line in output.splitlines()]


def _timing(found: dict[str, Any]) -> Row:
    return Row(
        what=found["title"],
        tracing=found["tracing"],
        unit="µs/step",
        floor=median(found["floor"]) * 1e6,
        spanflow=median(found["spanflow"]) * 1e6,
        ratio=found["ratio"],
        ratio_of_minima=found["ratio_of_minima"],
        goal=_GOALS[found["tracing"]],
    )


def _memory(tracing: str, runs: int) -> Row:
    kept = float(_run("benchmarks.footprint", f"--tracing={tracing}", f"--runs={runs}"))
    return Row("kept of a finished run", tracing, "B/run", None, kept, None, None, _LEAK)


def _durable(rounds: int) -> list[Row]:
    found = json.loads(_run("benchmarks.durable", f"--rounds={rounds}"))
    floor, append = found["floor"], found["append"]
    by_hand, ours = mean(floor) * 1e6, mean(append) * 1e6
    return [
        Row("append to SQLite", "off", "µs", by_hand, ours, ours / by_hand, min(append) / min(floor), 1.5),
        Row("kept of a suspended run", "off", "B/run", None, found["suspended"], None, None, 20_000.0),
        Row("open a run of 10,000 steps", "off", "ms", None, found["opened"] * 1e3, None, None, 1000.0),
        Row("written of 10,000 items of 200 B", "off", "x payload", None, found["written"], None, None, 3.0),
    ]


def _exports(items: int) -> list[Row]:
    found = json.loads(_run("benchmarks.export", f"--items={items}"))
    floor, ours = found["floor"], found["spanflow"]
    slower, larger = ours["seconds"] / floor["seconds"], ours["peak"] / floor["peak"]
    by_hand, mine = floor["seconds"] * 1e6, ours["seconds"] * 1e6
    return [
        Row(f"export of {items:,} foreach items", "on", "µs/item", by_hand, mine, slower, slower, 1.25),
        Row("peak memory of that", "on", "MB", floor["peak"] / 1e6, ours["peak"] / 1e6, larger, larger, 1.5),
    ]


def _imports(rounds: int) -> Row:
    alone, whole = (seconds * 1e3 for seconds in import_seconds(rounds))
    return Row("import (floor: dependencies)", "-", "ms", alone, whole, whole / alone, None, None)


def _run(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=_ROOT).stdout


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--case", action="append", choices=[*NAMES, _EXPORT], help="only this one; may be given again")
    parser.add_argument("--rounds", type=_positive, default=40, help="timings of each side (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal is missed")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
