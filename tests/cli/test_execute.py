"""`spanflow resume`, `replay` and `cancel`: a run is gone on with by another process than the one that started it."""

import json
import re
import signal
from pathlib import Path

import pytest

from spanflow import Runtime, SQLiteStore
from tests.cli import shop
from tests.cli.command import TRACES, Spanflow, elsewhere, some_runs
from tests.cli.shop import Refund, refunds
from tests.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.stores.postgres import Postgres, given

FILE = f"{shop.__file__}:refunds"
YES = '{"approved": true}'

DURATION = re.compile(r"  +\d[\d.]* (?:µs|ms|s|min|h|d)(?: \d+ (?:s|min|h))?(?=$|  )", re.MULTILINE)

RESUMED = """\
invoke_workflow refunds
├── step check
│   └── execute_tool look_up
├── step approve  [suspended]
├── wait approve
├── step approve  [attempt 2]
└── step pay
"""


def tree_of(out: str) -> str:
    """The tree that was printed, without durations."""
    return DURATION.sub("", out.partition("\n\n")[2])


# --- resume


@pytest.mark.parametrize("app", [FILE, "tests.cli.shop:refunds", "tests.cli.shop:both", "tests.cli.shop:make_runtime"])
def test_an_answer_lets_a_suspended_run_end_here(spanflow: Spanflow, app: str) -> None:
    done = spanflow("resume", "r-3", YES, "--app", app)
    assert done.code == 0, done.err
    assert 'result    "250 EUR refunded"' in done.lines
    assert tree_of(done.out) == RESUMED
    progress = [line.split()[2:4] for line in done.err.splitlines()]
    assert progress[0] == ["start", "-"]
    assert progress[1:3] == [["step-start", "approve"], ["step-result", "approve"]]
    assert progress[-1] == ["finish", "-"]


def test_resume_prints_one_json_document_where_asked_to(spanflow: Spanflow) -> None:
    found = spanflow("resume", "r-3", YES, "--app", FILE, "--json", "--step", "approve").json
    assert (found["status"], found["result"], found["waits"]) == ("success", "250 EUR refunded", [])


def test_code_and_store_are_taken_from_the_environment_too(spanflow: Spanflow) -> None:
    assert spanflow("resume", "r-3", YES, SPANFLOW_APP="tests.cli.shop:refunds").code == 0


async def test_a_run_that_fails_is_code_1(empty: Spanflow) -> None:
    async with Runtime(SQLiteStore(empty.database), workflows=[refunds]) as runtime:
        run = await runtime.create_run(refunds, run_id="r-5")
        await run.start(Refund(amount=-5))
    done = empty("resume", "r-5", YES, "--app", FILE)
    assert done.code == 1
    assert "error     ValueError: cannot pay -5 EUR  at pay" in done.lines
    assert "\n└── step pay" in done.out
    assert done.lines[-2:] == ["ValueError: cannot pay -5 EUR", "not even once"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["r-3", '{"approved": true'], "ANSWER '{\"approved\": true' is not JSON"),
        (["r-3", "yes"], "ANSWER 'yes' is not JSON"),
        (["r-3", '{"approved": "perhaps"}'], "the answer for 'approve' must be Decision"),
        (["r-3", YES, "--step", "pay"], "'pay' does not wait for an answer. Waiting: 'approve'."),
        (["r-3", "null"], "the answer for 'approve' must be Decision"),
        (["r-1", YES], "Run 'r-1' is of workflow 'crawl', which this runtime does not know"),
        (["nowhere", YES], "There is no run 'nowhere' in this store."),
    ],
    ids=str,
)
def test_an_answer_that_does_not_fit_is_refused_and_the_run_still_waits(
    spanflow: Spanflow, arguments: list[str], complaint: str
) -> None:
    done = spanflow("resume", *arguments, "--app", "tests.cli.shop:refunds")
    assert (done.code, done.out) == (2, "")
    assert re.match("error: ", done.err)
    assert complaint in done.err
    assert "Traceback" not in done.err
    assert spanflow("show", "r-3", "--json").json["status"] == "suspended"


