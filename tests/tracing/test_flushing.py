"""What is announced is exported at once, by a thread that neither the run nor anybody else waits for."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from spanflow.tracing.flushing import Flusher
from tests.otlp_receiver import OtlpReceiver


class Provider:
    """Counts its flushes, each of which lasts until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.flushes = 0

    def force_flush(self) -> bool:
        self.flushes += 1
        self.begun.release()
        assert self.may_end.acquire(timeout=10)
        raise ConnectionError("nobody there")  # which is logged, and is nobody's loss but the back end's


def flushing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "spanflow-flush"]


def join_all() -> None:
    for thread in flushing():
        thread.join(10)


@pytest.fixture
def provider() -> Iterator[Provider]:
    join_all()  # those of tests before this one
    provider = Provider()
    yield provider
    provider.may_end.release(10)
    join_all()


def test_calls_at_a_time_make_one_flush_and_those_during_it_one_more(provider: Provider) -> None:
    flusher = Flusher(provider)
    for _ in range(5):
        flusher.flush_soon()
    assert provider.begun.acquire(timeout=10)
    for _ in range(5):
        flusher.flush_soon()
    assert len(flushing()) == 2
    provider.may_end.release(2)
    assert provider.begun.acquire(timeout=10)
    join_all()
    assert provider.flushes == 2


def test_a_flush_that_raised_is_followed_by_others(provider: Provider) -> None:
    flusher = Flusher(provider)
    provider.may_end.release(2)
    for flushes in (1, 2):
        flusher.flush_soon()
        assert provider.begun.acquire(timeout=10)
        join_all()
        assert provider.flushes == flushes


def test_a_provider_that_cannot_flush_is_left_alone() -> None:
    Flusher(object()).flush_soon()
    assert flushing() == []


class Arrived(SpanExporter):
    def __init__(self) -> None:
        self.names: list[str] = []
        self.some = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.names += [span.name for span in spans]
        self.some.set()
        return SpanExportResult.SUCCESS


async def test_a_batch_that_would_wait_for_minutes_is_exported_at_once() -> None:
    exporter = Arrived()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=600_000))
    provider.get_tracer("test").start_span("run.started").end()
    Flusher(provider).flush_soon()
    assert await asyncio.to_thread(exporter.some.wait, 10)
    assert exporter.names == ["run.started"]
    provider.shutdown()


SUSPENDED = """
import asyncio, sys
from spanflow import StepContext, Workflow, configure_tracing, step

@step
async def ask(value: int, ctx: StepContext) -> int:
    return await ctx.suspend("?", resume=int)

async def main():
    run = await Workflow("asking", input=int).then(ask).create_run()
    await run.start(1)

with configure_tracing():
    asyncio.run(main())
    sys.stdin.readline()
"""


def test_a_suspended_run_is_seen_by_a_back_end_while_its_process_lives_on() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        variables = {**os.environ, **receiver.environment, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        with subprocess.Popen([sys.executable, "-c", SUSPENDED], stdin=subprocess.PIPE, env=variables) as process:
            try:
                receiver.wait_for(
                    lambda spans: {span.name for span in spans} == {"run.started", "step ask"}, timeout=100
                )
                assert process.poll() is None
            finally:
                process.kill()
