"""The durable example does what the README and its docstring say: one run in several processes, and one trace."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "durable_approval.py"
DURATION = re.compile(r"  +\d[\d.]* (?:µs|ms|s)\b")
TREE = re.compile(r"^invoke_workflow .*(?:\n.+)*", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """The example, on a folder; ``variables`` may say where its spans go."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict[str, str])

    def line(self, *arguments: str) -> list[str]:
        return [sys.executable, "-W", "error", str(EXAMPLE), "--folder", str(self.folder), *arguments]

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **self.variables}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.line(*arguments), capture_output=True, encoding="utf-8", timeout=200, env=self.environment()
        )

    def start_and_kill(self) -> str:
        """Start a refund, kill its process in the middle, and return the run id."""
        line = self.line("start", "250", "--slowly", "3")
        with subprocess.Popen(line, stdout=subprocess.PIPE, encoding="utf-8", env=self.environment()) as process:
            assert process.stdout is not None
            run_id = process.stdout.readline().split()[1]  # the run is in the store a moment later
            while run_id not in self("list").stdout:
                assert process.poll() is None
            process.kill()
            process.wait()
        assert process.returncode == -signal.SIGKILL
        return run_id


def fact(name: str, output: str) -> str:
    found = re.search(rf"^{name} +(\S+)$", output, re.MULTILINE)
    assert found is not None, output
    return found[1]


def tree_of(errors: str) -> str:
    found = TREE.search(errors)
    assert found is not None, errors
    return DURATION.sub("", found[0])


def test_a_refund_is_started_listed_and_approved_by_three_processes_in_one_trace(tmp_path: Path) -> None:
    command = Command(tmp_path)
    started = command("start", "250")
    assert started.returncode == 0, started.stderr
    assert "suspended: Refund 250 EUR?\n" in started.stdout
    assert TREE.search(started.stderr) is None, "the root is not there before the end"
    run_id, trace_id = fact("run_id", started.stdout), fact("trace_id", started.stdout)
    assert command("list").stdout == f"{run_id}  suspended  trace {trace_id}\n"
    approved = command("approve", run_id)
    assert approved.returncode == 0, approved.stderr
    assert approved.stdout == f"success: 250 EUR refunded\nrun_id    {run_id}\ntrace_id  {trace_id}\n"
    assert (
        tree_of(approved.stderr)
        == """\
invoke_workflow refunds
├── wait approve
├── step approve  [attempt 2]
└── step pay"""
    )
    again = command("approve", run_id)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith(f"error: Run '{run_id}' is success: nothing waits for an answer.")
    assert command("wait", run_id).stdout == approved.stdout


def test_a_refund_whose_process_is_killed_goes_on_and_can_be_refused(tmp_path: Path) -> None:
    command = Command(tmp_path)
    run_id = command.start_and_kill()
    waited = command("wait", run_id)
    assert waited.returncode == 0, waited.stderr
    assert waited.stdout.startswith("suspended: Refund 250 EUR?\n")
    refused = command("approve", run_id, "--no")
    assert refused.stdout.startswith("success: refused\n")
    assert fact("trace_id", refused.stdout) == fact("trace_id", waited.stdout)


def test_an_unknown_run_is_an_error_in_one_line(tmp_path: Path) -> None:
    done = Command(tmp_path)("approve", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: There is no run 'nowhere' in this store\..*\n", done.stderr)
