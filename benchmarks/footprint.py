"""What spanflow costs besides time per step: memory that finished runs leave behind, and time to import it.

Each measures itself in a process of its own: ``python -m benchmarks.footprint memory --tracing on``.
"""

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence

from opentelemetry import trace

from benchmarks.cases import cases
from benchmarks.worker import turn_tracing_on

_RUNS = 300
_IMPORTS = """
import sys
before = set(sys.modules)
import spanflow
print(*[name for name in sys.modules if name not in before and name.partition(".")[0] != "spanflow"])
"""
_TIMED = """
import sys, time
from importlib import import_module
names = sys.argv[1:]
started = time.perf_counter()
for name in names:
    import_module(name)
print(time.perf_counter() - started)
"""


def retained(tracing: str) -> float:
    """Return the bytes that a finished run of ten steps leaves behind. A few are noise; a leak is thousands."""
    settle = turn_tracing_on() if tracing == "on" else gc.collect
    case = cases(trace.get_tracer("floor"))["stream10"]

    async def work() -> float:
        for _ in range(_RUNS):
            await case.spanflow()
        before = _held()
        for _ in range(_RUNS):
            await case.spanflow()
        return (_held() - before) / _RUNS

    def _held() -> int:
        settle()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    return asyncio.run(work())


def import_seconds(rounds: int) -> tuple[float, float]:
    """Return the least time that importing all of spanflow's dependencies took, and the least of spanflow with them."""
    dependencies = _python(_IMPORTS).split()
    pairs = [(_import(dependencies), _import(["spanflow"])) for _ in range(rounds)]
    return min(alone for alone, _ in pairs), min(whole for _, whole in pairs)


def _import(modules: Sequence[str]) -> float:
    return float(_python(_TIMED, *modules))


def _python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__)
    parser.add_argument("what", choices=["memory"])
    parser.add_argument("--tracing", choices=["on", "off"], required=True)
    options = parser.parse_args(argv)
    sys.stdout.write(json.dumps(retained(options.tracing)) + "\n")


if __name__ == "__main__":
    main()
