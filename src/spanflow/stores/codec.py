"""How durable stores write runs and their events: compact JSON, the same in all of them. No pickle.

A batch is what one append adds: ``[1, time, event, ...]``, the version of the format first. An event is
``[code, ns since the event before, payload]``, followed by its path and span id where those are not the same as of the
event before, and by ``changes`` where user code made some. Sequence numbers are counted from the batch's first.
A row ``["in", 0, trace id]`` says that the events after it are of another trace than that of the run; with an empty id,
of none, and with null, of the run's own again.
A payload leaves out what is None, what it shares with the path, and a value that a ``*_ref`` says where to find. The
``step-finish`` that follows a ``step-result`` at the same moment is the ``d`` of that. What a ``finish`` says of steps
that wait is left out: each of them has said it in its ``step-suspended``, and ``RunState.suspended`` has it all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from spanflow.entries import Entry, RunIds
from spanflow.errors import SpanflowError
from spanflow.events import (
    Counts,
    Envelope,
    Finish,
    LinkedTrace,
    Resumed,
    Start,
    StepError,
    StepFinish,
    StepResultEvent,
    StepRetry,
    StepStart,
    StepSuspended,
    StepWaiting,
    ToolCall,
    ToolCallStreamingStart,
    ToolResultEvent,
    Travelled,
)
from spanflow.plan import Plan
from spanflow.ports import Message, RunRecord
from spanflow.schema import READABLE, to_json
from spanflow.tracing.metadata import as_json
from spanflow.tracing.record import TraceRecord

FORMAT = 1
"""Version of what is written here. It is raised when a program that knows only the version before would misread."""

Payload = dict[str, Any]

_IN = "in"
_AT_MOST = 500  # events in a batch


def encode_batch(entries: Sequence[Entry]) -> str:
    """Write the events of one append.

    Raises:
        SpanflowError: a value is not JSON; the error names the step and the type.
    """
    time = entries[0].timestamp
    rows: list[Any] = [FORMAT, time]
    path, span_id, result = "", None, None
    ids, trace_id = None, None
    for entry in entries:
        if entry.run is not ids:
            ids = entry.run
            trace = (ids.trace_id or "") if ids.elsewhere else None
            if trace != trace_id:
                rows.append((_IN, 0, trace))
                trace_id, result = trace, None
        kind, payload, at = entry.kind, entry.payload, entry.timestamp
        same = entry.path == path and entry.span_id == span_id and entry.changes is None
        if kind is StepFinish and result is not None and same and at == time:
            result["d"] = payload["duration"]
            if payload["attempt"] != 1:
                result["a"] = payload["attempt"]
            result = None
            continue
        code, shorten = _WRITE[kind]
        short = shorten(payload, entry.path)
        if same:
            rows.append((code, at - time, short))
        else:
            path, span_id = entry.path, entry.span_id
            row = (code, at - time, short, path, None if span_id is None else f"{span_id:016x}")
            rows.append(row if entry.changes is None else (*row, entry.changes))
        time = at
        result = short if kind is StepResultEvent else None
    try:
        return _text(rows)
    except SpanflowError as error:
        raise _named(entries) or error from None


def encode_batches(entries: Sequence[Entry]) -> list[tuple[int, int, str]]:
    """Write the events that a new run begins with: first and last seq of each batch, and the batch.

    They are as many as the past of a run that has travelled in time, and a reader reads whole batches.
    """
    parts = [entries[at : at + _AT_MOST] for at in range(0, len(entries), _AT_MOST)]
    return [(part[0].seq, part[-1].seq, encode_batch(part)) for part in parts]


def decode_batch(text: str, ids: RunIds, first_seq: int) -> list[Entry]:
    """Read back what ``encode_batch`` wrote. Values are plain JSON; a step's schema gives them their types.

    Raises:
        SpanflowError: it was written by a newer version, or is damaged.
    """
    try:
        version, time, *rows = from_json(text)
        if version == FORMAT:
            return _entries(rows, time, ids, first_seq)
    except (ValueError, TypeError, LookupError) as error:
        raise SpanflowError(
            f"The journal of run {ids.run_id!r} cannot be read at event {first_seq}: {error}."
            " The store is damaged; restore it from a backup."
        ) from error
    raise _too_new(f"Event {first_seq} of run {ids.run_id!r}", version)


def encode_record(record: RunRecord) -> str:
    """Write what is fixed when a run is created.

    Raises:
        SpanflowError: a value is not JSON.
    """
    trace = record.trace
    return _text(
        {
            "v": FORMAT,
            "run_id": record.run_id,
            "workflow_id": record.workflow_id,
            "created_at": record.created_at,
            "resource_id": record.resource_id,
            "initial_state": record.initial_state,
            "runtime_context": record.runtime_context,
            "trace": {name: getattr(trace, name) for name in TraceRecord.__slots__}
            | {"metadata": as_json(trace.metadata)},
            "plan": record.plan,
        }
    )


def decode_record(text: str) -> RunRecord:
    """Read back what ``encode_record`` wrote.

    Raises:
        SpanflowError: it was written by a newer version, or is damaged.
    """
    try:
        found = from_json(text)
        version = found.pop("v")
        if version == FORMAT:
            trace, plan = TraceRecord(**found.pop("trace")), Plan.model_validate(found.pop("plan"))
            trace.links = tuple(trace.links)
            return RunRecord(**found, trace=trace, plan=plan)
    except (ValueError, TypeError, LookupError) as error:
        raise SpanflowError(
            f"The record of a run cannot be read: {error}. The store is damaged; restore it from a backup."
        ) from error
    raise _too_new(f"The record of run {found.get('run_id')!r}", version)


def encode_message(message: Message) -> str:
    """Write what was sent to a run.

    Raises:
        SpanflowError: its payload is not JSON.
    """
    return _text([message.id, message.name, message.payload])


def decode_message(text: str) -> Message:
    """Read back what ``encode_message`` wrote."""
    id, name, payload = from_json(text)
    return Message(id=id, name=name, payload=payload)


def _entries(rows: list[list[Any]], time: int, ids: RunIds, seq: int) -> list[Entry]:
    found: list[Entry] = []
    path, span_id, own = "", None, ids
    for row in rows:
        if row[0] == _IN:
            trace_id = row[2]
            ids = own if trace_id is None else RunIds(own.run_id, trace_id or None, elsewhere=True)
            continue
        kind, lengthen = _READ[row[0]]
        time += row[1]
        changes = None
        if len(row) > 3:
            path = row[3]
            span_id = None if row[4] is None else int(row[4], 16)
            changes = row[5] if len(row) > 5 else None
        short = row[2]
        found.append(Entry(kind, lengthen(short, path), ids, seq, time, span_id, path, changes))
        seq += 1
        if kind is StepResultEvent and "d" in short:
            found.append(Entry(StepFinish, _long_step_finish(short, path), ids, seq, time, span_id, path))
            seq += 1
    return found


# --- payloads: the three of every step by hand, the others by their fields


def _short_step_start(payload: Payload, path: str) -> Payload:
    ref = payload["input_ref"]
    if ref is not None:
        short: Payload = {"r": ref}
    else:
        short = {} if payload["input"] is None else {"v": payload["input"]}
    id = payload["id"]
    if id != path and not path.startswith(f"{id}[") and id != _id_of(path):
        short["i"] = id
    if payload["attempt"] != 1:
        short["a"] = payload["attempt"]
    if "foreach_index" in payload:
        short["n"] = payload["foreach_index"]
    if "loop_iteration" in payload:
        short["l"] = payload["loop_iteration"]
    return short


def _long_step_start(short: Payload, path: str) -> Payload:
    payload: Payload = {
        "id": short.get("i") or _id_of(path),
        "attempt": short.get("a", 1),
        "input": short.get("v"),
        "input_ref": short.get("r"),
    }
    if "n" in short:
        payload["foreach_index"] = short["n"]
    if "l" in short:
        payload["loop_iteration"] = short["l"]
    return payload


def _short_step_result(payload: Payload, path: str) -> Payload:
    ref = payload.get("output_ref")
    if ref is not None:
        short: Payload = {"r": ref}
    else:
        output = payload.get("output")
        short = {} if output is None else {"v": output}
    id = payload["id"]
    if id != path and not path.startswith(f"{id}[") and id != _id_of(path):
        short["i"] = id
    if payload["status"] != "success":
        short["s"] = payload["status"]
        if payload.get("error") is not None:
            short["e"] = payload["error"]
    if payload.get("message_id") is not None:
        short["m"] = payload["message_id"]
    return short


def _long_step_result(short: Payload, path: str) -> Payload:
    status = short.get("s", "success")
    payload: Payload = {"id": short.get("i") or _id_of(path), "status": status}
    if status in ("success", "bailed"):
        payload["output"] = short.get("v")
    if "r" in short:
        payload["output_ref"] = short["r"]
    if "e" in short:
        payload["error"] = StepError(**short["e"])
    if "m" in short:
        payload["message_id"] = short["m"]
    return payload


def _short_step_finish(payload: Payload, path: str) -> Payload:
    short: Payload = {"d": payload["duration"]}
    if payload["id"] != _id_of(path):
        short["i"] = payload["id"]
    if payload["attempt"] != 1:
        short["a"] = payload["attempt"]
    return short


def _long_step_finish(short: Payload, path: str) -> Payload:
    return {"id": short.get("i") or _id_of(path), "attempt": short.get("a", 1), "duration": short["d"]}


def _short_finish(payload: Payload, path: str) -> Payload:
    short = {name: value for name, value in payload.items() if value is not None}
    short.pop("suspended", None)  # written again at each suspension, it would grow with the square of those who wait
    if "result_ref" in short:
        short.pop("result", None)
    return short


def _long_finish(short: Payload, path: str) -> Payload:
    given: Payload = {"status": "", "result": None, "result_ref": None, "error": None, "suspended": {}}
    return _with_error({**given, **short, "counts": Counts(**short["counts"])})


def _short_any(payload: Payload, path: str) -> Payload:
    return {name: value for name, value in payload.items() if value is not None}


def _long_start(short: Payload, path: str) -> Payload:
    if "linked" in short:
        short = {**short, "linked": LinkedTrace(**short["linked"])}
    if "resumed" in short:
        return {**short, "resumed": Resumed(**short["resumed"])}
    if "travelled" in short:
        short = {**short, "travelled": Travelled(**short["travelled"])}
    return (
        short
        if "recovered" in short or "linked" in short
        else {"workflow_id": "", "input": None, "metadata": {}, **short}
    )


def _long_retry(short: Payload, path: str) -> Payload:
    return _with_error(dict(short))


def _long_suspended(short: Payload, path: str) -> Payload:
    return {"payload": None, "resume_type": None, **short}


def _long_waiting(short: Payload, path: str) -> Payload:
    return {"until": None, "event": None, **short}


def _long_tool_result(short: Payload, path: str) -> Payload:
    return _with_error(dict(short)) if "error" in short else {"result": None, **short}


def _long_any(short: Payload, path: str) -> Payload:
    return short


def _with_error(payload: Payload) -> Payload:
    if payload["error"] is not None:
        payload["error"] = StepError(**payload["error"])
    return payload


_Shorten = Callable[[Payload, str], Payload]
_KINDS: Sequence[tuple[str, type[Envelope], _Shorten, _Shorten]] = (
    ("start", Start, _short_any, _long_start),
    ("s", StepStart, _short_step_start, _long_step_start),
    ("call", ToolCall, _short_any, _long_any),
    ("stream", ToolCallStreamingStart, _short_any, _long_any),
    ("called", ToolResultEvent, _short_any, _long_tool_result),
    ("retry", StepRetry, _short_any, _long_retry),
    ("suspend", StepSuspended, _short_any, _long_suspended),
    ("wait", StepWaiting, _short_any, _long_waiting),
    ("r", StepResultEvent, _short_step_result, _long_step_result),
    ("f", StepFinish, _short_step_finish, _long_step_finish),
    ("finish", Finish, _short_finish, _long_finish),
)
_WRITE: Mapping[type[Envelope], tuple[str, _Shorten]] = {kind: (code, short) for code, kind, short, _ in _KINDS}
_READ: Mapping[str, tuple[type[Envelope], _Shorten]] = {code: (kind, long) for code, kind, _, long in _KINDS}


def _id_of(path: str) -> str:
    """Return the id in a path: ``nested/each[3]`` → ``each``. No id has ``/``, ``[`` or ``#`` in it."""
    name = path[path.rfind("/") + 1 :]
    return name.partition("[")[0].partition("#")[0]


def _named(entries: Sequence[Entry]) -> SpanflowError | None:
    """Find the event that cannot be written, and say which step it is of."""
    for entry in entries:
        _, shorten = _WRITE[entry.kind]
        for name, value in {**shorten(entry.payload, entry.path), "changes": entry.changes}.items():
            try:
                _text(value)
            except SpanflowError as error:
                where = f"Step {entry.path!r}" if entry.path else f"Run {entry.run.run_id!r}"
                return SpanflowError(f"{where}: its {_NAMES.get(name, name)}: {error}")
    return None


_NAMES = {"v": "value", "e": "error"}


def _text(value: Any) -> str:
    return to_json(value, READABLE)


def _too_new(what: str, version: object) -> SpanflowError:
    return SpanflowError(
        f"{what} is written in format {version!r}; this version of spanflow reads format {FORMAT}."
        " Upgrade spanflow where you read this store."
    )
