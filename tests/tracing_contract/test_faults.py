"""Whatever an application's telemetry does, the run does not notice: same result, same events, in bounded time."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.tracing_contract.processes import Ended, in_process

ROUNDS = 3
BOUND = 10.0  # s for all rounds: some milliseconds, and at most a second of patience; a hang would be for ever

SCRIPT = """
import logging, time
from opentelemetry import metrics, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.tracing_contract.hostile import (
    BrokenAtEnd, BrokenAtStart, BrokenExporter, BrokenMeterProvider, BrokenProvider, BrokenSampler, HangingExporter,
)
from tests.tracing_contract.scenario import everything, run_everything

class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)

kept = Kept()
logging.getLogger("spanflow").addHandler(kept)
memory = InMemorySpanExporter()
provider = TracerProvider()

{setup}

trace.set_tracer_provider(provider)

async def main():
    for _ in range({rounds}):
        events, result = await run_everything(await everything.create_run())
    return events, result

begin = time.monotonic()
events, result = asyncio.run(main())
spans = memory.get_finished_spans()
show(
    seconds=time.monotonic() - begin,
    status=result.status,
    result=result.result,
    trace_id=result.trace_id,
    events=[event.type for event in events],
    dropped=events[-1].payload.counts.spans_dropped,
    logged=[record.getMessage() for record in kept.records],
    names=sorted({{span.name for span in spans}}),
)
os._exit(0)  # what hangs would hang the exit, too
"""

HEALTHY = "provider.add_span_processor(SimpleSpanProcessor(memory))"

FAULTS = {
    "a processor that raises when a span starts": "provider.add_span_processor(BrokenAtStart())",
    "a processor that raises when a step starts": "provider.add_span_processor(BrokenAtStart('step'))",
    "a processor that raises when a span ends": "provider.add_span_processor(BrokenAtEnd())",
    "an exporter that raises, exporting on the spot": (
        "provider.add_span_processor(SimpleSpanProcessor(BrokenExporter()))"
    ),
    "an exporter that raises, in batches": (
        "provider.add_span_processor(BatchSpanProcessor(BrokenExporter(), max_export_batch_size=1))"
    ),
    "an exporter that hangs, exporting on the spot": (
        "provider.add_span_processor(SimpleSpanProcessor(HangingExporter()))"
    ),
    "an exporter that hangs, in batches": (
        "provider.add_span_processor(BatchSpanProcessor(HangingExporter(), max_export_batch_size=1))"
    ),
    "a sampler that raises": "provider = TracerProvider(BrokenSampler())",
    "a sampler that raises for steps": "provider = TracerProvider(BrokenSampler('step'))",
    "a provider that raises": "provider = BrokenProvider()",
    "instruments that raise": "metrics.set_meter_provider(BrokenMeterProvider())",
}


def _run(setup: str, rounds: int = ROUNDS) -> Ended:
    return in_process(SCRIPT.format(setup=setup, rounds=rounds))


@pytest.fixture(scope="module")
def healthy() -> dict[str, Any]:
    facts = _run(HEALTHY).facts
    assert facts["logged"] == []
    return facts


@pytest.fixture(scope="module")
def all_faulty() -> dict[str, Ended]:
    with ThreadPoolExecutor(max_workers=3) as pool:
        return dict(zip(FAULTS, pool.map(_run, FAULTS.values()), strict=True))


@pytest.fixture(params=FAULTS, ids=lambda name: str(name))
def faulty(request: pytest.FixtureRequest, all_faulty: dict[str, Ended]) -> tuple[str, Ended]:
    return request.param, all_faulty[request.param]


def test_the_run_comes_to_the_same_result_by_the_same_events(
    healthy: dict[str, Any], faulty: tuple[str, Ended]
) -> None:
    _, ended = faulty
    assert (ended.facts["status"], ended.facts["result"]) == ("success", 7)
    assert sorted(ended.facts["events"]) == sorted(healthy["events"])


def test_the_run_takes_bounded_time(faulty: tuple[str, Ended]) -> None:
    _, ended = faulty
    assert ended.facts["seconds"] < BOUND


def test_spanflow_logs_the_fault_once_and_not_for_each_span(faulty: tuple[str, Ended]) -> None:
    name, ended = faulty
    logged = ended.facts["logged"]
    if ("exporter" in name and "raises" in name) or "in batches" in name:  # the SDK's own processors catch and log that
        assert logged == []
    else:
        assert len(logged) == 1, logged


def test_no_task_or_callback_fails_unseen(faulty: tuple[str, Ended]) -> None:
    _, ended = faulty
    for trouble in ("never retrieved", "Exception in callback", "Failed to detach", "exception was ignored"):
        assert trouble not in ended.stderr


def test_a_stream_has_its_trace_id_whatever_the_telemetry_does(faulty: tuple[str, Ended]) -> None:
    name, ended = faulty
    if name == "a provider that raises":  # it gave nothing to trace with
        assert ended.facts["trace_id"] is None
    else:
        assert len(bytes.fromhex(str(ended.facts["trace_id"]))) == 16


def test_the_other_spans_are_exported_when_one_kind_of_span_cannot_start() -> None:
    setup = HEALTHY + "\nprovider.add_span_processor(BrokenAtStart('step tax'))"
    names = _run(setup, rounds=1).facts["names"]
    assert "step tax" not in names
    assert {"invoke_workflow everything", "step postage", "execute_tool reserve", "wait approve"} <= set(names)


def test_spans_that_could_not_start_are_counted_as_dropped() -> None:
    facts = _run("provider.add_span_processor(BrokenAtStart('step tax'))", rounds=1).facts
    assert facts["dropped"] == 1


def test_a_healthy_exporter_gets_its_spans_beside_a_processor_that_raises_at_the_end() -> None:
    healthy = _run(HEALTHY, rounds=1).facts["names"]
    assert _run(HEALTHY + "\nprovider.add_span_processor(BrokenAtEnd())", rounds=1).facts["names"] == healthy


def test_what_a_hanging_exporter_holds_in_memory_is_bounded_and_the_rest_is_counted() -> None:
    facts = in_process("""
        import gc
        from opentelemetry import trace
        from opentelemetry.sdk.trace import Span, TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from spanflow import Workflow
        from tests.tracing_contract.hostile import HangingExporter
        from tests.tracing_contract.scenario import halve

        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(HangingExporter()))
        trace.set_tracer_provider(provider)
        many = Workflow("many", input=list[int]).foreach(halve, concurrency=10)

        async def main():
            dropped = 0
            for _ in range(3):
                stream = await (await many.create_run()).stream(list(range(4000)))
                async for event in stream:
                    last = event
                dropped += last.payload.counts.spans_dropped
            gc.collect()
            return last.payload.status, dropped, sum(isinstance(each, Span) for each in gc.get_objects())

        status, dropped, held = asyncio.run(main())
        show(status=status, dropped=dropped, held=held)
        os._exit(0)
    """).facts
    assert facts["status"] == "success"
    assert facts["held"] < 8300
    assert facts["dropped"] > 3 * 4002 - 8300


def test_only_the_first_run_waits_for_an_exporter_that_hangs_and_only_a_little() -> None:
    facts = in_process("""
        import time
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from spanflow import Workflow
        from tests.tracing_contract.hostile import HangingExporter
        from tests.tracing_contract.scenario import halve

        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(HangingExporter()))
        trace.set_tracer_provider(provider)
        one = Workflow("one", input=int).then(halve)

        async def timed():
            begin = time.monotonic()
            await (await one.create_run()).start(1)
            return time.monotonic() - begin

        async def main():
            first = await timed()
            return first, [await timed() for _ in range(20)]

        first, others = asyncio.run(main())
        show(first=first, longest=max(others))
        os._exit(0)
    """).facts
    assert facts["first"] < 10
    assert facts["longest"] < 1  # what each of them would wait


def test_concurrent_runs_wait_for_a_hanging_exporter_together_and_not_one_after_the_other() -> None:
    facts = in_process("""
        import time
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from spanflow import Workflow
        from tests.tracing_contract.hostile import HangingExporter
        from tests.tracing_contract.scenario import halve

        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(HangingExporter()))
        trace.set_tracer_provider(provider)
        one = Workflow("one", input=int).then(halve)

        async def main():
            begin = time.monotonic()
            runs = [await one.create_run() for _ in range(20)]
            results = await asyncio.gather(*(run.start(4) for run in runs))
            return time.monotonic() - begin, [result.result for result in results]

        seconds, results = asyncio.run(main())
        show(seconds=seconds, results=results)
        os._exit(0)
    """).facts
    assert facts["results"] == [2] * 20
    assert facts["seconds"] < 10  # one after the other, they would wait a second each


def test_a_slow_exporter_that_exports_on_the_spot_has_all_spans_of_a_run_when_it_ends() -> None:
    facts = in_process("""
        import time
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from spanflow import Workflow
        from tests.tracing_contract.scenario import halve

        class Slow(InMemorySpanExporter):
            def export(self, spans):
                time.sleep(0.02)
                return super().export(spans)

        memory = Slow()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(memory))
        trace.set_tracer_provider(provider)

        async def main():
            await (await Workflow("one", input=int).then(halve).create_run()).start(1)
            return [span.name for span in memory.get_finished_spans()]

        show(names=asyncio.run(main()))
    """).facts
    assert facts["names"] == ["step halve", "invoke_workflow one"]


def test_a_span_id_that_a_broken_sampler_left_behind_is_not_taken_by_another_span() -> None:
    facts = in_process("""
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from spanflow import Workflow
        from tests.tracing_contract.hostile import BrokenSampler
        from tests.tracing_contract.scenario import halve, reserve

        memory = InMemorySpanExporter()
        provider = TracerProvider(BrokenSampler("step"))
        provider.add_span_processor(SimpleSpanProcessor(memory))
        trace.set_tracer_provider(provider)

        async def main():
            stream = await (await Workflow("one", input=int).then(halve).create_run()).stream(1)
            ids = {event.span_id for event in [event async for event in stream]}
            memory.clear()
            reserve(item="pen")
            await (await Workflow("one", input=int).then(halve).create_run()).start(1)  # waits for the exporter
            (span,) = [span for span in memory.get_finished_spans() if span.name == "execute_tool reserve"]
            return format(span.context.span_id, "016x") in ids

        show(taken=asyncio.run(main()))
    """).facts
    assert facts["taken"] is False


def test_a_provider_that_is_not_the_sdks_is_used_with_the_ids_it_gives() -> None:
    facts = in_process("""
        from opentelemetry import trace
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, Tracer, TracerProvider
        from tests.tracing_contract.scenario import everything, run_everything

        started = []

        class OwnTracer(Tracer):
            def start_span(self, name, context=None, *args, **kwargs):
                above = trace.get_current_span(context).get_span_context()
                trace_id = above.trace_id if above.is_valid else 7
                started.append(f"{len(started) + 1:016x}")
                return NonRecordingSpan(SpanContext(trace_id, len(started), False, TraceFlags(1)))

            def start_as_current_span(self, *args, **kwargs):
                raise NotImplementedError

        class OwnProvider(TracerProvider):
            def get_tracer(self, *args, **kwargs):
                return OwnTracer()

        trace.set_tracer_provider(OwnProvider())
        async def main():
            return await run_everything(await everything.create_run())

        events, result = asyncio.run(main())
        attempts = [event.span_id for event in events if event.type == "step-start" and event.path == "tax"]
        show(status=result.status, trace_id=result.trace_id, root=events[0].span_id, first=started[0])
    """).facts
    assert facts["status"] == "success"
    assert int(facts["trace_id"], 16) == 7
    assert facts["root"] == facts["first"]


AT_EXIT = """
import time, warnings
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from spanflow import Workflow
from tests.tracing_contract.hostile import HangingExporter
from tests.tracing_contract.scenario import halve, reserve

