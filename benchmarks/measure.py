"""Time two sides against each other: many short rounds, turn and turn about, so that a busy machine slows both."""

import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from benchmarks.cases import Case, Once

_BATCH = 0.005  # s that the floor takes in one round: long enough for the clock, short enough to dodge a busy neighbour
_SLOWEST = 30.0  # s for all rounds of one case; a slower machine gets fewer


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds a step of both sides in each round."""

    floor: list[float]
    spanflow: list[float]

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios: what the table and the goals go by."""
        return median(ours / by_hand for ours, by_hand in zip(self.spanflow, self.floor, strict=True))

    @property
    def ratio_of_minima(self) -> float:
        """The best of one side against the best of the other: less noise, but one lucky round decides."""
        return min(self.spanflow) / min(self.floor)


def measure(case: Case, rounds: int, settle: Callable[[], object]) -> Timing:
    """Time both sides of a case. ``settle`` runs between two timings, e.g. to export what a side left behind."""
    with asyncio.Runner() as runner:
        return runner.run(_measure(case, rounds, settle))


async def _measure(case: Case, rounds: int, settle: Callable[[], object]) -> Timing:
    by_hand, ours = await case.floor(), await case.spanflow()
    assert by_hand == ours, f"{case.name}: the floor gave {by_hand!r}, spanflow {ours!r}"
    once = min([await _time(case.floor, 1, settle) for _ in range(5)])
    runs = max(1, round(_BATCH / once))
    await _time(case.spanflow, runs, settle)
    timing = Timing([], [])
    until = perf_counter() + _SLOWEST
    for number in range(rounds):
        sides = [(case.floor, timing.floor), (case.spanflow, timing.spanflow)]
        for side, seconds in sides if number % 2 else reversed(sides):
            seconds.append(await _time(side, runs, settle) / case.steps)
        if perf_counter() > until:
            break
    return timing


async def _time(side: Once, runs: int, settle: Callable[[], object]) -> float:
    """Return seconds per run. Each timing starts with nothing to collect, and pays for what it makes to collect."""
    settle()
    gc.collect()
    started = perf_counter()
    for _ in range(runs):
        await side()
    return (perf_counter() - started) / runs
