"""Prepare a run that goes back to a recorded step of another one."""

from dataclasses import replace
from typing import Any

from spanflow.definition import Definition
from spanflow.engines.launch import Launch
from spanflow.engines.local import LocalEngine
from spanflow.entries import Entry
from spanflow.errors import RunConflict
from spanflow.events import Travelled
from spanflow.inputs import new_id, require_storable, validated
from spanflow.ports import RunRecord
from spanflow.state import RunState
from spanflow.tracing.roots import open_travelled
from spanflow.travel import input_schema, inputs_at, past_of, point_named


async def travel(engine: LocalEngine, definition: Definition, record: RunRecord, step: Any, input_data: Any) -> Launch:
    """Return all that it takes to run anew from a step of this run. What can be wrong is checked first.

    Raises what ``Run.time_travel`` does.
    """
    run_id, plan = record.run_id, record.plan
    seen: list[Entry] = []
    state = await engine.load_state(run_id, seen)
    if state.status == "running":
        raise RunConflict(
            f"Run {run_id!r} is running. Wait until it ends or suspends, or cancel() it, then travel.", run_id=run_id
        )
    path = point_named(step, run_id, plan, state)
    definition.check_plan(plan)
    given: dict[str, Any] = {}
    if input_data is not None:
        what = f"time_travel to {path!r}: input_data"
        given[path] = validated(input_schema(definition, plan, path), input_data, what)
        if not engine.values_are_live:
            require_storable(given[path], what)
    new_run_id, at = new_id(), engine.clock.time_ns()
    root = open_travelled(new_run_id, definition.id, record.trace, (run_id, path), at)
    start = {
        "workflow_id": definition.id,
        "input": state.input,
        "metadata": state.metadata,
        "travelled": Travelled(run_id=run_id, path=path, inputs=inputs_at(path, plan, state, given)),
    }
    new_record = replace(record, run_id=new_run_id, created_at=at, trace=root.record)
    launch = Launch(new_record, definition, root, RunState(restored=state.restored), start)
    launch.past = past_of(path, plan, state, seen, new_run_id)
    return launch
