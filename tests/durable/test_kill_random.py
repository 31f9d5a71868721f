"""Whatever is composed: processes are killed at any moment, and the run ends as if nothing had happened."""

import signal
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spanflow.entries import Entry
from tests.durable.checking import Outcome, journal_of, outcome_of
from tests.durable.conftest import AT_ONCE, Where
from tests.durable.processes import complete, finish, launch, read_lines
from tests.durable.random_program import PlanOrder, conclude_plan
from tests.durable.steady import is_steady, steadied
from tests.properties.plans import (
    Call,
    Condition,
    Fail,
    Keep,
    Leave,
    Loop,
    Nested,
    Parallel,
    Pause,
    Take,
    Task,
    Then,
    ToolTask,
)
from tests.properties.strategies import NIGHTLY, plans

CI_EXAMPLES = 6
THOUSAND = 1000

# Seconds where all is well; to make a failure small may take minutes.
pytestmark = pytest.mark.timeout(0 if NIGHTLY else 600)

examples = settings(
    max_examples=NIGHTLY or CI_EXAMPLES,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)

Chances = tuple[int, ...]
"""When each process of a run is killed, in thousandths of what an uninterrupted one has to do."""


class Inputs(TypedDict):
    """What a run of a plan is given."""

    value: int
    answering: Literal["first", "last", "all"]
    exports_inline: bool


_moments = st.integers(0, THOUSAND - 1)
_chances: st.SearchStrategy[Chances] = st.lists(_moments, min_size=1, max_size=4).map(tuple)
_kills = st.lists(_chances, min_size=AT_ONCE, max_size=AT_ONCE)
_answering: Any = st.sampled_from(["first", "last", "all"])
_inputs = st.builds(Inputs, value=st.integers(0, 12), answering=_answering, exports_inline=st.booleans())


def uninterrupted(order: PlanOrder) -> tuple[Outcome, int]:
    """Return a run that nobody killed, and how many moments it had."""
    complete(conclude_plan, order)
    outcome = outcome_of(order)
    assert list(outcome.problems()) == []
    assert (outcome.lost, outcome.doubled) == ([], {})
    return outcome, read_lines(order.moments)[0]["passed"]


def moments_of(chances: Chances, moments: int) -> list[int]:
    """Return the moment at which each process dies: the first one's anywhere, those of the others rather early.

    What is special about them is how they begin.
    """
    shares = [chance / THOUSAND for chance in chances]
    return [1 + int((share if number == 0 else share**2) * moments) for number, share in enumerate(shares)]


def killed(order: PlanOrder, kills: Sequence[int]) -> tuple[Outcome, list[Sequence[Entry]]]:
    """Run a plan by processes of which all but the last are killed. Return the journal at each death as well."""
    deaths: list[Sequence[Entry]] = []
    for kill in kills:
        code = finish(launch(conclude_plan, replace(order, kill=kill)))
        if code != -signal.SIGKILL:
            assert code == 0, order.errors.read_text()
            break
        deaths.append(journal_of(order))
    complete(conclude_plan, order)
    return outcome_of(order), deaths


def problems_of(
    plan: Nested,
    inputs: Inputs,
    stores: Sequence[Where],
    kills_of: Callable[[int], Sequence[Sequence[int]]],
) -> list[str]:
    """Run a plan without kills, then with those that follow from its moments. Tell what is wrong with the latter."""
    with tempfile.TemporaryDirectory(prefix="spanflow-kill-") as folder:

        def order_in(slot: int, name: str) -> PlanOrder:
            (Path(folder) / name).mkdir()
            return PlanOrder(Path(folder) / name, run_id=uuid4().hex, plan=plan, **inputs, **stores[slot])

        expected, moments = uninterrupted(order_in(0, "expected"))
        kills = kills_of(moments)

        def problems_in(slot: int) -> list[str]:
            found: list[str] = []
            for number in range(slot, len(kills), AT_ONCE):
                outcome, deaths = killed(order_in(slot, str(number)), kills[number])
                problems = outcome.problems(expected if is_steady(plan) else None, deaths)
                found += [f"killed at {kills[number]} of {moments}: {problem}" for problem in problems]
            return found

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return [problem for found in pool.map(problems_in, range(AT_ONCE)) for problem in found]


@examples
@given(plans.map(steadied), _inputs, _kills)
def test_a_run_that_was_killed_comes_to_the_same_and_tells_the_same(
    stores: Sequence[Where], plan: Nested, inputs: Inputs, kills: Sequence[Chances]
) -> None:
    found = problems_of(plan, inputs, stores, lambda moments: [moments_of(each, moments) for each in kills])
    assert found == [], found[0]


@examples
@given(plans, _inputs, _kills)
def test_a_run_of_parts_that_race_is_whole_after_kills(
    stores: Sequence[Where], plan: Nested, inputs: Inputs, kills: Sequence[Chances]
) -> None:
    found = problems_of(plan, inputs, stores, lambda moments: [moments_of(each, moments) for each in kills])
    assert found == [], found[0]


FAILS = Task((Take(3), Fail(1, 99)))
BESIDE = Nested((Then(Task((Keep(), Call("async", 1)))), Pause(10), Then(ToolTask("plain"))))


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Nested((Parallel((BESIDE, FAILS)),)), id="what a failure stops"),
        pytest.param(Nested((Parallel((BESIDE, Task((Take(3), Leave("abort", 1))))),)), id="what an abort stops"),
        pytest.param(
            Nested((Loop(Task((Keep(),)), Condition(1, calls=True), until=True, cap=2),)), id="what a condition calls"
        ),
    ],
)
def test_a_run_killed_at_any_moment_is_whole(plan: Nested, tmp_path: Path) -> None:
    """What random plans have found, with each moment in its turn."""
    inputs = Inputs(value=2, answering="first", exports_inline=False)
    found = problems_of(plan, inputs, [Where()] * AT_ONCE, lambda moments: [(1 + each,) for each in range(moments)])
    assert found == [], found[0]
