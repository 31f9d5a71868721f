"""Whatever the back end does, a run's spans arrive, or are counted exactly: over the wire, by both protocols."""

import socket
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import grpc
import pytest

from tests.otlp_receiver import OtlpReceiver, WireProtocol, free_port
from tests.tracing_contract.flood import PRELUDE, SMALL_QUEUE, flood
from tests.tracing_contract.processes import in_process


@pytest.fixture(params=["grpc", "http/protobuf"])
def protocol(request: pytest.FixtureRequest) -> WireProtocol:
    return request.param


def nowhere(protocol: WireProtocol) -> dict[str, str]:
    """Variables that point at a port where nothing listens."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}


@contextmanager
def deaf() -> Generator[str]:
    """Something that takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=50)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hundred_thousand_items_in_a_tight_loop_arrive_complete() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        found = flood(100_000, receiver.environment, timeout=280)
        assert (found.status, found.dropped, found.lines) == ("success", 0, [])
        assert receiver.count() == found.spans


def test_a_queue_that_is_too_small_slows_the_run_down_and_loses_nothing(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        found = flood(5_000, {**receiver.environment, **SMALL_QUEUE})
        assert (found.dropped, found.lines) == (0, [])
        assert len({span.span_id for span in receiver.spans()}) == receiver.count() == found.spans


def test_a_slow_receiver_sets_the_pace_of_the_run(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        receiver.delay = 0.2
        found = flood(5_000, {**receiver.environment, **SMALL_QUEUE})
        assert (found.dropped, found.lines) == (0, [])
        assert receiver.count() == found.spans
    assert found.seconds > 0.2 * (5_002 - 1_000) / 200 / 2


def test_everything_that_is_begun_at_once_waits_before_it_ends(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        receiver.delay = 0.05
        ended = in_process(
            PRELUDE
            + """
@step
async def slow(value: int) -> int:
    await asyncio.sleep(0.3)  # all of them are under way when the first one ends
    return value

many = Workflow("many", input=list[int]).foreach(slow, concurrency=3000)
with configure_tracing():
    show(**asyncio.run(flood(3000)))
""",
            **receiver.environment,
            **SMALL_QUEUE,
        )
        assert (ended.facts["dropped"], ended.stderr) == (0, "")
        assert receiver.count() == ended.facts["spans"]


def test_tools_called_in_a_tight_loop_wait_for_room_too(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        receiver.delay = 0.05
        ended = in_process(
            PRELUDE
            + """
from spanflow import tool

@tool
async def add(value: int) -> int:
    "Add one."
    return value + 1

@tool
def plain(value: int) -> int:
    "Add one."
    return value + 1

@step
async def calls(value: int) -> int:
    for _ in range(2000):
        value = await add(value=value)
    return value

@step
def calls_in_a_thread(value: int) -> int:
    for _ in range(2000):
        value = plain(value=value)
    return value

async def main():
    run = await Workflow("calling", input=int).then(calls).then(calls_in_a_thread).create_run()
    events = [event async for event in await run.stream(0)]
    return events[-1].payload

with configure_tracing():
    payload = asyncio.run(main())
show(result=payload.result, dropped=payload.counts.spans_dropped, spans=payload.counts.spans)
""",
            **receiver.environment,
            **SMALL_QUEUE,
        )
        assert (ended.facts["result"], ended.facts["dropped"], ended.stderr) == (4000, 0, "")
        assert receiver.count() == ended.facts["spans"]


def test_the_event_loop_goes_on_while_a_run_waits_for_room() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        receiver.delay = 0.5
        ended = in_process(
            PRELUDE
            + """
async def main():
    longest, done = 0.0, asyncio.create_task(flood(3000))
    while not done.done():
        begin = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - begin)
    return longest, await done

with configure_tracing():
    longest, facts = asyncio.run(main())
show(longest=longest, **facts)
""",
            **receiver.environment,
            **SMALL_QUEUE,
        )
    assert ended.facts["dropped"] == 0
    assert ended.facts["seconds"] > 3
    assert ended.facts["longest"] < 1.5  # what waits is the run; a blocked loop would miss the beat for seconds


def test_a_receiver_that_is_down_costs_a_run_a_bounded_delay_and_all_is_counted(protocol: WireProtocol) -> None:
    found = flood(5_000, {**nowhere(protocol), **SMALL_QUEUE})
    assert found.status == "success"
    assert 1_000 <= found.spans - found.dropped <= 1_203  # what is queued and in hand: nobody knows yet that it is lost
    assert found.seconds < 5 + 40  # once; for each batch it would be a hundred
    assert found.exit < 9  # a second, and not the ten that it may take
    assert found.logged == [(found.spans, found.spans)]
    cause, total = found.lines
    assert "do not get through" in cause
    assert "nothing listens on 127.0.0.1" in cause
    assert "found the queue full" in total


def test_a_small_run_is_not_delayed_by_a_receiver_that_is_down(protocol: WireProtocol) -> None:
    found = flood(10, nowhere(protocol))
    assert found.dropped == 0
    assert found.seconds < 4  # nobody has waited for the back end: that takes five
    assert found.logged == [(found.spans, found.spans)]
    assert found.exit < 9


def test_a_receiver_that_never_answers_costs_a_bounded_delay(protocol: WireProtocol) -> None:
    with deaf() as endpoint:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        found = flood(3_000, {**variables, **SMALL_QUEUE})
    assert (found.status, found.logged) == ("success", [(found.spans, found.spans)])
    assert found.seconds < 5 + 40
    assert found.exit < 5 + 4.5


REFUSALS = [
    ("http/protobuf", 400, "400 Bad Request"),
    ("http/protobuf", 401, "401 Unauthorized"),
    ("grpc", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT: refused by the test"),
]


@pytest.mark.parametrize(("protocol", "status", "said"), REFUSALS)
def test_spans_that_a_receiver_refuses_are_all_counted_when_the_run_ends(
    protocol: WireProtocol, status: "int | grpc.StatusCode", said: str
) -> None:
    with OtlpReceiver(protocol) as receiver:
        receiver.refuses = status
        found = flood(5_000, {**receiver.environment, **SMALL_QUEUE})
        assert receiver.count() == 0
    assert (found.status, found.dropped) == ("success", found.spans)
    assert found.logged == [(found.spans, found.spans)]
    assert len(found.lines) == 2
    assert f"it answers {said}" in found.lines[0]


BUSY = [
    ("http/protobuf", 429),
    ("http/protobuf", 503),
    ("grpc", grpc.StatusCode.UNAVAILABLE),
    ("grpc", grpc.StatusCode.RESOURCE_EXHAUSTED),
]


@pytest.mark.parametrize(("protocol", "status"), BUSY)
def test_spans_that_a_busy_receiver_puts_off_arrive_when_it_takes_them(
    protocol: WireProtocol, status: "int | grpc.StatusCode"
) -> None:
    with OtlpReceiver(protocol) as receiver, ThreadPoolExecutor(1) as pool:
        receiver.refuses = status
        found = pool.submit(flood, 5_000, {**receiver.environment, **SMALL_QUEUE})
        receiver.wait_for_requests(3)
        receiver.refuses = None
        result = found.result()
        assert (result.dropped, result.logged) == (0, [])
        assert len({span.span_id for span in receiver.spans()}) == receiver.count() == result.spans
    assert len(result.lines) == 1
    assert "it answers" in result.lines[0]


def test_nothing_is_lost_by_a_receiver_that_restarts_in_mid_run(protocol: WireProtocol) -> None:
    with ThreadPoolExecutor(1) as pool:
        with OtlpReceiver(protocol) as first:
            first.delay = 0.05
            port = first.port
            found = pool.submit(flood, 5_000, {**first.environment, **SMALL_QUEUE})
            first.wait_for_requests(5)
        with OtlpReceiver(protocol, port=port) as second:
            result = found.result()
            assert (result.dropped, result.logged) == (0, [])
            ids = [span.span_id for receiver in (first, second) for span in receiver.spans()]
    assert len(set(ids)) == result.spans
    assert 0 < first.count() < result.spans


def test_what_is_lost_while_a_receiver_is_away_and_what_arrives_are_all_spans(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver, ThreadPoolExecutor(1) as pool:
        receiver.refuses = grpc.StatusCode.UNAVAILABLE if protocol == "grpc" else 503
        script = (
            PRELUDE
            + """
with configure_tracing() as setup:
    first = asyncio.run(flood(3000))
    show(**first)
    assert setup.flush(30)  # the receiver is back
    second = asyncio.run(flood(500))
show(first=first, second=second)
"""
        )
        ended = pool.submit(in_process, script, **receiver.environment, **SMALL_QUEUE)
        receiver.wait_for_requests(8)
        receiver.refuses = None
        facts = ended.result().facts
        lost = facts["first"]["dropped"] + facts["second"]["dropped"]
        assert lost > 0
        assert receiver.count() == facts["first"]["spans"] + facts["second"]["spans"] - lost
        assert f"{lost:,} of " in ended.result().stderr


def test_what_arrives_before_a_receiver_goes_for_good_and_what_is_counted_are_all_spans(protocol: WireProtocol) -> None:
    with ThreadPoolExecutor(1) as pool:
        with OtlpReceiver(protocol) as receiver:
            receiver.delay = 0.05
            found = pool.submit(flood, 5_000, {**receiver.environment, **SMALL_QUEUE})
            receiver.wait_for_requests(8)
            receiver.refuses = grpc.StatusCode.UNAVAILABLE if protocol == "grpc" else 503
            receiver.wait_for_requests(
                receiver.requests + 4
            )  # so that no batch is taken whose answer does not get back
        result = found.result()
    arrived = receiver.count()
    assert result.logged == [(result.spans - arrived, result.spans)]
    assert 0 < arrived < result.spans
    assert 0 < result.dropped <= result.spans - arrived  # what waited for the receiver when the run ended is lost later


def test_a_run_that_ends_before_it_is_known_what_becomes_of_its_spans_counts_none_of_them_as_lost() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        receiver.refuses = 400
        found = flood(10, receiver.environment)
    assert found.dropped == 0
    assert found.logged == [(found.spans, found.spans)]


@pytest.mark.parametrize("trouble", ["away", "slow"])
def test_what_arrives_and_what_the_metric_counts_are_all_spans(protocol: WireProtocol, trouble: str) -> None:
    with OtlpReceiver(protocol) as receiver, OtlpReceiver("http/protobuf") as taking:
        receiver.delay = 0.2
        apart = {
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{taking.endpoint}/v1/metrics",
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf",
        }
        spans = nowhere(protocol) if trouble == "away" else receiver.environment
        found = flood(3_000, {**spans, **apart, **SMALL_QUEUE})
        points = [p for metric in taking.metrics() if metric.name == "spanflow.spans.dropped" for p in metric.points]
        counted, arrived = sum(point.value for point in points), receiver.count()
    assert counted + arrived == found.spans
    assert counted == sum(lost for lost, _ in found.logged) == (found.spans if trouble == "away" else 0)


def test_a_batch_that_is_too_large_is_sent_in_parts(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        receiver.largest = 20_000
        found = flood(1_000, receiver.environment)
        assert (found.dropped, found.lines) == (0, [])
        assert len({span.span_id for span in receiver.spans()}) == receiver.count() == found.spans


def test_a_span_that_cannot_be_encoded_costs_no_other(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        ended = in_process(
            """
            from opentelemetry import trace
            from spanflow import configure_tracing
            with configure_tracing():
                tracer = trace.get_tracer("mine")
                for number in range(100):
                    name = "half a pair: \\ud800" if number == 50 else "fine"
                    tracer.start_span(name).end()
            """,
            **receiver.environment,
        )
        assert receiver.count() == 99
    assert "1 of 100 spans were dropped" in ended.stderr


def test_the_metric_counts_what_is_lost_by_its_reason(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver, OtlpReceiver("http/protobuf") as taking:
        receiver.refuses = grpc.StatusCode.INVALID_ARGUMENT if protocol == "grpc" else 400
        apart = {
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{taking.endpoint}/v1/metrics",
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf",
        }
        found = flood(2_000, {**receiver.environment, **apart, **SMALL_QUEUE})
        points = [p for metric in taking.metrics() if metric.name == "spanflow.spans.dropped" for p in metric.points]
    assert found.dropped == found.spans
    assert {str(point.attributes["spanflow.drop.reason"]) for point in points} <= {"refused", "queue_full"}
    assert sum(point.value for point in points) == found.spans


def test_runs_side_by_side_each_count_their_own(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        receiver.refuses = grpc.StatusCode.INVALID_ARGUMENT if protocol == "grpc" else 400
        ended = in_process(
            PRELUDE
            + """
from opentelemetry import trace
async def main():
    with trace.get_tracer("web").start_as_current_span("request"):  # one trace for both
        return await asyncio.gather(flood(300), flood(1200))

with configure_tracing() as setup:
    asyncio.run(flood(1))
    setup.flush()  # from here on it is known that the receiver refuses
    small, large = asyncio.run(main())
show(small=small, large=large)
""",
            **receiver.environment,
            **SMALL_QUEUE,
        )
    small, large = ended.facts["small"], ended.facts["large"]
    assert (small["dropped"], large["dropped"]) == (small["spans"], large["spans"])
    assert f"{small['spans'] + large['spans'] + 1 + 3:,} spans were dropped" in ended.stderr
