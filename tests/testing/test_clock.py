"""The fake clock: order of deadlines, time that stands still, months in milliseconds."""

import asyncio
import concurrent.futures
import gc
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanflow import InvalidInput, Retry, Runtime, SpanflowError, Workflow, step
from spanflow.testing import FakeClock
from spanflow.testing.clock import FakeTimeout
from spanflow.testing.threads import pools_are_busy

SECOND = 1_000_000_000  # ns
DAY = 86_400.0  # s
MONTHS = 90 * DAY


class Diary:
    """What happened, and at which second of the fake clock."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._began = clock.time_ns()
        self.entries: list[tuple[str, float]] = []

    def note(self, what: str) -> None:
        self.entries.append((what, (self._clock.time_ns() - self._began) / SECOND))

    async def nap(self, what: str, *naps: float) -> None:
        for seconds in naps:
            await self._clock.sleep_until(self._clock.time_ns() + round(seconds * SECOND))
            self.note(what)


async def rest(turns: int = 100) -> None:
    """Give the event loop some turns."""
    for _ in range(turns):
        await asyncio.sleep(0)


# --- time that moves by itself


async def test_sleepers_wake_in_the_order_of_their_deadlines_at_exactly_their_time() -> None:
    clock = FakeClock()
    diary = Diary(clock)
    await asyncio.gather(diary.nap("c", 3), diary.nap("a", 1, 4), diary.nap("b", 2))
    assert diary.entries == [("a", 1.0), ("b", 2.0), ("c", 3.0), ("a", 5.0)]


async def test_sleepers_of_one_moment_wake_in_the_order_in_which_they_lay_down() -> None:
    clock = FakeClock()
    diary = Diary(clock)
    await asyncio.gather(*(diary.nap(name, 7) for name in "abc"))
    assert diary.entries == [("a", 7.0), ("b", 7.0), ("c", 7.0)]


@given(st.lists(st.lists(st.integers(0, 50), max_size=5), max_size=6))
def test_any_naps_wake_as_a_real_clock_would_wake_them(plans: list[list[int]]) -> None:
    async def main() -> list[tuple[str, float]]:
        clock = FakeClock()
        diary = Diary(clock)
        await asyncio.gather(*(diary.nap(str(number), *naps) for number, naps in enumerate(plans)))
        return diary.entries

    happened = asyncio.run(main())
    expected = [(str(number), float(sum(naps[: i + 1]))) for number, naps in enumerate(plans) for i in range(len(naps))]
    assert sorted(happened) == sorted(expected)
    assert [at for _, at in happened] == sorted(at for _, at in happened)


async def test_time_stands_still_while_anything_else_can_run() -> None:
    clock = FakeClock()
    diary = Diary(clock)

    async def work() -> None:
        await rest(1000)  # more turns than any fixed number of them
        diary.note("work")
        await diary.nap("work", 5)

    await asyncio.gather(diary.nap("sleep", 10), work())
    assert diary.entries == [("work", 0.0), ("work", 5.0), ("sleep", 10.0)]


async def test_a_moment_that_has_passed_is_not_waited_for() -> None:
    clock = FakeClock(auto=False)
    await clock.sleep_until(clock.time_ns())
    await clock.sleep_until(clock.time_ns() - SECOND)
    assert clock.waits == []


async def test_time_does_not_jump_before_what_has_arrived_is_read() -> None:
    clock = FakeClock()
    diary = Diary(clock)
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    here.setblocking(False)

    async def wait_for_readable() -> None:
        readable = loop.create_future()
        loop.add_reader(here, lambda: readable.done() or readable.set_result(None))
        await rest(5)
        there.send(b"now")  # readable from the loop's next turn on
        await readable
        loop.remove_reader(here)
        await diary.nap("received", 5)

    with here, there:
        await asyncio.gather(diary.nap("sleep", 10), wait_for_readable())
    assert diary.entries == [("received", 5.0), ("sleep", 10.0)]


async def test_time_does_not_jump_while_a_thread_works() -> None:
    clock = FakeClock(patience=30.0)
    diary = Diary(clock)
    go = threading.Event()

    async def in_a_thread() -> None:
        asyncio.get_running_loop().call_later(0.01, go.set)
        await asyncio.to_thread(go.wait)
        await diary.nap("thread", 5)

    await asyncio.gather(diary.nap("sleep", 10), in_a_thread())
    assert diary.entries == [("thread", 5.0), ("sleep", 10.0)]


def test_work_that_no_thread_has_taken_yet_counts_as_work() -> None:
    go = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(50):
            pool.submit(int).result()
            done = pool.submit(go.wait, 10)
            busy = pools_are_busy()
            go.set()
            assert done.result()
            assert busy
            go.clear()


def test_work_whose_thread_has_only_just_been_started_counts_as_work() -> None:
    go = threading.Event()

    def hold(frame: object, event: str, argument: object) -> None:
        """Hold a thread up on the way to its first work, as a busy machine does."""
        go.wait(10)

    threading.setprofile(hold)
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(int)
            busy = pools_are_busy()
            go.set()
            assert done.result() == 0
    finally:
        threading.setprofile(None)
    assert busy


class UnluckyLoop(asyncio.SelectorEventLoop):
    """A thread of its pool ends its work just after the clock has seen, so many times, that nothing else is to run."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.go = threading.Event()
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        self._times = times

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name != "_ready" or found or sys._getframe(1).f_globals["__name__"] != "spanflow.testing.timers":  # pyright: ignore[reportPrivateUsage]
            return found
        self._times -= 1
        if self._times == 0:
            self.go.set()
            self.pool.shutdown()
            return ()
        return found


