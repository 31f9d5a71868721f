"""The queue before an exporter: bounded, patient as long as that helps, and exact about what it loses."""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanContext, Tracer

from spanflow.tracing.backpressure import ending
from spanflow.tracing.export_queue import ExportQueue
from spanflow.tracing.hearing import Verdict

SENT, LATER, REFUSED, SILENT = Verdict("sent"), Verdict("later"), Verdict("refused"), Verdict("unanswered")


class Gate:
    """A delivery that gives the verdict it was told, once its gate is open."""

    def __init__(self, verdict: Verdict = SENT, *, opened: bool = True) -> None:
        self.verdict = verdict
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.taken: list[str] = []
        if opened:
            self.opened.set()

    def deliver(self, batch: Sequence[ReadableSpan]) -> Verdict:
        self.entered.release()
        self.opened.wait()
        if self.verdict is SENT:
            self.taken += [span.name for span in batch]
        return self.verdict

    def complain_of_silence(self) -> None:
        """What is said is not asked here."""

    def close(self) -> None:
        self.opened.set()


class Account:
    def __init__(self) -> None:
        self.lost = 0

    def lose(self, number: int) -> None:
        self.lost += number


def tracing(queue: ExportQueue, scope: str = "spanflow") -> Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(queue)
    return provider.get_tracer(scope)


def emit(tracer: Tracer, number: int, name: str = "step") -> None:
    for _ in range(number):
        tracer.start_span(name).end()


def queue_to(gate: Gate, patience: float = 0.2) -> ExportQueue:
    return ExportQueue(gate, size=100, batch_size=10, delay=0.01, patience=patience)


def test_what_was_taken_is_in_order_and_flush_says_so() -> None:
    gate = Gate()
    queue = queue_to(gate)
    tracer = tracing(queue)
    for number in range(25):
        tracer.start_span(str(number)).end()
    assert queue.force_flush(5000)
    assert gate.taken == [str(number) for number in range(25)]
    assert queue.close()


def test_a_span_that_waits_tells_the_same_of_events_and_links_as_when_it_ended() -> None:
    class Kept(Gate):
        """Keeps what is delivered."""

        def __init__(self) -> None:
            super().__init__()
            self.spans: list[ReadableSpan] = []

        def deliver(self, batch: Sequence[ReadableSpan]) -> Verdict:
            self.spans += batch
            return super().deliver(batch)

    class First(SpanProcessor):
        """Sees spans before the queue does."""

        def on_end(self, span: ReadableSpan) -> None:
            ended.append(told(span))

    def told(span: ReadableSpan) -> tuple[object, ...]:
        return tuple(span.events), tuple(span.links), span.dropped_events, span.dropped_links

    ended: list[tuple[object, ...]] = []
    gate = Kept()
    queue = queue_to(gate)
    for limits in (SpanLimits(), SpanLimits(max_events=0, max_links=0)):
        provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
        provider.add_span_processor(First())
        provider.add_span_processor(queue)
        tracer = provider.get_tracer("spanflow")
        tracer.start_span("plain").end()
        span = tracer.start_span("full")
        span.add_event("seen", {"number": 1})
        span.add_link(SpanContext(1, 2, is_remote=False))
        span.end()
    assert queue.close()
    assert [told(span) for span in gate.spans] == ended
    assert [(len(span.events), span.dropped_events) for span in gate.spans] == [(0, 0), (1, 0), (0, 0), (0, 1)]


def test_flush_says_what_was_not_taken_and_keeps_its_time() -> None:
    gate = Gate(REFUSED)
    queue = queue_to(gate)
    emit(tracing(queue), 5)
    assert queue.force_flush(5000) is False
    hanging = Gate(opened=False)
    queue = queue_to(hanging)
    emit(tracing(queue), 5)
    begin = time.monotonic()
    assert queue.force_flush(20) is False
    assert time.monotonic() - begin < 10
    queue.close(0.01)


def test_a_thread_without_an_event_loop_waits_for_a_place() -> None:
    gate = Gate(opened=False)
    queue = queue_to(gate, patience=30)
    thread = threading.Thread(target=emit, args=(tracing(queue), 300))
    thread.start()
    gate.entered.acquire()
    thread.join(0.1)
    assert thread.is_alive()
    gate.opened.set()
    thread.join(20)
    assert queue.close()
    assert (len(gate.taken), queue.lost.total()) == (300, 0)


