"""`spanflow resume`, `replay` and `cancel`: go on with a run, in this process or by telling its own."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from spanflow.cli.events import event_line
from spanflow.cli.history import read_history
from spanflow.cli.options import UsageError
from spanflow.cli.show import exit_code, write_history
from spanflow.cli.terminal import FAILED, OK, tell
from spanflow.events import Event
from spanflow.ports import Store
from spanflow.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Answer:
    """What a suspended step is told; ``step`` is its id or path, None where only one waits."""

    data: Any
    step: str | None
    given: bool


async def resume_run(runtime: Runtime, store: Store, run_id: str, answer: Answer, *, as_json: bool) -> int:
    """Answer a step, or take over a run that lost its process, and execute the run here until it ends or suspends."""
    try:
        run = await runtime.get_run(run_id)
        state = (await read_history(store, run_id)).state
        events: AsyncIterator[Event]
        if state.status == "running" and not answer.given:
            await run.restart()
            events = run.observe_stream(after=state.seq)
        elif state.status == "suspended" and not answer.given and answer.step is None and len(state.waiting) > 1:
            raise UsageError(f"Run {run_id!r} waits for several answers. Say which one you give: --step PATH.")
        else:
            events = await run.resume_stream(answer.data, step=answer.step)
        await _watch(events, run_id, quiet=as_json)
        return await _show(store, run_id, as_json=as_json)
    finally:
        await _close(runtime, store)


async def replay_run(runtime: Runtime, store: Store, run_id: str, step: str, input_data: Any, *, as_json: bool) -> int:
    """Execute a new run here that goes back to a recorded step of this one."""
    try:
        run = await (await runtime.get_run(run_id)).time_travel(step=step, input_data=input_data)
        await _watch(run.observe_stream(), run.run_id, quiet=as_json)
        return await _show(store, run.run_id, as_json=as_json)
    finally:
        await _close(runtime, store)


async def cancel_run(runtime: Runtime, store: Store, run_id: str, *, as_json: bool) -> int:
    """End a run as canceled, wherever it executes, and without its code."""
    try:
        result = await runtime.cancel_run(run_id)
        if not as_json and result.status != "canceled":
            tell(f"Run {run_id} was over already: {result.status}.")
        await _show(store, run_id, as_json=as_json)
        return OK if result.status == "canceled" else FAILED
    finally:
        await _close(runtime, store)


async def _watch(events: AsyncIterator[Event], run_id: str, *, quiet: bool) -> None:
    """Print events as they come, beside the output."""
    try:
        async for event in events:
            if not quiet:
                tell(event_line(event))
    except asyncio.CancelledError:
        tell(f"Stopped. Run {run_id} is kept as it stands: spanflow resume {run_id} goes on with it.")
        raise


async def _show(store: Store, run_id: str, *, as_json: bool) -> int:
    history = await read_history(store, run_id)
    write_history(history, as_json=as_json)
    return exit_code(history)


async def _close(runtime: Runtime, store: Store) -> None:
    await runtime.aclose()
    await store.aclose()  # which may be another one than the runtime's
