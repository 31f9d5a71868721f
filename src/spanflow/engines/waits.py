"""Wait in this process: for a time, or for an event."""

from datetime import datetime
from typing import Any

from spanflow.engines.inside import Inside
from spanflow.errors import EventTimeout, InvalidOutput
from spanflow.events import StepFinish, StepResultEvent, StepWaiting
from spanflow.failure import failure
from spanflow.interpret import Canceled, Failed, Outcome, Value
from spanflow.plan import SleepNode, WaitNode
from spanflow.ports import Message
from spanflow.tracing import names


class _Wait:
    """One wait: its events, and its span, which is made when it is over since nothing stands inside it."""

    def __init__(self, inside: Inside, id: str, path: str, span_name: str, reason: str, started_at: int) -> None:
        self._inside = inside
        self._id = id
        self._path = path
        self._span_name = span_name
        self.started_at = started_at
        self.attributes: dict[str, Any] = {names.STEP_ID: id, names.STEP_PATH: path, names.WAIT_REASON: reason}

    def begin(self, until: int | None, event: str | None) -> None:
        span_id = self._inside.scope.span_id_of(self._path, 1)
        payload = {"id": self._id, "until": until, "event": event}
        self._inside.journal.record(StepWaiting, payload, self._path, span_id, self.started_at)

    def succeed(self, value: Value, message: Message | None = None) -> None:
        payload: dict[str, Any] = {"status": "success", "output": value.data}
        if value.ref is not None:
            payload["output_ref"] = value.ref
        if message is not None:
            payload["message_id"] = message.id
        self._end(payload)

    def fail(self, error: Exception) -> Failed:
        problem = failure(error, self._path)
        self._end({"status": "failed", "error": problem}, error)
        return Failed(problem)

    def cancel(self) -> None:
        if self._inside.drive.leaving:  # whoever goes on with the run goes on waiting
            return
        self.attributes[names.STEP_STATUS] = "canceled"
        self._end({"status": "canceled"})

    def _end(self, result: dict[str, Any], error: Exception | None = None) -> None:
        inside, path, started_at, at = self._inside, self._path, self.started_at, self._inside.now()
        span_id = inside.scope.interval(self._span_name, path, 1, self.attributes, started_at, at, error)
        inside.journal.record(StepResultEvent, {"id": self._id, **result}, path, span_id, at)
        finish = {"id": self._id, "attempt": 1, "duration": (at - started_at) / 1e9}
        inside.journal.record(StepFinish, finish, path, span_id, at)
        inside.journal.flush_soon()


async def sleep(inside: Inside, node: SleepNode, path: str, value: Value) -> Outcome:
    """Wait until the time that the node, its function, or the journal says."""
    drive = inside.drive
    known = drive.state.steps.get(path)
    if known is not None and known.status == "canceled":
        return Canceled()
    if known is not None and known.completed:
        return inside.count(value)
    if known is not None and known.until is not None:
        wait, until = _Wait(inside, node.id, path, "sleep", "sleep", known.started_at), known.until
    else:
        wait = _Wait(inside, node.id, path, "sleep", "sleep", inside.now())
        found = await _wake_time(inside, node, path, value, drive.clock.wall_ns())
        if isinstance(found, Failed):
            return inside.count(found)
        until = found
        wait.begin(until, None)
    drive.announce_before(until)
    try:
        await inside.journal.flush()
        await drive.clock.sleep_until(until)
    except GeneratorExit:  # the loop is closing us
        raise
    except BaseException:
        wait.cancel()
        raise
    wait.succeed(value)
    return inside.count(value)


async def wait_for_event(inside: Inside, node: WaitNode, path: str) -> Outcome:
    """Wait for a message of the node's name, one that came before included."""
    drive = inside.drive
    schema = inside.definition.events[node.event]
    known = drive.state.steps.get(path)
    settled = None if known is None else inside.settled(known, schema)
    if settled is not None:
        return inside.count(settled)
    wait = _Wait(inside, node.id, path, f"wait {node.id}", "event", inside.now() if known is None else known.started_at)
    wait.attributes[names.EVENT_NAME] = node.event
    until = None if node.timeout is None else wait.started_at + int(node.timeout * 1e9)
    if known is None:
        wait.begin(until, node.event)
    try:
        await inside.journal.flush()
        message = drive.take(node.event) or await _arrival(inside, node.event, until)
    except TimeoutError:
        return inside.count(wait.fail(EventTimeout(node.event, path, node.timeout or 0.0)))
    except GeneratorExit:
        raise
    except BaseException:
        wait.cancel()
        raise
    payload = drive.revive(schema, message.payload)
    wait.succeed(Value(payload, None), message)
    return inside.count(Value(payload, path))


async def _arrival(inside: Inside, event: str, until: int | None) -> Message:
    """Return the message once it comes. Raises TimeoutError."""
    drive = inside.drive
    drive.announce_before(until)
    while (message := drive.take(event)) is None:
        drive.arrived.clear()
        if until is None:
            await drive.arrived.wait()
            continue
        async with drive.clock.timeout(max((until - inside.now()) / 1e9, 0.0)):
            await drive.arrived.wait()
    return message


async def _wake_time(inside: Inside, node: SleepNode, path: str, value: Value, at: int) -> int | Failed:
    """Return when a sleep ends, ns since the epoch."""
    if node.until is not None:
        return int(node.until.timestamp() * 1e9)
    if node.seconds is not None:
        return at + int(node.seconds * 1e9)
    by_seconds = f"{node.id}#seconds" in inside.definition.bindings
    told = await inside.ask(f"{path}?", f"{node.id}#{'seconds' if by_seconds else 'until'}", value)
    if isinstance(told, Failed):
        return told
    if by_seconds and isinstance(told.data, (int, float)) and 0 <= told.data < float("inf"):
        return at + int(told.data * 1e9)
    if not by_seconds and isinstance(told.data, datetime) and told.data.tzinfo is not None:
        return int(told.data.timestamp() * 1e9)
    wanted = "seconds, 0 or more and finite" if by_seconds else "a datetime with a time zone"
    error = InvalidOutput(f"The function of sleep {path!r} must return {wanted}, got {told.data!r}.")
    return Failed(failure(error, path), recorded=False)
