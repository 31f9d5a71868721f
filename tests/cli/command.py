"""The command as its users call it: in a process of its own, with what it printed and its exit code."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spanflow import Runtime, SQLiteStore, TracingOptions, WorkflowResult
from spanflow.ports import Store
from spanflow.testing import FakeClock, capture_traces
from tests.cli import shop
from tests.cli.shop import Refund, crawl, nap, refunds

ROOT = Path(__file__).parent.parent.parent
AGES = re.compile(
    r"(?<=  )\d[\d.]* (?:µs|ms|s|min|h|d)(?: \d+ (?:s|min|h))?(?= so far|  \[(?:suspended|waiting|running)])"
)


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        assert self.err == ""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@dataclass(frozen=True)
class Spanflow:
    """The command, in a folder."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def database(self) -> Path:
        return self.folder / "runs.db"

    def line(self, *arguments: str) -> list[str]:
        return [sys.executable, "-W", "error", "-m", "spanflow", *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("OTEL_", "SPANFLOW_", "FORCE_COLOR", "NO_COLOR"))
        }
        own = {"TZ": "UTC", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT), "OTEL_TRACES_EXPORTER": "none"}
        return {**kept, **own, "SPANFLOW_STORE": str(self.database), **self.variables, **more}

    def __call__(self, *arguments: str, **more: str) -> Done:
        done = subprocess.run(
            self.line(*arguments),
            capture_output=True,
            encoding="utf-8",
            timeout=200,
            cwd=self.folder,
            env=self.environment(**more),
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start the command, and do not wait for it."""
        return subprocess.Popen(
            self.line(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            cwd=self.folder,
            env=self.environment(PYTHONUNBUFFERED="1", **more),
        )


def without_ages(text: str) -> str:
    """What was printed, but for how long something lasts that is not over."""
    return AGES.sub("AGE", text)


TRACES = {"r-1": "1" * 32, "r-2": f"{2:032x}", "r-3": "3" * 32}


async def some_runs(store: Store) -> None:
    """Keep three runs: r-1 has succeeded, r-2 has failed, r-3 waits for an answer; a minute lies between them."""
    clock = FakeClock(datetime(2026, 1, 1, 12, tzinfo=UTC))
    with capture_traces():
        async with Runtime(store, workflows=[refunds, crawl], clock=clock) as runtime:
            first = await runtime.create_run(crawl, run_id="r-1")
            await first.start([1, 2], tracing_options=options("r-1", user_id="u-1", metadata={"rank": 7}))
            second = await runtime.create_run(crawl, run_id="r-2")
            await second.start([2, 0], tracing_options=options("r-2", user_id="u-2", metadata={"rank": "7"}))
            third = await runtime.create_run(refunds, run_id="r-3", resource_id="desk 4")
            await third.start(Refund(amount=250), tracing_options=options("r-3", user_id="u-2", session_id="s-1"))


def options(run_id: str, **more: Any) -> TracingOptions:
    return TracingOptions(trace_id=TRACES[run_id], **more)


async def a_nap(database: Path) -> WorkflowResult[Any] | None:
    """Leave a run asleep whose process has gone."""
    async with Runtime(SQLiteStore(database), workflows=[nap]) as runtime:
        run = await runtime.create_run(nap, run_id="r-nap")
        await run.stream(1)
    return None


# --- runs in progress, in another process


@contextmanager
def elsewhere(spanflow: Spanflow, run_id: str, file: Path) -> Generator[subprocess.Popen[str]]:
    """A process that executes a run, until the file is there."""
    line = [sys.executable, str(shop.__file__), str(spanflow.database), run_id, str(file)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=spanflow.environment()) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    assert process.stdout is not None
    read: list[str] = []
    for line in process.stdout:
        read.append(line)
        if text in line:
            return read
    raise AssertionError(f"{text!r} did not come: {read}")
