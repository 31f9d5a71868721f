"""What the tests of stores share: runs and events made by hand."""

from collections.abc import Sequence
from typing import Any

from spanflow.entries import Entry, RunIds
from spanflow.events import (
    Counts,
    Envelope,
    Finish,
    FinishStatus,
    Resumed,
    Start,
    StepFinish,
    StepResultEvent,
    StepStart,
    StepSuspended,
    StepWaiting,
)
from spanflow.plan import Plan, StepNode
from spanflow.ports import RunRecord, Store
from spanflow.tracing.record import TraceRecord

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CREATED_AT = 1_700_000_000_000_000_000

Part = tuple[type[Envelope], str, dict[str, Any]]
"""An event that has no number yet: kind, path, payload."""


def record(run_id: str = "r1", **fields: Any) -> RunRecord:
    given: dict[str, Any] = {
        "workflow_id": "w",
        "created_at": CREATED_AT,
        "plan": Plan(workflow_id="w", nodes=(StepNode(id="a"),)),
        "trace": TraceRecord(trace_id=TRACE_ID, span_id="b7ad6b7169203331", name="invoke_workflow w"),
        **fields,
    }
    return RunRecord(run_id=run_id, **given)


def numbered(*parts: Part, run_id: str = "r1", after: int = 0, at: int = CREATED_AT) -> list[Entry]:
    """The parts as entries of a journal that stands at ``after``, a microsecond apart."""
    ids = RunIds(run_id, TRACE_ID)
    return [
        Entry(kind, payload, ids, after + number, at + 1000 * (after + number), 0xB7AD6B7169203331 + len(path), path)
        for number, (kind, path, payload) in enumerate(parts, 1)
    ]


def _id(path: str) -> str:
    return path.rpartition("/")[2].partition("[")[0].partition("#")[0]


def start(value: Any = 1) -> Part:
    return Start, "", {"workflow_id": "w", "input": value, "metadata": {"user.id": "u-1"}}


def resumed(path: str = "a", data: Any = 7) -> Part:
    return Start, "", {"workflow_id": "w", "resumed": Resumed(path=path, data=data)}


def step_start(path: str = "a", attempt: int = 1) -> Part:
    return StepStart, path, {"id": _id(path), "attempt": attempt, "input": None, "input_ref": ""}


def step_result(path: str = "a", output: Any = 2) -> Part:
    return StepResultEvent, path, {"id": _id(path), "status": "success", "output": output}


def step_finish(path: str = "a", attempt: int = 1) -> Part:
    return StepFinish, path, {"id": _id(path), "attempt": attempt, "duration": 0.25}


def suspended(path: str = "a", payload: Any = "why?") -> Part:
    return StepSuspended, path, {"id": _id(path), "payload": payload, "resume_type": "builtins:int"}


def waiting(path: str, until: int | None, event: str | None = None) -> Part:
    return StepWaiting, path, {"id": _id(path), "until": until, "event": event}


def finish(status: FinishStatus = "success", result: Any = None) -> Part:
    payload: dict[str, Any] = {
        "status": status,
        "result": result,
        "result_ref": None,
        "error": None,
        "suspended": {},
        "duration": 1.5,
        "counts": Counts(steps=1, tool_calls=0, retries=0, spans=3, spans_dropped=0),
    }
    return Finish, "", payload


def step(path: str, output: Any = 2) -> tuple[Part, Part, Part]:
    return step_start(path), step_result(path, output), step_finish(path)


async def created(store: Store, run_id: str = "r1", *parts: Part, **fields: Any) -> int:
    """Create a run with its start and these events, and return where its journal stands."""
    entries = numbered(start(), *parts, run_id=run_id, at=fields.get("created_at", CREATED_AT))
    owner = {name: fields.pop(name) for name in ("owner", "lease_until") if name in fields}
    await store.create(record(run_id, **fields), entries, **owner)
    return len(entries)


async def appended(store: Store, after: int, *parts: Part, run_id: str = "r1", at: int = CREATED_AT) -> int:
    """Append these events, and return where the journal stands."""
    entries = numbered(*parts, run_id=run_id, after=after, at=at)
    await store.append(run_id, entries, expected_seq=after)
    return after + len(entries)


async def everything(store: Store, run_id: str = "r1") -> Sequence[Entry]:
    return await store.read(run_id, limit=1_000_000)


def as_json(entries: Sequence[Entry]) -> list[str]:
    return [entry.event.model_dump_json() for entry in entries]
