"""`spanflow show`: one run, from its journal alone, while it executes anywhere or long after."""

from typing import Any

from spanflow.cli.events import error_line, event_line, short_json
from spanflow.cli.history import History, iso, local, read_history
from spanflow.cli.terminal import FAILED, OK, WAITS, is_rich, painted, write, write_json
from spanflow.cli.tree import draw
from spanflow.events import RunStatus
from spanflow.ports import Store
from spanflow.state import StepResult
from spanflow.stream import Subscription
from spanflow.tracing.lines import human_duration, printable

_WIDEST = 2000  # characters of input and result
_EXITS: dict[RunStatus, int] = {"success": OK, "failed": FAILED, "canceled": FAILED, "suspended": WAITS, "running": OK}


async def show_run(store: Store, run_id: str, *, events: bool, follow: bool, as_json: bool) -> int:
    """Print a run. With ``follow``, print its events until it ends or suspends first, and tell by the code how."""
    try:
        history = await read_history(store, run_id)
        if events or follow:
            await _write_events(store, history, follow=follow, as_json=as_json)
        if follow:
            history = await read_history(store, run_id)
        if not (as_json and (events or follow)):  # then the events are all of it, a line each
            write_history(history, as_json=as_json, spaced=events or follow)
        return exit_code(history) if follow else OK
    finally:
        await store.aclose()


def exit_code(history: History) -> int:
    """Return the code that tells how a run stands."""
    return _EXITS[history.state.status]


def write_history(history: History, *, as_json: bool = False, spaced: bool = False) -> None:
    """Print what is known of a run, and its tree."""
    if as_json:
        write_json(_as_json(history))
        return
    if spaced:
        write()
    for name, value in _facts(history):
        shown = painted(value) if name == "status" else printable(value)
        write(f"{name:<9} {shown}")
    write()
    write(draw(history.record.plan, history.entries, now=history.read_at, color=is_rich()))
    error = history.state.error
    if error is not None and error.traceback:
        write()
        for line in error.traceback.rstrip().splitlines():
            write(printable(line))


async def _write_events(store: Store, history: History, *, follow: bool, as_json: bool) -> None:
    run_id, last = history.record.run_id, history.state.seq
    async for event in Subscription(store, run_id, None):
        write(event.model_dump_json() if as_json else event_line(event))
        if event.seq >= last and not follow:
            return


def _facts(history: History) -> list[tuple[str, str]]:
    state, record = history.state, history.record
    facts = [
        ("run", record.run_id),
        ("workflow", record.workflow_id),
        ("status", state.status),
        ("started", local(state.started_at)),
        ("duration", human_duration(history.duration) + ("" if state.ended else " so far")),
        ("trace", record.trace.trace_id or "-"),
    ]
    if record.resource_id is not None:
        facts.append(("resource", record.resource_id))
    facts += [("metadata", f"{key}={_plain(value)}") for key, value in history.attributes.items()]
    facts.append(("input", short_json(state.input, _WIDEST)))
    if state.status == "success":
        facts.append(("result", short_json(state.result, _WIDEST)))
    if state.error is not None:
        facts.append(("error", error_line(state.error) + (f"  at {state.error.path}" if state.error.path else "")))
    facts += [("waits", text) for text in _waits(history)]
    verb = "was in" if history.lost else "executes"
    facts += [(verb, _running(step, history)) for step in history.running]
    if state.spans_dropped:
        facts.append(("lost", f"{state.spans_dropped} spans could not be handed over: its trace is not complete"))
    return facts


def _waits(history: History) -> list[str]:
    lines: list[str] = []
    for wait in history.waits:
        since = f"since {local(wait.since)}"
        until = "" if wait.until is None else f", until {local(wait.until)}"
        match wait.kind:
            case "answer":
                kind = "" if wait.answer is None else f" ({wait.answer.partition(':')[2]})"
                lines.append(f"for an answer{kind} at {wait.path}, {since}: {short_json(wait.payload)}")
            case "time":
                lines.append(f"for a time at {wait.path}, {since}{until}")
            case "event":
                lines.append(f"for event {wait.payload!r} at {wait.path}, {since}{until}")
            case "retry":
                lines.append(f"for the next attempt of {wait.path}, {since}{until}")
            case "process":
                lines.append(f"for a process that takes it over, {since}: its own died or left it")
    return lines


def _running(step: StepResult, history: History) -> str:
    attempt = f", attempt {step.attempt}" if step.attempt > 1 else ""
    return f"{step.path}{attempt}, for {human_duration(history.read_at - step.attempt_at)}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else short_json(value)


def _as_json(history: History) -> dict[str, Any]:
    state, record = history.state, history.record
    return {
        "run_id": record.run_id,
        "workflow_id": record.workflow_id,
        "status": state.status,
        "trace_id": record.trace.trace_id,
        "resource_id": record.resource_id,
        "started_at": iso(state.started_at),
        "ended_at": None if state.ended_at is None else iso(state.ended_at),
        "duration": history.duration / 1e9,
        "metadata": history.attributes,
        "input": state.input,
        "result": state.result,
        "error": state.error,
        "waits": [wait.as_json() for wait in history.waits],
        "steps": [_step_as_json(step) for step in state.steps.values()],
        "counts": {
            "steps": state.steps_run,
            "tool_calls": state.tool_calls,
            "retries": state.retries,
            "spans": state.spans,
            "spans_dropped": state.spans_dropped,
        },
        "events": state.seq,
    }


def _step_as_json(step: StepResult) -> dict[str, Any]:
    return {
        "path": step.path,
        "id": step.id,
        "status": step.status,
        "attempt": step.attempt,
        "started_at": iso(step.started_at),
        "ended_at": None if step.ended_at is None else iso(step.ended_at),
        "output": step.output,
        "error": step.error,
    }