@pytest.mark.parametrize("times", range(1, 5))
def test_time_does_not_jump_before_what_a_thread_has_just_finished(times: int) -> None:
    clock = FakeClock(patience=30.0)
    diary = Diary(clock)
    loop = UnluckyLoop(times)

    async def in_a_thread() -> None:
        await loop.run_in_executor(loop.pool, loop.go.wait)
        await diary.nap("thread", 5)

    async def main() -> None:
        await asyncio.gather(diary.nap("sleep", 10), in_a_thread())

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    assert diary.entries == [("thread", 5.0), ("sleep", 10.0)]


async def test_a_thread_that_has_finished_holds_up_nothing() -> None:
    clock = FakeClock(patience=30.0)
    await asyncio.to_thread(threading.get_ident)
    began = time.monotonic()
    await clock.sleep_until(clock.time_ns() + SECOND)
    assert time.monotonic() - began < 10.0


async def test_a_thread_that_waits_for_time_to_pass_does_not_stop_it() -> None:
    clock = FakeClock(patience=0.01)
    woken = threading.Event()
    waiting = asyncio.create_task(asyncio.to_thread(woken.wait))
    await rest()
    await clock.sleep_until(clock.time_ns() + SECOND)
    woken.set()
    assert await waiting


async def test_a_loop_that_spins_until_time_has_passed_does_not_stop_it() -> None:
    clock = FakeClock()
    nap = asyncio.create_task(clock.sleep_until(clock.time_ns() + SECOND))
    while not nap.done():  # noqa: ASYNC110  # the point of the test
        await asyncio.sleep(0)
    assert nap.exception() is None


class CountedLoop(asyncio.SelectorEventLoop):
    turns = 0

    def _run_once(self) -> None:
        self.turns += 1
        run_once: Callable[[], None] = getattr(super(), "_run_once")  # noqa: B009  # untyped
        run_once()


def test_two_clocks_in_one_loop_do_not_wait_for_each_other() -> None:
    one, other = FakeClock(), FakeClock()

    async def main() -> None:
        await asyncio.gather(Diary(one).nap("one", *[1] * 20), Diary(other).nap("other", *[1] * 20))

    loop = CountedLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    assert (one.now, other.now) == (FakeClock().now + timedelta(seconds=20),) * 2
    assert loop.turns < 1000


def test_one_clock_serves_several_loops_in_sequence() -> None:
    clock = FakeClock(datetime(2026, 5, 1, tzinfo=UTC))
    for _ in range(3):
        asyncio.run(clock.sleep_until(clock.time_ns() + 3600 * SECOND))
    assert clock.now == datetime(2026, 5, 1, 3, tzinfo=UTC)


def test_loops_that_are_closed_are_forgotten() -> None:
    clock = FakeClock()

    async def nap() -> "weakref.ref[asyncio.AbstractEventLoop]":
        await clock.sleep_until(clock.time_ns() + SECOND)
        return weakref.ref(asyncio.get_running_loop())

    loops = [asyncio.run(nap()) for _ in range(5)]
    gc.collect()
    assert [loop() for loop in loops[:-1]] == [None] * 4


