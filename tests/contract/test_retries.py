"""A failed step is tried again as its policy says, and no attempt takes longer than it may."""

import asyncio
import threading

import pytest

from spanflow import (
    Retry,
    StepContext,
    StepTimeout,
    Workflow,
    step,
    tool,
)
from spanflow.testing import FakeClock
from tests.contract.support import (
    Boom,
    recorded,
    result_of,
    untyped,
)

# --- retries


class Flaky:
    """Fails the first times it is called, and keeps the attempts it saw."""

    def __init__(self, failures: int, error: type[Exception] = Boom) -> None:
        self.attempts: list[int] = []
        self.failures = failures
        self.error = error

    async def work(self, value: int, ctx: StepContext) -> int:
        self.attempts.append(ctx.attempt)
        if len(self.attempts) <= self.failures:
            raise self.error(f"try {ctx.attempt}")
        return value


NOW = Retry(max_attempts=3, delay=0)


async def test_a_failed_step_is_tried_again_and_told_its_attempt() -> None:
    flaky = Flaky(2)
    flow = Workflow("flow", input=int).then(step(id="work", retry=NOW)(flaky.work))
    result = await result_of(flow, 5)
    assert result.unwrap() == 5
    assert flaky.attempts == [1, 2, 3]
    assert result.steps["work"].attempt == 3


async def test_a_step_fails_with_its_last_error_when_its_attempts_are_used_up() -> None:
    flaky = Flaky(99)
    result = await result_of(Workflow("flow", input=int).then(step(id="work", retry=NOW)(flaky.work)), 5)
    assert flaky.attempts == [1, 2, 3]
    assert result.error is not None
    assert result.error.message == "try 3"


async def test_without_a_policy_a_step_is_tried_once() -> None:
    flaky = Flaky(1)
    result = await result_of(Workflow("flow", input=int).then(step(id="work")(flaky.work)), 5)
    assert result.status == "failed"
    assert flaky.attempts == [1]


async def test_the_workflows_policy_is_the_default_and_the_steps_own_goes_before_it() -> None:
    default, own = Flaky(2), Flaky(2)
    flow = Workflow("flow", input=int, retry=NOW).then(step(id="default")(default.work))
    assert (await result_of(flow, 5)).status == "success"

    result = await result_of(flow.then(step(id="own", retry=Retry(max_attempts=2, delay=0))(own.work)), 5)
    assert result.status == "failed"
    assert own.attempts == [1, 2]


@pytest.mark.parametrize(
    ("policy", "error", "attempts"),
    [
        (Retry(max_attempts=3, delay=0, retry_on=Boom), Boom, 3),
        (Retry(max_attempts=3, delay=0, retry_on=(KeyError, Boom)), Boom, 3),
        (Retry(max_attempts=3, delay=0, retry_on=KeyError), Boom, 1),
        (Retry(max_attempts=3, delay=0, retry_on=LookupError), KeyError, 3),
        (Retry(max_attempts=3, delay=0, give_up_on=Boom), Boom, 1),
        (Retry(max_attempts=3, delay=0, give_up_on=(KeyError, Boom)), Boom, 1),
        (Retry(max_attempts=3, delay=0, retry_on=LookupError, give_up_on=KeyError), KeyError, 1),
        (Retry(max_attempts=3, delay=0, retry_on=LookupError, give_up_on=KeyError), IndexError, 3),
    ],
)
async def test_retry_on_and_give_up_on_choose_what_is_tried_again(
    policy: Retry, error: type[Exception], attempts: int
) -> None:
    flaky = Flaky(99, error)
    await result_of(Workflow("flow", input=int).then(step(id="work", retry=policy)(flaky.work)), 5)
    assert len(flaky.attempts) == attempts


async def test_the_delay_grows_by_the_backoff_up_to_its_limit() -> None:
    clock, flaky = FakeClock(auto=False), Flaky(99)
    policy = Retry(max_attempts=5, delay=1, backoff=3, max_delay=10, jitter=0)
    run = await Workflow("flow", input=int).then(step(id="work", retry=policy)(flaky.work)).create_run(clock=clock)
    stream = await run.stream(1)

    await clock.advance(0)
    for number, delay in enumerate((1, 3, 9, 10), start=1):
        await clock.advance(delay - 0.001)
        assert len(flaky.attempts) == number
        await clock.advance(0.001)
        assert len(flaky.attempts) == number + 1
    assert (await stream.get_workflow_state()).status == "failed"
    assert [event.payload.delay for event in await recorded(run) if event.type == "step-retry"] == [1, 3, 9, 10]


