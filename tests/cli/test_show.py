"""`spanflow show`: one run from its journal alone, done, waiting, lost, or in progress somewhere else."""

import re
import signal
import subprocess
from typing import Any

from spanflow import RunState
from spanflow.events import Event, parse_event
from tests.cli.command import TRACES, Done, Spanflow, a_nap, elsewhere, read_until, without_ages

SUSPENDED = """\
run       r-3
workflow  refunds
status    suspended
started   2026-01-01 12:02:00
duration  AGE so far
trace     33333333333333333333333333333333
resource  desk 4
metadata  user.id=u-2
metadata  session.id=s-1
input     {"amount":250}
waits     for an answer (Decision) at approve, since 2026-01-01 12:02:00: {"question":"Refund 250 EUR?"}

invoke_workflow refunds       AGE  [suspended]
├── step check                    0 µs
│   └── execute_tool look_up      0 µs
├── step approve                  0 µs  [suspended]
└── wait approve              AGE  [waiting]
"""

FAILED = """\
run       r-2
workflow  crawl
status    failed
started   2026-01-01 12:01:00
duration  1 min
trace     00000000000000000000000000000002
metadata  rank=7
metadata  user.id=u-2
input     [2,0]
error     ZeroDivisionError: integer division or modulo by zero  at fetch[1]

invoke_workflow crawl  1 min  ERROR ZeroDivisionError: integer division or modulo by zero
└── foreach fetch      1 min  ERROR ZeroDivisionError: integer division or modulo by zero  [1 failed]
    ├── step fetch[0]   0 µs
    ├── step fetch[1]   0 µs  ERROR ZeroDivisionError: integer division or modulo by zero
    ├── wait fetch     1 min
    └── step fetch[1]   0 µs  ERROR ZeroDivisionError: integer division or modulo by zero  [attempt 2]

Traceback (most recent call last):
"""

EVENTS = """\
    1  12:00:00.000  start           -  crawl [1,2]
    2  12:00:00.000  step-start      fetch  [1,2]
    3  12:00:00.000  step-start      fetch[0]  1
    4  12:00:00.000  step-retry      fetch[0]  attempt 1 ERROR ConnectionError: busy, next in 60 s
    5  12:01:00.000  step-start      fetch[0]  attempt 2 1
    6  12:01:00.000  step-result     fetch[0]  success 10
    7  12:01:00.000  step-finish     fetch[0]  0 µs
    8  12:01:00.000  step-start      fetch[1]  2
    9  12:01:00.000  step-result     fetch[1]  success 5
   10  12:01:00.000  step-finish     fetch[1]  0 µs
   11  12:01:00.000  step-result     fetch  success [10,5]
   12  12:01:00.000  step-finish     fetch  1 min
   13  12:01:00.000  finish          -  success [10,5]

run       r-1
"""


def squeezed(text: str) -> str:
    """A tree but for the spaces before ages, which are as wide as the ages."""
    return re.sub(r" +AGE", " AGE", text)


def events_of(done: Done) -> list[Event]:
    assert done.code == 0, done.err
    return [parse_event(line) for line in done.lines]


# --- runs that nobody executes


def test_a_suspended_run_shows_what_it_asks_and_its_tree_so_far(spanflow: Spanflow) -> None:
    done = spanflow("show", "r-3")
    assert (done.code, done.err) == (0, "")
    shown = re.sub(r"\d+ d(?: \d+ h)?(?= so far|  \[)", "AGE", done.out)
    assert re.sub(r" {2,}", "  ", squeezed(shown)) == re.sub(r" {2,}", "  ", squeezed(SUSPENDED))


def test_a_failed_run_shows_where_and_why(spanflow: Spanflow) -> None:
    done = spanflow("show", "r-2")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(FAILED)
    assert done.lines[-1] == "ZeroDivisionError: integer division or modulo by zero"


def test_each_event_is_one_line(spanflow: Spanflow) -> None:
    done = spanflow("show", "r-1", "--events")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(EVENTS)


def test_events_as_json_are_lines_that_fold_to_the_state_of_the_run(spanflow: Spanflow) -> None:
    events = events_of(spanflow("show", "r-1", "--events", "--json"))
    assert [event.seq for event in events] == list(range(1, 14))
    state = RunState.fold(events)
    assert (state.status, state.result) == ("success", [10, 5])
    assert events[1].type == "step-start"
    assert events[1].payload.input_ref == "", "a value is there once, as in the store"


def test_json_is_one_document(spanflow: Spanflow) -> None:
    found: dict[str, Any] = spanflow("show", "r-3", "--json").json
    assert {key: found[key] for key in ("run_id", "workflow_id", "status", "trace_id", "resource_id", "ended_at")} == {
        "run_id": "r-3",
        "workflow_id": "refunds",
        "status": "suspended",
        "trace_id": TRACES["r-3"],
        "resource_id": "desk 4",
        "ended_at": None,
    }
    assert found["input"] == {"amount": 250}
    assert found["waits"] == [
        {
            "for": "answer",
            "path": "approve",
            "since": "2026-01-01T12:02:00.000000Z",
            "payload": {"question": "Refund 250 EUR?"},
            "answer_type": "tests.cli.shop:Decision",
        }
    ]
    assert [(step["path"], step["status"]) for step in found["steps"]] == [
        ("check", "success"),
        ("approve", "suspended"),
    ]
    failed: dict[str, Any] = spanflow("show", "r-2", "--json").json
    assert failed["error"]["type"] == "ZeroDivisionError"
    assert failed["error"]["path"] == "fetch[1]"
    assert failed["counts"]["retries"] == 1


