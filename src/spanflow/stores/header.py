"""What a store keeps beside the journal to find runs by: the same for all stores, so it is decided here."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spanflow.entries import Entry
from spanflow.events import Finish, RunStatus, Start, StepResultEvent, StepWaiting
from spanflow.ports import RunRecord
from spanflow.schema import to_json
from spanflow.tracing.metadata import as_json


class HeaderChange(NamedTuple):
    """What a batch of events says of the whole run.

    Attributes:
        status: the new one, None where it stays.
        at: when, ns since the epoch; a time to wake at that lies before this is over.
        ended_at: when the run ended, None where it has not.
        wake_at: the earliest time that a step of this batch waits for.
        releases: whether the run has no owner any more: it ended or suspended.
        trace_id: of a trace that the run begins besides its first.
    """

    status: RunStatus | None
    at: int
    ended_at: int | None
    wake_at: int | None
    releases: bool
    trace_id: str | None = None


def header_change(entries: Sequence[Entry]) -> HeaderChange | None:
    """Return what a batch changes in the header of its run; None for the many that change nothing."""
    for entry in entries:
        kind = entry.kind
        if kind is Start or kind is Finish or kind is StepWaiting:
            return _change(entries)
    return None


def _change(entries: Sequence[Entry]) -> HeaderChange | None:
    change = _change_of_status(entries)
    linked = entries[0].payload.get("linked") if entries[0].kind is Start else None
    return change if change is None or linked is None else change._replace(trace_id=linked.trace_id)


def _change_of_status(entries: Sequence[Entry]) -> HeaderChange | None:
    last = entries[-1]
    if last.kind is Finish:
        status: RunStatus = last.payload["status"]
        if status == "suspended":
            return HeaderChange(status, last.timestamp, None, _wake_at(entries), True)
        return HeaderChange(status, last.timestamp, last.timestamp, None, True)
    if entries[0].kind is Start:
        return HeaderChange("running", last.timestamp, None, _wake_at(entries), False)
    for entry in entries:
        if entry.kind is StepWaiting:
            wake_at = _wake_at(entries)
            return None if wake_at is None else HeaderChange(None, last.timestamp, None, wake_at, False)
    return None


def earliest(known: int | None, change: HeaderChange) -> int | None:
    """Return when a run wants to be woken, after a change."""
    if change.ended_at is not None:
        return None
    if known is None or known <= change.at:
        return change.wake_at
    return known if change.wake_at is None else min(known, change.wake_at)


def within_int64(number: int) -> int:
    """Return the nearest number that a database can hold: the year 9999 is beyond, in ns since the epoch."""
    return max(-(2**63), min(number, 2**63 - 1))


def metadata_of(record: RunRecord) -> dict[str, Any]:
    """Return what a run is found by, as JSON holds it: the attributes of its root span, and its metadata."""
    return as_json({**record.trace.attributes, **record.trace.metadata})


def labels(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return metadata as text to compare: key → JSON of the value."""
    return {key: to_json(value) for key, value in as_json(metadata).items()}


def _wake_at(entries: Sequence[Entry]) -> int | None:
    waits: dict[str, int] = {}
    for entry in entries:
        if entry.kind is StepWaiting:
            until: int | None = entry.payload["until"]
            if until is not None:
                waits[entry.path] = until
        elif entry.kind is StepResultEvent:  # it is over already
            waits.pop(entry.path, None)
    return within_int64(min(waits.values())) if waits else None
