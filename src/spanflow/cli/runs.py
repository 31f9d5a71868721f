"""`spanflow runs`: the runs of a store, the newest first."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from spanflow.cli.history import iso, local
from spanflow.cli.terminal import OK, tell, write_json, write_table
from spanflow.ports import FoundRun, RunQuery, Store
from spanflow.tracing import names
from spanflow.tracing.lines import human_duration

_HEADS = ("RUN", "WORKFLOW", "STATUS", "STARTED", "DURATION", "TRACE")


async def list_runs(store: Store, query: RunQuery, meanings: Sequence[Mapping[str, Any]], *, as_json: bool) -> int:
    """Print one page of the runs that match. ``meanings`` are the readings of the metadata that was typed."""
    try:
        found = await _find(store, replace(query, limit=query.limit + 1), meanings)
    finally:
        await store.aclose()
    page, more = found[: query.limit], len(found) > query.limit
    following = page[-1].cursor if more else None
    if as_json:
        write_json({"runs": [_as_json(run) for run in page], "next": following})
        return OK
    if not page:
        tell("No runs match." if query != RunQuery(limit=query.limit) or any(meanings) else "The store has no runs.")
        return OK
    _write(page)
    if following is not None:
        tell(f"There are more: --after {following}")
    return OK


async def _find(store: Store, query: RunQuery, meanings: Sequence[Mapping[str, Any]]) -> list[FoundRun]:
    found: dict[int, FoundRun] = {}
    for meaning in meanings:
        found |= {run.cursor: run for run in await store.find(replace(query, metadata=meaning))}
    return sorted(found.values(), key=lambda run: run.cursor, reverse=True)[: query.limit]


def _write(page: Sequence[FoundRun]) -> None:
    extra = [
        (head, key)
        for head, key in (("USER", names.USER_ID), ("SESSION", names.SESSION_ID))
        if any(key in run.metadata for run in page)
    ]
    rows = [
        [
            run.run_id,
            run.workflow_id,
            run.status,
            local(run.started_at),
            human_duration(_duration(run)),
            run.trace_id or "-",
            *(str(run.metadata.get(key, "-")) for _, key in extra),
        ]
        for run in page
    ]
    write_table([*_HEADS, *(head for head, _ in extra)], rows, right=("DURATION",))


def _duration(run: FoundRun) -> int:
    """Return how long a run took, or has been there, in ns."""
    return (run.ended_at or time.time_ns()) - run.started_at


def _as_json(run: FoundRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "workflow_id": run.workflow_id,
        "status": run.status,
        "trace_id": run.trace_id,
        "started_at": iso(run.started_at),
        "ended_at": None if run.ended_at is None else iso(run.ended_at),
        "duration": _duration(run) / 1e9,
        "wakes_at": None if run.wake_at is None else iso(run.wake_at),
        "metadata": run.metadata,
        "cursor": run.cursor,
    }