def test_jitter_spreads_the_delay_on_both_sides() -> None:
    policy = Retry(delay=10, backoff=1, jitter=0.2)
    delays = [policy.delay_after(1) for _ in range(200)]
    assert 8 <= min(delays) < 9.5 < 10.5 < max(delays) <= 12
    assert {Retry(delay=10, backoff=1, jitter=0).delay_after(1) for _ in range(5)} == {10}


async def test_a_timed_out_attempt_is_tried_again() -> None:
    clock = FakeClock(auto=False)
    attempts: list[int] = []

    @step(timeout=5, retry=NOW)
    async def slow(value: int, ctx: StepContext) -> int:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return value

    run = await Workflow("flow", input=int).then(slow).create_run(clock=clock)
    stream = await run.stream(1)
    await clock.advance(5)
    assert (await stream.get_workflow_state()).unwrap() == 1
    assert attempts == [1, 2]


async def test_a_refused_tool_call_inside_a_step_is_tried_again_like_any_failure() -> None:
    attempts: list[int] = []

    @tool
    async def search(limit: int) -> int:
        return limit

    @step(retry=NOW)
    async def ask(value: int, ctx: StepContext) -> int:
        attempts.append(ctx.attempt)
        return await search(limit=untyped("many") if ctx.attempt == 1 else 3)

    assert (await result_of(Workflow("flow", input=int).then(ask), 1)).unwrap() == 3
    assert attempts == [1, 2]


async def test_items_of_a_foreach_are_tried_again_one_by_one() -> None:
    attempts: list[str] = []

    @step(retry=NOW)
    async def work(value: int, ctx: StepContext) -> int:
        attempts.append(f"{ctx.path} {ctx.attempt}")
        if value == 1 and ctx.attempt == 1:
            raise Boom("once")
        return value

    flow = Workflow("flow", input=list[int]).foreach(work)
    assert (await result_of(flow, [0, 1])).unwrap() == [0, 1]
    assert attempts == ["work[0] 1", "work[1] 1", "work[1] 2"]


async def test_a_signal_to_the_run_is_not_tried_again() -> None:
    calls: list[int] = []

    @step(retry=NOW)
    async def leave(value: int, ctx: StepContext) -> int:
        calls.append(value)
        ctx.bail(value)

    assert (await result_of(Workflow("flow", input=int).then(leave), 1)).unwrap() == 1
    assert calls == [1]


# --- timeouts


async def test_a_step_over_its_timeout_is_stopped_and_fails() -> None:
    clock, cleaned = FakeClock(auto=False), asyncio.Event()

    @step(timeout=5)
    async def slow(value: int) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
        return value

    run = await Workflow("flow", input=int).then(slow).create_run(clock=clock)
    stream = await run.stream(1)
    await clock.advance(4.9)
    assert not cleaned.is_set()
    await clock.advance(0.1)
    result = await stream.get_workflow_state()

    assert cleaned.is_set()
    assert result.status == "failed"
    assert result.error is not None
    assert isinstance(result.error.exception, StepTimeout)
    assert (result.error.exception.path, result.error.exception.timeout) == ("slow", 5)
    assert "5" in result.error.message
    assert "timeout" in result.error.message


async def test_a_timeout_error_of_the_step_itself_is_not_taken_for_ours() -> None:
    @step(timeout=5)
    async def own(value: int) -> int:
        raise TimeoutError("the database")

    result = await result_of(Workflow("flow", input=int).then(own), 1)
    assert result.error is not None
    assert type(result.error.exception) is TimeoutError
    assert result.error.message == "the database"


async def test_a_plain_def_over_its_timeout_fails_without_waiting_for_its_thread() -> None:
    clock, begun, go = FakeClock(auto=False), threading.Event(), threading.Event()

    @step(timeout=5)
    def slow(value: int) -> int:
        begun.set()
        go.wait(10)
        return value

    run = await Workflow("flow", input=int).then(slow).create_run(clock=clock)
    stream = await run.stream(1)
    await asyncio.to_thread(begun.wait, 10)
    try:
        await clock.advance(5)
        result = await stream.get_workflow_state()
    finally:
        go.set()
    assert result.error is not None
    assert isinstance(result.error.exception, StepTimeout)
