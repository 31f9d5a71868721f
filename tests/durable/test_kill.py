"""A process is killed at any moment, another goes on: the same result, the same tree, and nothing done twice."""

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from spanflow.entries import Entry
from spanflow.events import StepResultEvent
from tests.durable.checking import Outcome, journal_of, outcome_of
from tests.durable.conftest import AT_ONCE, Where
from tests.durable.processes import Order, complete, finish, launch
from tests.durable.program import RESULT, conclude

PLACES = [
    "in prepare",
    "tool with 3",  # of prepare, and of an item that runs beside others
    "in measure[0]",
    "in measure[1]",
    "tool with 2",  # after an answer
    "in total",  # in a worker thread
    "in span_of",
    "in review/flaky",
    "in review/grow#2",
    "in review/approve",
    "in report",
]


def order_in(folder: Path, where: Where, kill: str | None = None) -> Order:
    return Order(folder, run_id=uuid4().hex, kill=kill, **where)


@pytest.fixture(scope="module")
def uninterrupted(stores: Sequence[Where], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    order = order_in(tmp_path_factory.mktemp("uninterrupted"), stores[0])
    complete(conclude, order)
    outcome = outcome_of(order)
    assert list(outcome.problems()) == []
    assert (outcome.lost, outcome.doubled) == ([], {})
    assert (outcome.state.status, outcome.state.result) == ("success", RESULT)
    assert len([entry for entry in outcome.entries if entry.kind is StepResultEvent]) == 14
    (root,) = [span for span in outcome.spans if span.parent_id is None]
    assert (root.attributes["feature_flag.ranker"], root.attributes["user.id"]) == ("v2", "u-42")
    return outcome


def killed_and_completed(order: Order, expected: Outcome) -> tuple[int, list[str]]:
    """Kill a run, complete it in another process, and return how the first one ended and what is wrong."""
    order.folder.mkdir()
    code = finish(launch(conclude, order))
    at_death = journal_of(order)
    complete(conclude, order)
    outcome = outcome_of(order)
    return code, [f"killed {order.kill}: {problem}" for problem in outcome.problems(expected, [at_death])]


def orders(folder: Path, stores: Sequence[Where], moment: str) -> Iterator[list[Order]]:
    """Orders to die at one write of the journal after the other, some at once."""
    first = 1
    while True:
        numbers = range(first, first + AT_ONCE)
        yield [
            order_in(folder / str(number), where, f"{moment} write {number}")
            for number, where in zip(numbers, stores, strict=True)
        ]
        first += AT_ONCE


@pytest.mark.parametrize("moment", ["after", "before"])
def test_a_run_killed_at_any_write_to_its_journal_ends_as_if_it_had_not_been(
    moment: str, stores: Sequence[Where], uninterrupted: Outcome, tmp_path: Path
) -> None:
    kills = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for batch in orders(tmp_path, stores, moment):
            results = list(pool.map(partial(killed_and_completed, expected=uninterrupted), batch))
            assert [problem for _, problems in results for problem in problems] == []
            codes = [code for code, _ in results]
            kills += codes.count(-signal.SIGKILL)
            if 0 in codes:  # it had ended before this many writes
                break
    assert kills >= 20


@pytest.mark.parametrize("place", PLACES)
def test_a_run_killed_inside_a_step_or_tool_runs_that_step_again_and_no_other(
    place: str, where: Where, uninterrupted: Outcome, tmp_path: Path
) -> None:
    order = order_in(tmp_path / "run", where, place)
    code, problems = killed_and_completed(order, uninterrupted)
    assert problems == []
    assert code == -signal.SIGKILL
    outcome = outcome_of(order)
    assert outcome.lost
    if place.startswith("tool"):
        assert [span for span in outcome.spans if span.lost and span.name == "execute_tool look_up"]
    if place.startswith("in "):
        path = place.removeprefix("in ")
        assert path in outcome.lost
        assert outcome.keys.count(path) == uninterrupted.keys.count(path) + 1


def test_a_run_killed_again_and_again_still_ends_with_one_trace(
    where: Where, uninterrupted: Outcome, tmp_path: Path
) -> None:
    order = order_in(tmp_path, where)
    deaths: list[Sequence[Entry]] = []
    for place in PLACES:
        assert finish(launch(conclude, replace(order, kill=place))) == -signal.SIGKILL
        deaths.append(journal_of(order))
    complete(conclude, order)
    outcome = outcome_of(order)
    assert list(outcome.problems(uninterrupted, deaths)) == []
    assert len(outcome.lost) >= len(PLACES)
    assert len({span.process for span in outcome.spans}) > 2


def test_a_run_whose_heir_is_killed_when_it_has_closed_what_was_lost_loses_nothing_twice(
    where: Where, uninterrupted: Outcome, tmp_path: Path
) -> None:
    order = order_in(tmp_path, where)
    deaths: list[Sequence[Entry]] = []
    for kill in ("in prepare", "after write 2"):  # its start is one write, what it closes another
        assert finish(launch(conclude, replace(order, kill=kill))) == -signal.SIGKILL
        deaths.append(journal_of(order))
    complete(conclude, order)
    outcome = outcome_of(order)
    assert list(outcome.problems(uninterrupted, deaths)) == []
    assert (outcome.lost, outcome.doubled) == (["prepare"], {})


def test_a_run_whose_processes_all_died_while_it_was_suspended_is_answered_by_another(
    where: Where, uninterrupted: Outcome, tmp_path: Path
) -> None:
    order = replace(order_in(tmp_path, where), answers=False)
    assert finish(launch(conclude, order)) == 0  # it is suspended, and there is no process any more
    suspended = outcome_of(order)
    assert suspended.state.status == "suspended"
    assert [span.name for span in suspended.spans if span.name == "run.started"] == ["run.started"]
    assert not [span for span in suspended.spans if span.parent_id is None], "the root is exported before the end"
    complete(conclude, replace(order, answers=True))
    outcome = outcome_of(order)
    assert list(outcome.problems(uninterrupted)) == []
    assert (outcome.lost, outcome.doubled) == ([], {})