async def test_a_run_that_sleeps_without_a_process_shows_both(spanflow: Spanflow) -> None:
    await a_nap(spanflow.database)
    done = spanflow("show", "r-nap")
    waits = [line for line in done.lines if line.startswith("waits")]
    assert len(waits) == 2
    assert re.search(r"for a time at sleep, since \S+ \S+, until \S+ \S+$", "\n".join(waits), re.MULTILINE)
    assert re.search(r"for a process that takes it over, since .+: its own died or left it$", done.out, re.MULTILINE)
    assert without_ages(done.out).endswith("\n└── sleep            AGE  [waiting]\n")
    assert {wait["for"] for wait in spanflow("show", "r-nap", "--json").json["waits"]} == {"time", "process"}


def test_following_a_run_that_waits_ends_at_once_and_says_so_by_its_code(spanflow: Spanflow) -> None:
    done = spanflow("show", "r-3", "--follow")
    assert done.code == 3
    assert "    8  12:02:00.000  step-suspended  approve  {" in done.out
    assert spanflow("show", "r-1", "-f").code == 0
    assert spanflow("show", "r-2", "-f").code == 1


def test_an_unknown_run_is_one_line_and_code_2(spanflow: Spanflow) -> None:
    for more in ([], ["--events"], ["--follow"], ["--json"]):
        done = spanflow("show", "nowhere", *more)
        assert (done.code, done.out) == (2, "")
        assert re.fullmatch(r"error: There is no run 'nowhere' in this store\..*\n", done.err)


def test_a_trace_id_in_place_of_a_run_is_told_how_to_find_its_run(spanflow: Spanflow) -> None:
    assert "spanflow runs --trace" in spanflow("show", "8c0467ea03716c1256ab2a7713c726a0").err


# --- runs in progress, in another process


def test_a_run_that_executes_elsewhere_is_followed_to_its_end(empty: Spanflow) -> None:
    file = empty.folder / "go"
    with elsewhere(empty, "r-9", file) as process:
        shown = empty("show", "r-9")
        assert "\nexecutes  wait_for_file, for " in shown.out
        tree = shown.out.partition("\n\n")[2]
        assert re.search(r"\Ainvoke_workflow waiting .*\[running]\n└── step wait_for_file .*\[running]\n\Z", tree)
        following = empty.start("show", "r-9", "--follow")
        with following:
            before = read_until(following, "step-start      wait_for_file")
            file.touch()
            out, err = following.communicate(timeout=100)
        assert process.wait(timeout=100) == 0
    assert (following.returncode, err) == (0, "")
    assert len(before) == 2
    assert 'finish          -  success "it is there"' in out
    assert '\nresult    "it is there"\n' in out
    assert without_durations(out).endswith("invoke_workflow waiting\n├── step wait_for_file\n└── step say\n")


def without_durations(text: str) -> str:
    return re.sub(r"  +\d[\d.]* (?:µs|ms|s)$", "", text, flags=re.MULTILINE)


def test_leaving_a_run_by_ctrl_c_is_quiet_and_does_it_no_harm(empty: Spanflow) -> None:
    file = empty.folder / "go"
    with elsewhere(empty, "r-9", file) as process:
        with empty.start("show", "r-9", "--follow", "--json") as following:
            read_until(following, '"step-start"')
            following.send_signal(signal.SIGINT)
            out, err = following.communicate(timeout=100)
        assert (following.returncode, out, err) == (130, "", "")
        file.touch()
        assert process.wait(timeout=100) == 0
    assert empty("show", "r-9", "--json").json["result"] == "it is there"


def test_a_run_whose_process_was_killed_says_so_once_its_lease_is_over(empty: Spanflow) -> None:
    with elsewhere(empty, "r-9", empty.folder / "never") as process:
        process.kill()
    while not (waits := empty("show", "r-9", "--json").json["waits"]):  # for its lease of 1 s
        pass
    assert [wait["for"] for wait in waits] == ["process"]
    assert "\nwas in    wait_for_file, for " in empty("show", "r-9").out


# --- where it is printed


def test_a_reader_that_leaves_is_no_error(spanflow: Spanflow) -> None:
    shell = f"{' '.join(spanflow.line('show', 'r-1', '--events'))} | head -n 1"
    done = subprocess.run(
        ["sh", "-c", shell],
        capture_output=True,
        text=True,
        env=spanflow.environment(),
        cwd=spanflow.folder,
        timeout=200,
    )
    assert done.stdout == EVENTS.partition("\n")[0] + "\n"
    assert "Traceback" not in done.stderr
