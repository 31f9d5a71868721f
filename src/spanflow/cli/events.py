"""An event in one line."""

from datetime import UTC, datetime
from typing import Any, assert_never

from pydantic_core import to_json

from spanflow.cli.history import local
from spanflow.events import (
    Event,
    Finish,
    Start,
    StepError,
    StepFinish,
    StepOutput,
    StepResultEvent,
    StepRetry,
    StepStart,
    StepSuspended,
    StepWaiting,
    ToolCall,
    ToolCallDelta,
    ToolCallStreamingStart,
    ToolResultEvent,
)
from spanflow.tracing.lines import human_duration, printable

_LONGEST = 160  # characters of a value


def event_line(event: Event) -> str:
    """Return number, time, type, path and what matters of an event, in columns that are easy to grep."""
    at = datetime.fromtimestamp(event.timestamp / 1e9, UTC).astimezone()
    clock = f"{at:%H:%M:%S}.{at.microsecond // 1000:03}"
    return printable(f"{event.seq:>5}  {clock}  {event.type:<14}  {event.path or '-'}  {_detail(event)}".rstrip())


def short_json(value: Any, longest: int = _LONGEST) -> str:
    """Return a value as compact JSON, cut where it is too long for a line."""
    text = printable(to_json(value, inf_nan_mode="strings", fallback=str).decode())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def error_line(error: StepError) -> str:
    """Return type and message of an error, the first line of it."""
    return printable(f"{error.type}: {error.message.strip().partition(chr(10))[0]}").removesuffix(": ")


def _detail(event: Event) -> str:
    match event:
        case Start():
            resumed = event.payload.resumed
            if resumed is not None:
                return f"{event.payload.workflow_id} resumed at {resumed.path} {short_json(resumed.data)}"
            taken_over = " taken over" if event.payload.recovered else ""
            given = f" {short_json(event.payload.input)}" if "input" in event.payload.model_fields_set else ""
            return f"{event.payload.workflow_id}{taken_over}{given}"
        case StepStart():
            attempt = f"attempt {event.payload.attempt} " if event.payload.attempt > 1 else ""
            return f"{attempt}{short_json(event.payload.input)}"
        case StepOutput():
            return short_json(event.payload.output)
        case ToolCall():
            return f"{event.payload.tool_name} {short_json(event.payload.args)}"
        case ToolCallStreamingStart():
            return event.payload.tool_name
        case ToolCallDelta():
            return f"{event.payload.tool_name} {short_json(event.payload.delta)}"
        case ToolResultEvent():
            error = event.payload.error
            outcome = short_json(event.payload.result) if error is None else f"ERROR {error_line(error)}"
            return f"{event.payload.tool_name} {outcome}"
        case StepRetry():
            payload = event.payload
            return f"attempt {payload.attempt} ERROR {error_line(payload.error)}, next in {payload.delay:g} s"
        case StepSuspended():
            return short_json(event.payload.payload)
        case StepWaiting():
            until = "" if event.payload.until is None else f"until {local(event.payload.until)}"
            return f"{event.payload.event or ''} {until}".strip()
        case StepResultEvent():
            error = event.payload.error
            return f"{event.payload.status} " + (
                short_json(event.payload.output) if error is None else f"ERROR {error_line(error)}"
            )
        case StepFinish():
            return human_duration(int(event.payload.duration * 1e9))
        case Finish():
            error = event.payload.error
            outcome = short_json(event.payload.result) if error is None else f"ERROR {error_line(error)}"
            return event.payload.status if event.payload.status == "suspended" else f"{event.payload.status} {outcome}"
        case _:
            assert_never(event)