async def test_timeouts_that_were_not_needed_are_forgotten() -> None:
    clock = FakeClock(auto=False)
    nap = asyncio.create_task(clock.sleep_until(clock.time_ns() + SECOND))
    await asyncio.sleep(0)

    async def need_no_timeout() -> "weakref.ref[FakeTimeout]":
        async with clock.timeout(60) as limit:
            return weakref.ref(limit)

    limits = [await need_no_timeout() for _ in range(100)]
    assert clock.waits == [1.0]
    gc.collect()
    assert len([limit for limit in limits if limit() is not None]) <= 2
    await clock.advance(1)
    assert nap.done()


def test_a_loop_that_was_left_with_sleepers_does_not_disturb_the_next() -> None:
    clock = FakeClock()

    async def leave() -> None:
        sleeping.append(asyncio.create_task(clock.sleep_until(clock.time_ns() + SECOND)))
        await asyncio.sleep(0)

    sleeping: list[asyncio.Task[None]] = []
    asyncio.run(leave())
    assert sleeping[0].cancelled()
    began = clock.time_ns()
    asyncio.run(clock.sleep_until(began + 5 * SECOND))
    assert clock.time_ns() == began + 5 * SECOND


class SecretiveLoop(asyncio.SelectorEventLoop):
    """Keeps to itself what it will run next, as loops that are not written in Python do."""

    def __getattribute__(self, name: str) -> Any:
        if name == "_ready" and sys._getframe(1).f_globals["__name__"].startswith("spanflow."):  # pyright: ignore[reportPrivateUsage]
            raise AttributeError(name)
        return super().__getattribute__(name)


def test_a_loop_that_does_not_tell_whether_it_is_idle_is_given_turns() -> None:
    clock = FakeClock()
    diary = Diary(clock)

    async def work() -> None:
        await rest(30)
        diary.note("work")

    async def main() -> None:
        await asyncio.gather(diary.nap("b", 2), diary.nap("a", 1, 3), work())

    with asyncio.Runner(loop_factory=SecretiveLoop) as runner:
        runner.run(main())
    assert diary.entries == [("work", 0.0), ("a", 1.0), ("b", 2.0), ("a", 4.0)]


async def test_no_task_and_no_callback_is_left_behind() -> None:
    clock = FakeClock()
    before = asyncio.all_tasks()
    async with clock.timeout(5):
        await clock.sleep_until(clock.time_ns() + SECOND)
    assert clock.waits == []
    assert asyncio.all_tasks() == before


# --- timeouts


async def test_a_timeout_strikes_at_its_time_and_says_so() -> None:
    clock = FakeClock()
    began = clock.time_ns()
    limit = clock.timeout(30)
    with pytest.raises(TimeoutError):
        async with limit:
            await asyncio.Event().wait()
    assert limit.expired()
    assert clock.time_ns() == began + 30 * SECOND


async def test_a_body_that_is_through_in_time_never_feels_its_timeout() -> None:
    clock = FakeClock()
    limit = clock.timeout(30)
    async with limit:
        await clock.sleep_until(clock.time_ns() + 29 * SECOND)
    await clock.sleep_until(clock.time_ns() + 3600 * SECOND)
    assert not limit.expired()


async def test_whoever_is_ready_in_the_moment_of_the_timeout_is_in_time() -> None:
    clock = FakeClock()
    async with clock.timeout(10):
        await clock.sleep_until(clock.time_ns() + 10 * SECOND)


async def test_the_nearer_of_two_timeouts_strikes() -> None:
    clock = FakeClock()
    outer, inner = clock.timeout(20), clock.timeout(10)

    async def body() -> None:
        async with outer, inner:
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await body()
    assert (outer.expired(), inner.expired()) == (False, True)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
@pytest.mark.parametrize("auto", [True, False])
async def test_a_timeout_without_time_strikes_at_once(seconds: float, auto: bool) -> None:
    clock = FakeClock(auto=auto)
    with pytest.raises(TimeoutError):
        async with clock.timeout(seconds):
            await asyncio.Event().wait()


async def test_an_infinite_timeout_never_strikes() -> None:
    clock = FakeClock(patience=0.0)
    async with clock.timeout(float("inf")):
        await clock.sleep_until(clock.time_ns() + int(MONTHS) * SECOND)


async def test_real_work_gets_its_chance_before_a_timeout_strikes() -> None:
    clock = FakeClock(patience=30.0)
    began = clock.time_ns()
    async with clock.timeout(0.001):
        await asyncio.to_thread(time.sleep, 0.01)
    async with clock.timeout(0.001):
        reader, writer = await asyncio.open_connection(*await echo_after(0.01))
        assert await reader.read() == b"done"
    writer.close()
    assert clock.time_ns() == began


