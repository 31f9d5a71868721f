"""What it takes to get a large fan-out out of the process: spans of OTLP over HTTP, to a sink in another one.

``python -m benchmarks.export --items 100000`` prints one JSON line. Each side runs in a process of its own, from the
first span until the sink has taken the last one: by hand with the SDK's own batch processor, whose queue holds all of
the spans, and as a workflow with ``configure_tracing``.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import perf_counter
from typing import Literal, TypedDict

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from benchmarks.floor import Floor, V, add_one
from spanflow import TracingOptions, Workflow, configure_tracing, step

Side = Literal["floor", "spanflow"]

_ROOT = Path(__file__).parent.parent
_CONCURRENCY = 10


class Measured(TypedDict):
    """``seconds`` an item, and ``peak`` bytes of memory of the whole process."""

    seconds: float
    peak: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__)
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--side", choices=["floor", "spanflow"], help="only this one, to OTEL_EXPORTER_OTLP_ENDPOINT")
    parser.add_argument("--sink", action="store_true", help="be the sink: print its port, then take what comes")
    options = parser.parse_args(argv)
    if options.sink:
        _take_what_comes()
    elif options.side is not None:
        print(json.dumps(_measured(options.side, options.items)))
    else:
        with _sink() as endpoint:
            sides: tuple[Side, Side] = ("floor", "spanflow")
            print(json.dumps({side: _in_process(side, options.items, endpoint) for side in sides}))


def _measured(side: Side, items: int) -> Measured:
    values = [V(v=number) for number in range(items)]
    started = perf_counter()
    asyncio.run(_by_hand(values) if side == "floor" else _as_workflow(values))
    seconds = perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measured(seconds=seconds / items, peak=peak)


async def _by_hand(values: list[V]) -> None:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), len(values) + 100, 1000, 2048))
    floor = Floor(provider.get_tracer("floor"), add_one)
    results = await floor.foreach(values, "item", _CONCURRENCY)
    assert len(results) == len(values)
    provider.shutdown()


async def _as_workflow(values: list[V]) -> None:
    with configure_tracing() as setup:
        workflow = Workflow("floor", input=list[V]).foreach(step(id="item")(add_one), concurrency=_CONCURRENCY)
        every_one = TracingOptions(max_step_spans=None)
        result = await (await workflow.create_run()).start(values, tracing_options=every_one)
        assert len(result.unwrap()) == len(values)
        assert setup.flush(600)


def _in_process(side: Side, items: int, endpoint: str) -> Measured:
    command = [sys.executable, "-m", "benchmarks.export", f"--items={items}", f"--side={side}"]
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "none"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | variables
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=environment)
    found: Measured = json.loads(done.stdout)
    return found


@contextmanager
def _sink() -> Generator[str]:
    command = [sys.executable, "-m", "benchmarks.export", "--items=0", "--sink"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def _take_what_comes() -> None:
    class Sink(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Sink) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
