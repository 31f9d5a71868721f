"""A run of many traced items, in a process of its own, and what it came to: for tests of what is lost on the way."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tests.tracing_contract.processes import Ended, in_process_within

PRELUDE = """
import time
from spanflow import TracingOptions, Workflow, configure_tracing, step

@step
async def item(value: int) -> int:
    return value + 1

many = Workflow("many", input=list[int]).foreach(item, concurrency=10)

async def flood(items):
    "Return the status, the counts and the trace id of a run."
    begin = time.monotonic()
    run = await many.create_run()
    stream = await run.stream(list(range(items)), tracing_options=TracingOptions(max_step_spans=None))
    result = await stream.get_workflow_state()
    seconds = time.monotonic() - begin
    [last] = [event async for event in run.observe_stream(after=3 * items) if event.type == "finish"]
    counts = last.payload.counts
    return dict(status=result.status, seconds=seconds, spans=counts.spans, dropped=counts.spans_dropped)
"""

FLOOD = (
    PRELUDE
    + """
with configure_tracing():
    facts = asyncio.run(flood({items}))
    begin = time.monotonic()
show(**facts, exit=time.monotonic() - begin)
"""
)

SMALL_QUEUE = {"OTEL_BSP_MAX_QUEUE_SIZE": "1000", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "200"}

_SUM = re.compile(r"^([\d,]+) of ([\d,]+) spans were dropped", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Flood:
    """What a flooding process told: of its run, and in its log."""

    ended: Ended
    status: str
    seconds: float
    exit: float
    spans: int
    dropped: int

    @property
    def lines(self) -> list[str]:
        return self.ended.stderr.splitlines()

    @property
    def logged(self) -> list[tuple[int, int]]:
        """What lines of the log say: dropped, of how many."""
        found = _SUM.findall(self.ended.stderr)
        return [(int(lost.replace(",", "")), int(all.replace(",", ""))) for lost, all in found]


def flood(items: int, environment: Mapping[str, str], timeout: float = 200.0) -> Flood:
    """Run a traced foreach over so many items: a span for each, for itself, for the run, and perhaps for its marker."""
    ended = in_process_within(timeout, FLOOD.format(items=items), environment)
    facts = ended.facts
    assert facts["spans"] in (items + 2, items + 3)
    return Flood(ended, facts["status"], facts["seconds"], facts["exit"], facts["spans"], facts["dropped"])