@pytest.mark.parametrize(
    ("app", "complaint"),
    [
        ("", "Whose code? Give --app"),
        ("refunds", "--app 'refunds' was to be package.module:name"),
        ("no_such_module:x", "no module named 'no_such_module' is here"),
        ("tests.cli.shop:nothing", "tests.cli.shop has no 'nothing'. Its workflows: refunds, crawl, nap, waiting."),
        ("tests.cli.shop:main", "must take the store, and nothing else"),
        ("tests.cli.shop:Path", "raised when it was called ("),
        ("tests.cli.shop:YES", "has no 'YES'"),
        ("tests.cli.shop:__name__", "is of type str: a Workflow, a list of them"),
        ("nowhere.py:refunds", "there is no file "),
        ("broken.py:refunds", "broken.py:2): ZeroDivisionError: division by zero"),
        ("needy.py:refunds", "needy.py:1): ModuleNotFoundError: No module named 'no_such_thing'"),
        ("leaving.py:refunds", "leaving.py:2): SystemExit: 3"),
    ],
)
def test_code_that_cannot_be_had_is_one_line(spanflow: Spanflow, app: str, complaint: str) -> None:
    (spanflow.folder / "broken.py").write_text("x = 0\ny = 1 / x\n")
    (spanflow.folder / "needy.py").write_text("import no_such_thing\n")
    (spanflow.folder / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    done = spanflow("resume", "r-3", YES, "--app", app)
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err
    assert done.err.count("\n") == 1


def test_a_run_whose_process_was_killed_is_taken_over(empty: Spanflow) -> None:
    file = empty.folder / "go"
    lose(empty, "r-9")
    file.touch()
    done = empty("resume", "r-9", "--app", "tests.cli.shop:waiting")
    assert done.code == 0, done.err
    assert tree_of(done.out) == (
        "invoke_workflow waiting\n"
        "├── step wait_for_file  ERROR spanflow.process_lost:"
        " The process died in attempt 1 of step 'wait_for_file'.\n"
        "├── step wait_for_file  [attempt 2]\n"
        "└── step say\n"
    )


def lose(spanflow: Spanflow, run_id: str) -> None:
    """Start a run that waits for the file `go`, and kill its process."""
    with elsewhere(spanflow, run_id, spanflow.folder / "go") as process:
        process.kill()
    while not spanflow("show", run_id, "--json").json["waits"]:  # for its lease of 1 s
        pass


def test_ctrl_c_leaves_a_run_that_can_be_gone_on_with_at_once(empty: Spanflow) -> None:
    lose(empty, "r-9")
    with empty.start("resume", "r-9", "--app", "tests.cli.shop:waiting") as resuming:
        assert resuming.stderr is not None
        while "step-start" not in (line := resuming.stderr.readline()):
            assert line
        resuming.send_signal(signal.SIGINT)
        out, err = resuming.communicate(timeout=100)
    assert (resuming.returncode, out) == (130, "")
    assert err == "Stopped. Run r-9 is kept as it stands: spanflow resume r-9 goes on with it.\n"
    (empty.folder / "go").touch()
    assert empty("resume", "r-9", "--app", "tests.cli.shop:waiting", "--json").json["result"] == "it is there"


async def test_runs_in_postgresql_are_gone_on_with_and_canceled(tmp_path: Path) -> None:
    with Postgres(given("SPANFLOW_TEST_POSTGRES", "the address (DSN) of a PostgreSQL for tests")) as postgres:
        spanflow = Spanflow(tmp_path, {"SPANFLOW_STORE": postgres.dsn, "SPANFLOW_SCHEMA": postgres.schema})
        await some_runs(postgres.store())
        replayed = spanflow("replay", "r-3", "--from", "check", "--app", "tests.cli.shop:refunds", "--json")
        assert replayed.code == 3, replayed.err
        assert spanflow("cancel", json.loads(replayed.out)["run_id"]).code == 0
        assert spanflow("resume", "r-3", YES, "--app", FILE, "--json").json["result"] == "250 EUR refunded"


# --- replay


def test_a_replay_is_a_new_run_from_a_recorded_step(spanflow: Spanflow) -> None:
    done = spanflow("replay", "r-2", "--from", "fetch[1]", "--input", "5", "--app", "tests.cli.shop:crawl")
    assert done.code == 0, done.err
    assert "result    [5,2]" in done.lines
    run_id = done.lines[0].split()[1]
    assert run_id != "r-2"
    assert spanflow("show", "r-2", "--json").json["status"] == "failed"
    assert spanflow("show", run_id, "--json").json["result"] == [5, 2]


def test_a_replay_that_comes_to_wait_is_code_3(spanflow: Spanflow) -> None:
    done = spanflow("replay", "r-3", "--from", "check", "--app", "tests.cli.shop:refunds", "--json")
    assert (done.code, done.err) == (3, "")
    found = json.loads(done.out)
    assert (found["status"], [wait["path"] for wait in found["waits"]]) == ("suspended", ["approve"])
    assert found["trace_id"] != TRACES["r-3"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["r-2", "--from", "nothing"], "'nothing'"),
        (["r-2", "--from", "fetch[1]", "--input", '"five"'], "five"),
        (["r-2", "--from", "fetch[1]", "--input", "{five"], "--input '{five' is not JSON"),
        (["nowhere", "--from", "fetch[1]"], "There is no run 'nowhere' in this store."),
        (["r-2"], "--from"),
    ],
    ids=str,
)
def test_a_replay_that_cannot_begin_is_refused(spanflow: Spanflow, arguments: list[str], complaint: str) -> None:
    done = spanflow("replay", *arguments, "--app", "tests.cli.shop:crawl")
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err
    assert "Traceback" not in done.err
    assert len(spanflow("runs", "--json").json["runs"]) == 3


