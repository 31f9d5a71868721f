"""The cases: each the same work twice, by hand and as a workflow."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from opentelemetry.trace import Tracer

from benchmarks.floor import Floor, Maker, V, add_one, plain_event, typed_event
from spanflow import Workflow, step

Once = Callable[[], Awaitable[object]]

_ZERO = V(v=0)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table. ``floor`` and ``spanflow`` each execute one run of ``steps`` steps."""

    name: str
    title: str
    steps: int
    floor: Once
    spanflow: Once


NAMES = ("sequential10", "sequential100", "parallel100", "foreach1000", "stream10", "stream10-dicts")


def cases(tracer: Tracer) -> dict[str, Case]:
    """Return all cases by name; ``tracer`` is the floor's."""
    floor = Floor(tracer, add_one)
    made = [_sequential(floor, 10), _sequential(floor, 100), _parallel(floor, 100), _foreach(floor)]
    made += [_stream(floor, 10, typed_event, ""), _stream(floor, 10, plain_event, "-dicts")]
    return {case.name: case for case in made}


def sequence(length: int) -> Workflow[V, V]:
    """Return a workflow of that many steps, one after the other."""
    workflow = Workflow("floor", input=V)
    for id in _ids(length):
        workflow = workflow.then(step(id=id)(add_one))
    return workflow


def _sequential(floor: Floor, length: int) -> Case:
    workflow, ids = sequence(length), _ids(length)

    async def by_hand() -> object:
        return await floor.sequential(_ZERO, ids)

    return Case(f"sequential{length}", f"{length} sequential steps", length, by_hand, lambda: _result(workflow, _ZERO))


def _parallel(floor: Floor, width: int) -> Case:
    ids = _ids(width)
    workflow: Workflow[V, Any] = Workflow("floor", input=V).parallel(*[step(id=id)(add_one) for id in ids])

    async def by_hand() -> object:
        return await floor.parallel(_ZERO, ids)

    return Case(f"parallel{width}", f"{width} parallel steps", width, by_hand, lambda: _result(workflow, _ZERO))


def _foreach(floor: Floor, length: int = 1000, concurrency: int = 10) -> Case:
    values = [V(v=number) for number in range(length)]
    workflow = Workflow("floor", input=list[V]).foreach(step(id="item")(add_one), concurrency=concurrency)

    async def by_hand() -> object:
        return await floor.foreach(values, "item", concurrency)

    return Case(
        f"foreach{length}",
        f"foreach {length}, {concurrency} at a time",
        length,
        by_hand,
        lambda: _result(workflow, values),
    )


def _stream(floor: Floor, length: int, make: Maker, suffix: str) -> Case:
    workflow, ids = sequence(length), _ids(length)

    async def by_hand() -> object:
        last: Any = None
        async for event in floor.stream(_ZERO, ids, make):
            last = event
        return last["payload"] if isinstance(last, dict) else last.payload

    async def streamed() -> object:
        run = await workflow.create_run()
        stream = await run.stream(_ZERO)
        async for _ in stream:
            pass
        return (await stream.get_workflow_state()).unwrap()

    title = f"stream of {length} steps" + (", floor: dicts" if suffix else "")
    return Case(f"stream{length}{suffix}", title, length, by_hand, streamed)


async def _result(workflow: Workflow[Any, Any], value: object) -> object:
    run = await workflow.create_run()
    return (await run.start(value)).unwrap()


def _ids(length: int) -> list[str]:
    return [f"s{number}" for number in range(length)]
