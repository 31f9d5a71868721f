"""The benchmarks measure what they say they do. How long it takes is never asked here."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from benchmarks.__main__ import Row, exit_code, table
from benchmarks.cases import NAMES, cases
from spanflow.testing import Traces, capture_traces

ROOT = Path(__file__).parent.parent


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--rounds=1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def without_ids(traces: Traces) -> Counter[tuple[str, tuple[tuple[str, str], ...]]]:
    """Count spans that are the same but for ids and times."""
    found: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
    for span in traces.spans:
        attributes = {key: repr(value) for key, value in (span.attributes or {}).items() if key != "spanflow.run.id"}
        found[span.name, tuple(sorted(attributes.items()))] += 1
    return found


@pytest.mark.parametrize("name", NAMES)
async def test_floor_and_spanflow_give_the_same_result_and_the_same_spans(name: str) -> None:
    with capture_traces() as traces:
        case = cases(trace.get_tracer("floor"))[name]
        by_hand = await case.floor()
        traces.assert_complete()
        floor_spans, floor_tree = without_ids(traces), traces.tree()
        traces.clear()
        ours = await case.spanflow()
        traces.assert_complete()
        assert ours == by_hand
        assert without_ids(traces) == floor_spans
        assert traces.tree() == floor_tree
        assert sum(span.name.startswith("step ") for span in traces.spans) == case.steps


def test_one_command_measures_every_case_with_tracing_off_and_on_and_exits_0() -> None:
    done = run_benchmarks("--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    timed = [row for row in rows if row["unit"] == "µs/step"]
    assert [row["tracing"] for row in timed] == ["off"] * len(NAMES) + ["on"] * len(NAMES)
    assert len({row["what"] for row in timed}) == len(NAMES)
    assert {(row["tracing"], row["goal"]) for row in timed} == {("off", 6.0), ("on", 1.5)}
    for row in timed:
        assert row["floor"] > 0
        assert row["spanflow"] > 0
        assert row["ratio"] == pytest.approx(row["spanflow"] / row["floor"])  # one round: nothing to take a median of
        assert row["met"] == (row["ratio"] <= row["goal"])
    others = [(row["what"].partition(" ")[0], row["tracing"]) for row in rows[len(timed) :]]
    assert others == [
        ("export", "on"),
        ("peak", "on"),
        ("kept", "off"),
        ("kept", "on"),
        ("append", "off"),
        ("kept", "off"),
        ("open", "off"),
        ("written", "off"),
        ("import", "-"),
    ]
    assert [row["what"] for row in rows if row["tracing"] == "off" and row["goal"] == 3.0 and not row["met"]] == []


def test_one_case_is_shown_as_a_table_with_its_goals() -> None:
    done = run_benchmarks("--case=sequential10")
    assert (done.returncode, done.stderr) == (0, "")
    head, off, on, *_ = done.stdout.splitlines()
    assert head.split() == ["tracing", "floor", "spanflow", "ratio", "(best)", "goal"]
    assert off.startswith("10 sequential steps, µs/step")
    assert off.partition("≤ ")[2].split(",")[0] == "6"
    assert on.partition("≤ ")[2].split(",")[0] == "1.5"


def test_a_missed_goal_is_shouted_and_a_met_one_is_not() -> None:
    met = Row("a", "on", "µs/step", 10.0, 15.0, 1.5, 1.4, 1.5)
    missed = Row("b", "on", "µs/step", 10.0, 15.1, 1.51, 1.4, 1.5)
    leaking = Row("c", "on", "B/run", None, 101.0, None, None, 100.0)
    lines = table([met, missed, leaking]).splitlines()
    assert [line.rpartition("≤ ")[2] for line in lines[1:4]] == ["1.5, met", "1.5, MISSED", "100 B/run, MISSED"]


def test_a_missed_goal_fails_the_command_only_where_goals_are_checked() -> None:
    met = Row("a", "on", "µs/step", 10.0, 15.0, 1.5, 1.4, 1.5)
    missed = Row("b", "on", "µs/step", 10.0, 15.1, 1.51, 1.4, 1.5)
    without_goal = Row("c", "-", "ms", 100.0, 900.0, 9.0, None, None)
    assert exit_code([met, without_goal], check=True) == 0
    assert exit_code([met, missed], check=True) == 1
    assert exit_code([met, missed], check=False) == 0


@pytest.mark.parametrize("arguments", [("--case=nothing",), ("--rounds=0",)])
def test_options_that_mean_nothing_are_refused(arguments: tuple[str, ...]) -> None:
    done = run_benchmarks(*arguments)
    assert done.returncode == 2
    assert "error: argument" in done.stderr


def test_the_export_is_measured_end_to_end_on_both_sides() -> None:
    done = run_benchmarks("--case=export", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    seconds, peak = json.loads(done.stdout)
    assert seconds["what"] == "export of 2,500 foreach items"
    assert (seconds["goal"], peak["goal"]) == (1.25, 1.5)
    for row in (seconds, peak):
        assert min(row["floor"], row["spanflow"]) > 0
        assert row["ratio"] == pytest.approx(row["spanflow"] / row["floor"])