async def echo_after(seconds: float) -> tuple[str, int]:
    """Start a server that answers after some real time, and return its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        writer.write(b"done")
        writer.close()
        server.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    return host, port


async def test_work_that_is_cancelled_from_outside_is_no_timeout() -> None:
    clock = FakeClock(auto=False)
    limit = clock.timeout(10)

    async def body() -> None:
        async with limit:
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not limit.expired()
    assert clock.waits == []


# --- time that a test moves


async def test_time_that_is_moved_by_hand_never_moves_by_itself() -> None:
    clock = FakeClock(auto=False, patience=0.0)
    nap = asyncio.create_task(clock.sleep_until(clock.time_ns() + SECOND))
    await rest()
    assert not nap.done()
    assert clock.waits == [1.0]
    await clock.advance(1)
    assert nap.done()


async def test_advancing_wakes_in_order_and_lets_each_do_all_it_can_before_the_next() -> None:
    clock = FakeClock(auto=False)
    diary = Diary(clock)
    naps = asyncio.gather(diary.nap("a", 1, 1, 1), diary.nap("b", 2.5))
    await clock.advance(2.9)
    assert diary.entries == [("a", 1.0), ("a", 2.0), ("b", 2.5)]
    assert clock.waits == pytest.approx([0.1])
    await clock.advance(0.1)
    await naps
    assert diary.entries[-1] == ("a", 3.0)


async def test_advancing_past_a_timeout_makes_it_strike_at_its_time() -> None:
    clock = FakeClock(auto=False, patience=30.0)
    began = clock.time_ns()
    struck: list[float] = []

    async def body() -> None:
        try:
            async with clock.timeout(5):
                await asyncio.Event().wait()
        except TimeoutError:
            struck.append((clock.time_ns() - began) / SECOND)

    task = asyncio.create_task(body())
    await clock.advance(60)
    await task
    assert struck == [5.0]
    assert clock.time_ns() == began + 60 * SECOND


async def test_advancing_by_nothing_lets_everything_run_that_needs_no_time() -> None:
    clock = FakeClock(auto=False)
    task = asyncio.create_task(rest(500))
    await clock.advance(0)
    assert task.done()


async def test_advancing_waits_for_what_threads_do_in_that_time() -> None:
    clock = FakeClock(auto=False, patience=30.0)
    diary = Diary(clock)
    go = threading.Event()

    async def body() -> None:
        await asyncio.to_thread(go.wait)
        await diary.nap("thread", 1)

    task = asyncio.create_task(body())
    asyncio.get_running_loop().call_later(0.01, go.set)
    await clock.advance(1)
    assert diary.entries == [("thread", 1.0)]
    await task


async def test_a_clock_that_moves_by_itself_may_be_advanced_too() -> None:
    clock = FakeClock()
    diary = Diary(clock)
    nap = asyncio.create_task(diary.nap("nap", 100))
    await clock.advance_to(clock.now + timedelta(seconds=30))
    assert clock.waits == [70.0]
    await nap
    await rest()
    await clock.advance(30)
    assert diary.entries == [("nap", 100.0)]


async def test_time_does_not_go_back() -> None:
    clock = FakeClock(datetime(2026, 5, 1, tzinfo=UTC))
    with pytest.raises(InvalidInput, match="does not go back to 2026-04-01"):
        await clock.advance_to(datetime(2026, 4, 1, tzinfo=UTC))
    with pytest.raises(InvalidInput, match="does not go back"):
        await clock.advance(-1)
    assert clock.now == datetime(2026, 5, 1, tzinfo=UTC)


async def test_a_second_advance_at_a_time_is_refused_and_a_canceled_one_is_forgotten() -> None:
    clock = FakeClock(auto=False)
    nap = asyncio.create_task(clock.sleep_until(clock.time_ns() + 9 * SECOND))
    first = asyncio.create_task(clock.advance(5))
    await asyncio.sleep(0)
    with pytest.raises(SpanflowError, match="another advance"):
        await clock.advance(1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await clock.advance(9)
    assert nap.done()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: FakeClock(datetime(2026, 5, 1)), "time zone"),  # noqa: DTZ001  # the point of the test
        (lambda: FakeClock(1.5), "whole ns"),  # pyright: ignore[reportArgumentType]
        (lambda: FakeClock(patience=-1), "patience=-1"),
    ],
)
def test_a_clock_that_makes_no_sense_is_refused(make: Callable[[], FakeClock], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        make()


def test_a_clock_starts_where_it_is_told() -> None:
    assert FakeClock(5).time_ns() == 5
    moment = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    assert FakeClock(moment).now == moment


# --- with workflows


@step
async def increment(value: int) -> int:
    return value + 1


@step(timeout=60)
async def hang(value: int) -> int:
    await asyncio.Event().wait()
    return value


@step(timeout=60)
def in_a_thread(value: int) -> int:
    time.sleep(0.005)
    return value + 1


def flaky(failures: int) -> Any:
    """Make a step that fails so often before it succeeds."""
    left = [failures]

    @step(id="flaky", retry=Retry(max_attempts=failures + 1, delay=3600, backoff=2, jitter=0.0, max_delay=DAY))
    async def fail(value: int) -> int:
        if left[0]:
            left[0] -= 1
            raise ConnectionError("not yet")
        return value + 1

    return fail


async def test_months_of_sleep_and_days_of_retries_take_milliseconds() -> None:
    clock = FakeClock(patience=30.0)
    workflow = Workflow("patient", input=int).sleep(MONTHS).then(flaky(5)).sleep(MONTHS)
    began, started = clock.now, time.monotonic()
    result = await (await workflow.create_run(clock=clock)).start(1)
    assert result.unwrap() == 2
    assert clock.now - began == timedelta(seconds=2 * MONTHS) + timedelta(hours=1 + 2 + 4 + 8 + 16)
    assert time.monotonic() - started < 10.0


async def test_a_hanging_step_runs_into_its_timeout_at_once() -> None:
    clock = FakeClock()
    began, started = clock.now, time.monotonic()
    result = await (await Workflow("stuck", input=int).then(hang).create_run(clock=clock)).start(1)
    assert result.error is not None
    assert result.error.type == "spanflow.errors.StepTimeout"
    assert clock.now - began == timedelta(seconds=60)
    assert time.monotonic() - started < 20.0


async def test_a_step_in_a_thread_is_through_before_its_timeout() -> None:
    clock = FakeClock(patience=30.0)
    workflow = Workflow("threads", input=int).parallel(in_a_thread, in_a_thread.with_id("other"), increment)
    assert (await (await workflow.create_run(clock=clock)).start(1)).unwrap() == (2, 2, 2)


async def test_an_event_that_does_not_come_ends_the_wait_at_once() -> None:
    clock = FakeClock()
    began = clock.now
    workflow = Workflow("orders", input=int).wait_for_event("paid", int, timeout=7 * DAY)
    result = await (await workflow.create_run(clock=clock)).start(1)
    assert result.error is not None
    assert result.error.type == "spanflow.errors.EventTimeout"
    assert clock.now - began == timedelta(days=7)


async def test_an_event_that_comes_in_time_is_taken() -> None:
    clock = FakeClock(auto=False)
    run = await Workflow("orders", input=int).wait_for_event("paid", int, timeout=7 * DAY).create_run(clock=clock)
    result = asyncio.create_task(run.start(1))
    await clock.advance(6 * DAY)
    await run.send_event("paid", 5)
    assert (await result).unwrap() == 5


async def test_a_runtime_takes_the_clock_for_all_its_runs() -> None:
    clock = FakeClock()
    began = clock.now
    async with Runtime(clock=clock) as runtime:
        nap = Workflow("nap", input=int).sleep(DAY).then(increment)
        runs = [await runtime.create_run(nap) for _ in range(3)]
        results = await asyncio.gather(*(run.start(number) for number, run in enumerate(runs)))
    assert [result.unwrap() for result in results] == [1, 2, 3]
    assert clock.now - began == timedelta(days=1)


@pytest.mark.parametrize("debug", [True, False])
def test_what_a_run_does_in_time_is_the_same_each_time(debug: bool) -> None:
    def tell(work: Callable[[], Coroutine[Any, Any, list[Any]]]) -> list[Any]:
        return asyncio.run(work(), debug=debug)

    async def work() -> list[Any]:
        clock = FakeClock()
        one = Workflow("one", input=int).sleep(10).then(increment).sleep(10)
        other = Workflow("other", input=int).sleep(5).then(flaky(1)).then(increment)
        run = await Workflow("both", input=int).parallel(one, other, increment).create_run(clock=clock)
        stream = await run.stream(1)
        return [(event.type, event.path, event.timestamp) async for event in stream]

    assert tell(work) == tell(work)