def test_nobody_waits_longer_than_the_patience_for_what_takes_nothing() -> None:
    gate = Gate(opened=False)
    queue = queue_to(gate)
    begin = time.monotonic()
    emit(tracing(queue), 1000)
    assert time.monotonic() - begin < 20  # to wait for each span would take minutes
    assert queue.lost["queue_full"] >= 1000 - 100 - 10
    queue.close(0.01)
    assert queue.lost.total() == 1000


async def test_an_event_loop_is_never_held_up_and_its_losses_are_its_own() -> None:
    gate = Gate(opened=False)
    queue = queue_to(gate, patience=30)
    ours, others = Account(), Account()
    ending.owner = ours
    emit(tracing(queue), 20)
    await asyncio.to_thread(gate.entered.acquire)  # a batch is in hand, and stays there
    emit(tracing(queue), 480)
    ending.owner = others
    emit(tracing(queue, "of the user"), 7)
    ending.owner = None
    lost = queue.lost.total()
    assert lost >= 507 - 110
    assert (ours.lost, others.lost) == (lost - 7, 0)
    gate.opened.set()
    await asyncio.to_thread(queue.close)
    assert len(gate.taken) == 507 - lost


async def test_a_run_waits_until_there_is_room_again() -> None:
    gate = Gate(opened=False)
    queue = queue_to(gate, patience=30)
    emit(tracing(queue), 70)
    assert queue.crowded
    waiting = asyncio.create_task(queue.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.opened.set()
    await asyncio.wait_for(waiting, 30)
    assert not queue.crowded
    await asyncio.to_thread(queue.close)


async def test_a_run_does_not_wait_for_a_batch_to_be_full_where_the_queue_is_small() -> None:
    gate = Gate()
    queue = ExportQueue(gate, size=100, batch_size=100, delay=600, patience=30)
    emit(tracing(queue), 70)
    assert queue.crowded
    await asyncio.wait_for(queue.room(), 10)
    assert len(gate.taken) == 70
    await asyncio.to_thread(queue.close)


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_a_queue_of_hardly_any_places_loses_nothing_where_each_one_is_waited_for(size: int) -> None:
    gate = Gate()
    queue = ExportQueue(gate, size=size, batch_size=1, delay=600, patience=30)
    tracer = tracing(queue)
    for _ in range(20):
        await asyncio.wait_for(queue.room(), 10)
        emit(tracer, 1)
    await asyncio.to_thread(queue.close)
    assert not queue.lost
    assert len(gate.taken) == 20


async def test_a_run_waits_no_longer_than_the_patience() -> None:
    gate = Gate(LATER)
    queue = queue_to(gate)
    tracer = tracing(queue)
    emit(tracer, 70)
    await asyncio.wait_for(queue.room(), 30)
    emit(tracer, 1)
    assert not queue.crowded  # from here on nobody waits, until something is taken
    gate.verdict = SENT
    assert await asyncio.to_thread(queue.force_flush, 10_000)
    assert len(gate.taken) == 71
    await asyncio.to_thread(queue.close)


async def test_spans_that_others_hang_from_find_a_place_in_a_full_queue() -> None:
    gate = Gate(opened=False)
    queue = queue_to(gate)
    tracer = tracing(queue)
    emit(tracer, 300)
    before = queue.lost.total()
    emit(tracer, 1, "foreach item")
    emit(tracer, 1, "invoke_workflow many")
    assert queue.lost.total() == before
    gate.opened.set()
    await asyncio.to_thread(queue.close)
    assert gate.taken[-2:] == ["foreach item", "invoke_workflow many"]


def test_a_batch_that_never_gets_an_answer_is_given_up_after_two_tries() -> None:
    gate = Gate(SILENT)
    queue = queue_to(gate)
    emit(tracing(queue), 3)
    assert queue.force_flush(20_000) is False
    assert queue.lost == {"unanswered": 3}
    queue.close()


def test_what_is_lost_is_said_in_one_line_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(REFUSED)
    queue = queue_to(gate)
    tracer = tracing(queue)
    with caplog.at_level(logging.WARNING, "spanflow"):
        emit(tracer, 5)
        queue.force_flush(5000)
        gate.verdict = SENT
        emit(tracer, 3)
        queue.force_flush(5000)
        queue.close()
    assert [record.getMessage() for record in caplog.records] == ["5 of 8 spans were dropped: 5 were refused."]


def test_unsampled_spans_are_not_queued_nor_counted() -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    gate = Gate()
    queue = queue_to(gate)
    provider = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(queue)
    emit(provider.get_tracer("spanflow"), 3)
    assert queue.close()
    assert (gate.taken, queue.lost.total()) == ([], 0)