class Slow(SpanExporter):
    def __init__(self, seconds):
        self.seconds = seconds

    def export(self, spans):
        time.sleep(self.seconds)
        os.write(2, f"{{os.getpid()}} {{spans[0].context.span_id:016x}} {{spans[0].name}}\\n".encode())
        return SpanExportResult.SUCCESS

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor({exporter}))
trace.set_tracer_provider(provider)

async def run(items):
    await (await Workflow("many", input=list[int]).foreach(halve).create_run()).start(list(range(items)))
"""


def test_the_span_of_a_tool_that_is_called_last_of_all_is_exported() -> None:
    ended = in_process(AT_EXIT.format(exporter="Slow(0.01)") + "reserve(item='pen')")
    assert [line.split()[2:] for line in ended.stderr.splitlines()] == [["execute_tool", "reserve"]]


def test_a_slow_exporter_gets_all_spans_before_the_process_ends() -> None:
    ended = in_process(AT_EXIT.format(exporter="Slow(0.005)") + "asyncio.run(run(300))")
    exported = [line for line in ended.stderr.splitlines() if " step halve" in line or "many" in line]
    assert len(exported) == 301


def test_an_exporter_that_hangs_holds_up_the_exit_of_the_process_only_a_little() -> None:
    facts = in_process("""
        import atexit, time
        atexit.register(lambda: (show(seconds=time.monotonic() - begin), os._exit(0)))  # registered first, called last

        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from tests.tracing_contract.hostile import HangingExporter
        from tests.tracing_contract.scenario import reserve

        provider = TracerProvider(shutdown_on_exit=False)  # the SDK's own shutdown is not what is asked here
        provider.add_span_processor(SimpleSpanProcessor(HangingExporter()))
        trace.set_tracer_provider(provider)
        for _ in range(10):
            reserve(item="pen")
        begin = time.monotonic()
    """).facts
    assert facts["seconds"] < 10  # for each span, it would be held up a second


def test_a_forked_process_ends_its_own_spans_and_not_its_parents() -> None:
    ended = in_process(
        AT_EXIT.format(exporter="Slow(0.05)")
        + """
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later: fork beside threads
for _ in range(10):
    reserve(item="pen")
child = os.fork()
if child == 0:
    asyncio.run(run(1))
    os._exit(0)
os.waitpid(child, 0)
"""
    )
    exported = [line.split(maxsplit=2) for line in ended.stderr.splitlines()]
    ids = [span_id for _, span_id, _ in exported]
    assert len(ids) == len(set(ids))
    by_process: dict[str, set[str]] = {}
    for process, _, name in exported:
        by_process.setdefault(process, set()).add(name)
    assert sorted(by_process.values(), key=len) == [
        {"execute_tool reserve"},
        {"step halve", "foreach halve", "invoke_workflow many"},
    ]
    assert len(ids) == 13
