"""A program that is told to end in the middle of a step, as a container is when it is stopped: nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

from tests.durable.processes import PATIENCE
from tests.otlp_receiver import OtlpReceiver

# As the README says to write it. The second process is the first one's successor.
_PROGRAM = """
import asyncio, signal, sys
from spanflow import Runtime, SQLiteStore, Workflow, configure_tracing, step

@step
async def first(value: int) -> int:
    return value + 1

@step
async def hold(value: int) -> int:
    print("holding", flush=True)
    if sys.argv[2] == "hold":
        await asyncio.Event().wait()
    return value + 1

flow = Workflow("holding", input=int).then(first).then(hold)

async def main() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    async with Runtime(SQLiteStore(sys.argv[1]), workflows=[flow], lease=600.0) as runtime:
        if sys.argv[2] == "hold":
            run = await runtime.create_run(flow, run_id="r-1")
            await run.start(1)
        else:
            run = await runtime.get_run("r-1")
            print((await run.wait()).unwrap())

with configure_tracing():
    asyncio.run(main())
"""


def launch(store: Path, receiver: OtlpReceiver, what: str) -> "subprocess.Popen[str]":
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    batches = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "OTEL_METRICS_EXPORTER": "none"}  # only a flush sends spans
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(store), what],
        env=kept | receiver.environment | batches,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_program_that_is_told_to_end_flushes_its_spans_and_gives_its_runs_away_at_once(tmp_path: Path) -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        told = launch(tmp_path / "runs.db", receiver, "hold")
        assert told.stdout is not None
        assert told.stdout.readline() == "holding\n"
        told.terminate()
        _, errors = told.communicate(timeout=PATIENCE)
        assert "CancelledError" in errors.splitlines()[-1]
        first = receiver.wait_for(lambda spans: bool(spans))
        assert [span.name for span in first if span.name != "run.started"] == ["step first"]

        heir = launch(tmp_path / "runs.db", receiver, "go on")
        printed, errors = heir.communicate(timeout=PATIENCE)  # it does not wait for the lease
        assert (heir.returncode, printed) == (0, "holding\n3\n"), errors

        spans = receiver.wait_for(lambda spans: any(span.name.startswith("invoke_workflow") for span in spans))
    spans = [span for span in spans if span.name != "run.started"]  # there where a process was slow
    assert len({span.trace_id for span in spans}) == 1
    assert len({span.span_id for span in spans}) == len(spans)
    assert sorted(span.name for span in spans) == ["invoke_workflow holding", "step first", "step hold", "step hold"]
    (root,) = [span for span in spans if not span.parent_span_id]
    assert {span.parent_span_id for span in spans} == {root.parent_span_id, root.span_id}
    assert [span.attributes["error.type"] for span in spans if span.status == "ERROR"] == ["spanflow.process_lost"]
