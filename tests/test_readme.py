"""What the README says is true: its code runs, its trees are real, its list of modules is the one that is enforced."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.otlp_receiver import OtlpReceiver
from tests.test_examples import unannounced

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DURATION = re.compile(r"  +\d[\d.]* (?:µs|ms|s)\b")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


SCRIPTS = [block for block in blocks("python") if "def test_" not in block]
TESTS = [block for block in blocks("python") if "def test_" in block]


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        timeout=200,
        cwd=ROOT,
    )


def without_times(text: str) -> str:
    """A printed tree, but for what differs from run to run."""
    return DURATION.sub("", unannounced(re.sub(r"^\w+ · .*\n", "", text))).strip()


def test_the_ten_lines_print_the_events_and_the_tree_that_follow_them(tmp_path: Path) -> None:
    (script,) = SCRIPTS
    (tmp_path / "ten_lines.py").write_text(script, encoding="utf-8")
    done = python(tmp_path / "ten_lines.py")
    assert done.returncode == 0, done.stderr
    trace_id, *events, result = done.stdout.splitlines()
    _, promised_events, promised_tree, *_ = blocks("text")
    assert [event.strip() for event in events] == promised_events.splitlines()
    assert result == "passage 0 on zebras, and 2 more"
    assert without_times(done.stderr) == promised_tree.strip()
    assert f"trace {trace_id}" in done.stderr


def test_the_first_tree_is_what_the_quickstart_prints_for_this_repository() -> None:
    done = python("examples/quickstart.py")
    assert done.returncode == 0, done.stderr
    shown = blocks("text")[0]
    assert re.match(r"answer_from_docs · success · \d+ ms · run [0-9a-f-]{36} · trace [0-9a-f]{32}\n", shown)
    assert without_times(shown) == without_times(done.stderr), "Copy the tree of a new run into the README."


def test_the_example_of_a_test_passes(tmp_path: Path) -> None:
    (test,) = TESTS
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    (tmp_path / "test_of_the_readme.py").write_text(test, encoding="utf-8")
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def without_what_differs(text: str) -> str:
    """What a command printed, but for ids, times and the width of columns."""
    text = re.sub(r"[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f-]{27}", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", text)
    return re.sub(r" +", " ", re.sub(r"\d[\d.]* (?:µs|ms|s)\b", "AGE", text))


def test_the_command_line_prints_what_the_readme_shows(tmp_path: Path) -> None:
    started = python("examples/durable_approval.py", "--folder", tmp_path, "start", "250")
    assert started.returncode == 0, started.stderr
    ids = dict(re.findall(r"^(run_id|trace_id) +(\S+)$", started.stdout, re.MULTILINE))
    (shown,) = (block for block in blocks("console") if block.startswith("$ export SPANFLOW_STORE"))
    _, *commands = re.findall(r"^\$ (.*)\n((?:[^$].*\n|\n)*)", shown, re.MULTILINE)
    assert [command.split()[:2] for command, _ in commands] == [["spanflow", "runs"], ["spanflow", "show"]]
    for command, printed in commands:
        name, _, argument = command.removeprefix("spanflow ").rpartition(" ")
        known = ids["trace_id" if len(argument) == 32 else "run_id"]
        done = python("-m", "spanflow", *name.split(), known, "--store", tmp_path / "runs.db")
        assert without_what_differs(done.stdout) == without_what_differs(printed), done.stderr


def test_the_doctor_says_of_a_wrong_protocol_what_the_readme_shows(tmp_path: Path) -> None:
    (shown,) = (block for block in blocks("console") if "spanflow doctor --send" in block)
    with OtlpReceiver("grpc") as receiver:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "SPANFLOW_"))}
        environment |= {"OTEL_SERVICE_NAME": "refunds", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "spanflow", "doctor", "--send"],
            capture_output=True,
            encoding="utf-8",
            timeout=200,
            env={**environment, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint},
        )
        printed = done.stdout.replace(receiver.endpoint.removeprefix("http://"), "localhost:4317")
    said = re.sub(r"\b\d+\.\d+\.\d+\b", "VERSION", printed)
    assert said == re.sub(r"\b\d+\.\d+\.\d+\b", "VERSION", shown.partition("\n")[2])


def test_the_list_of_modules_is_the_contract_that_is_enforced() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    assert contract["name"] == "One-way imports"
    there = {path.stem for path in (ROOT / "src" / "spanflow").iterdir()}
    enforced = [
        [name for name in re.findall(r"\w+|[|:]", layer) if name in there or name in "|:"]
        for layer in contract["layers"]
    ]
    (listed,) = (block for block in blocks("text") if block.startswith("__main__ "))
    names = [line[: line.index("  ")].split() for line in listed.splitlines()]
    assert names == [[*layer] for layer in (_without_absent(layer) for layer in enforced) if layer]


def _without_absent(layer: list[str]) -> list[str]:
    """Drop the separators that stand beside a module that is not there yet."""
    names = [name for name in layer if name not in "|:"]
    separator = ":" if ":" in layer else "|"
    return [part for name in names for part in (separator, name)][1:]


def test_every_example_is_listed() -> None:
    assert set(re.findall(r"\(examples/(\w+\.py)\)", README)) == {
        path.name for path in (ROOT / "examples").glob("*.py")
    }


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_a_link_leads_to_a_file(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize(("name", "file"), [("Ops", "interpret.py"), ("Store", "ports.py"), ("Clock", "clock.py")])
def test_a_port_is_where_the_readme_says(name: str, file: str) -> None:
    assert f"| `{name}` | `{file}` |" in README
    assert re.search(rf"^class {name}\(Protocol\):", (ROOT / "src" / "spanflow" / file).read_text(), re.MULTILINE)


def test_modules_named_in_passing_exist() -> None:
    source = ROOT / "src" / "spanflow"
    named = re.findall(r"`((?:tracing|stores|engines)/\w*(?:\.py)?|\w+\.py)", README)
    missing = [name for name in named if not (source / name).exists() and not (ROOT / "examples" / name).exists()]
    assert named
    assert not missing