# --- spans


def received(receiver: OtlpReceiver) -> dict[str, ReceivedSpan]:
    return {span.name: span for span in receiver.spans()}


def test_a_run_that_is_resumed_ends_its_trace_where_the_variables_say(spanflow: Spanflow) -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        done = spanflow("resume", "r-3", YES, "--app", FILE, OTEL_TRACES_EXPORTER="otlp", **receiver.environment)
        assert done.code == 0, done.err
        spans = received(receiver)
    assert {span.trace_id for span in spans.values()} == {TRACES["r-3"]}
    assert {"invoke_workflow refunds", "wait approve", "step approve", "step pay"} <= set(spans)
    assert spans["invoke_workflow refunds"].attributes["user.id"] == "u-2"


def test_a_run_that_is_canceled_without_its_code_ends_its_trace_and_shows_no_input(spanflow: Spanflow) -> None:
    content = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
    with OtlpReceiver("http/protobuf") as receiver:
        done = spanflow("cancel", "r-3", OTEL_TRACES_EXPORTER="otlp", **receiver.environment, **content)
        assert done.code == 0, done.err
        spans = received(receiver)
    root = spans["invoke_workflow refunds"]
    assert (root.trace_id, root.attributes["spanflow.run.status"]) == (TRACES["r-3"], "canceled")
    assert "spanflow.run.input" not in root.attributes
    assert spans["wait approve"].attributes["spanflow.step.status"] == "canceled"


# --- cancel


def test_a_suspended_run_is_canceled_without_its_code_and_once(spanflow: Spanflow) -> None:
    done = spanflow("cancel", "r-3")
    assert (done.code, done.err) == (0, "")
    assert "status    canceled" in done.lines
    assert done.lines[-1].endswith("[canceled]")
    assert spanflow("cancel", "r-3", "--json").json["status"] == "canceled"
    late = spanflow("resume", "r-3", YES, "--app", FILE)
    assert (late.code, late.out) == (2, "")
    assert "Run 'r-3' is canceled: nothing waits for an answer." in late.err


def test_a_run_that_is_over_stays_as_it_is(spanflow: Spanflow) -> None:
    done = spanflow("cancel", "r-1")
    assert (done.code, done.err) == (1, "Run r-1 was over already: success.\n")
    assert "status    success" in done.lines
    assert spanflow("cancel", "nowhere").code == 2


def test_a_run_that_lost_its_process_is_canceled(empty: Spanflow) -> None:
    lose(empty, "r-9")
    done = empty("cancel", "r-9")
    assert done.code == 0, done.err
    assert "status    canceled" in done.lines
    assert "spanflow.process_lost" in done.out


def test_a_run_that_executes_elsewhere_is_canceled_there(empty: Spanflow, tmp_path: Path) -> None:
    with elsewhere(empty, "r-9", tmp_path / "never") as process:
        done = empty("cancel", "r-9")
        assert done.code == 0, done.err
        assert "status    canceled" in done.lines
        assert process.wait(timeout=100) == 0
