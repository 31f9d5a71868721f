"""What spanflow costs besides time per step: memory that finished runs leave behind, and time to import it.

Memory is measured in a process of its own: ``python -m benchmarks.footprint --tracing on --runs 400``.
"""

import argparse
import asyncio
import gc
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from functools import partial
from tempfile import TemporaryDirectory

from opentelemetry import trace

from benchmarks.cases import cases
from benchmarks.worker import turn_tracing_on

_DEPENDENCIES = """
import sys
before = set(sys.modules)
import spanflow
print(*[name for name in sys.modules if name not in before and name.partition(".")[0] != "spanflow"])
"""
_IMPORT = """
import sys, time
from importlib import import_module
started = time.perf_counter()
for name in sys.argv[1:]:
    import_module(name)
print(time.perf_counter() - started)
"""


def retained(tracing: str, runs: int) -> float:
    """Return the bytes that a finished run of ten steps leaves behind. A few are noise; a leak is thousands."""
    settle = turn_tracing_on() if tracing == "on" else gc.collect
    once = cases(trace.get_tracer("floor"))["stream10"].spanflow

    async def work() -> float:
        for _ in range(runs):  # whatever is made once is made here
            await once()
        before = held()
        for _ in range(runs):
            await once()
        return (held() - before) / runs

    def held() -> int:
        settle()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    return asyncio.run(work())


def import_seconds(rounds: int) -> tuple[float, float]:
    """Return the least time it takes to import all that spanflow imports but itself, and the least for spanflow.

    Everything is imported as an installed package is: from bytecode, which the first import of all writes.
    """
    with TemporaryDirectory() as bytecode:
        python = partial(_python, {"PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""})
        dependencies = python(_DEPENDENCIES).split()
        pairs = [(float(python(_IMPORT, *dependencies)), float(python(_IMPORT, "spanflow"))) for _ in range(rounds)]
    return min(alone for alone, _ in pairs), min(whole for _, whole in pairs)


def _python(variables: Mapping[str, str], code: str, *arguments: str) -> str:
    command, environment = [sys.executable, "-c", code, *arguments], {**os.environ, **variables}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__)
    parser.add_argument("--tracing", choices=["on", "off"], required=True)
    parser.add_argument("--runs", type=int, required=True)
    options = parser.parse_args(argv)
    print(retained(options.tracing, options.runs))


if __name__ == "__main__":
    main()
