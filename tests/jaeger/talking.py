"""Python processes that a test talks with: they say what they have come to in lines of JSON, and go on when told to."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeAlias

from tests.jaeger.programs import ROOT

Process: TypeAlias = "subprocess.Popen[str]"


@contextmanager
def talking(*arguments: str, **variables: str) -> Generator[Process]:
    """Run Python with these arguments, warnings as errors and no ``OTEL_*`` but what is given; kill it at the end."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={**kept, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def told(process: Process) -> dict[str, Any]:
    """Return what it says next."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def go_on(process: Process) -> None:
    """Let it go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
