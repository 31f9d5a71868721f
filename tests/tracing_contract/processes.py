"""Run Python in a process of its own: providers are global, and what hangs must be left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import dedent
from typing import Any


@dataclass(frozen=True, slots=True)
class Ended:
    """What a process left: the facts it showed, and its stderr (where `logging` writes)."""

    facts: dict[str, Any]
    stderr: str


_TIMEOUT = 200.0  # s; less than what pytest gives a test

_PRELUDE = """
import asyncio, json, os, sys

def show(**facts):
    print(json.dumps(facts), flush=True)
"""


def in_process(script: str, **environment: str) -> Ended:
    """Run a script with warnings as errors and no ``OTEL_*`` but what is given; fail the test where it fails."""
    return in_process_within(_TIMEOUT, script, environment)


def in_process_within(timeout: float, script: str, environment: Mapping[str, str], code: int = 0) -> Ended:
    """Run a script that may take ``timeout`` seconds, and ends with this exit code."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    kept["PYTHONPATH"] = os.pathsep.join(path for path in (os.getcwd(), *sys.path) if path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PRELUDE + dedent(script)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()
    return Ended(json.loads(lines[-1]) if lines else {}, done.stderr)
