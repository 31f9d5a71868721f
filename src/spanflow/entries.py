"""The lines of a journal: events before anybody reads them."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from spanflow.events import Changes, Envelope, Event


class RunIds:
    """The ids that all events of a stretch share. ``elsewhere``: the trace is not the one that the run began with."""

    __slots__ = ("elsewhere", "run_id", "trace_id")

    def __init__(self, run_id: str, trace_id: str | None, *, elsewhere: bool = False) -> None:
        self.run_id = run_id
        self.trace_id = trace_id
        self.elsewhere = elsewhere


class Entry:
    """A line of the journal: an event that is built only when somebody reads it.

    ``payload`` holds the fields of the payload model of ``kind``. Most runs are read by nobody while they execute, and
    a model costs more than the rest of a step's bookkeeping.
    """

    __slots__ = ("changes", "kind", "path", "payload", "run", "seq", "span_id", "timestamp")

    def __init__(
        self,
        kind: type[Envelope],
        payload: dict[str, Any],
        run: "RunIds",
        seq: int,
        timestamp: int,
        span_id: int | None,
        path: str,
        changes: dict[str, Any] | None = None,
    ) -> None:
        self.kind = kind
        self.payload = payload
        self.run = run
        self.seq = seq
        self.timestamp = timestamp
        self.span_id = span_id
        self.path = path
        self.changes = changes

    @classmethod
    def of(cls, event: Event) -> "Entry":
        """Return the line that an event was built from, with defaults where that said nothing."""
        changes = None if event.changes is None else vars(event.changes)
        span_id = None if event.span_id is None else int(event.span_id, 16)
        ids = RunIds(event.run_id, event.trace_id)
        return cls(type(event), vars(event.payload), ids, event.seq, event.timestamp, span_id, event.path, changes)

    @property
    def event(self) -> Event:
        return (_BUILDERS.get(self.kind) or _builder(self.kind))(self)


_BUILDERS: dict[type[Envelope], Callable[[Entry], Event]] = {}


def _builder(kind: type[Envelope]) -> Callable[[Entry], Event]:
    """Return how events of a kind are built of values that are ours, without validating them again.

    It does what ``model_construct`` does, with all that is the same each time looked up once: a reader pays for
    this with every event. Mutable defaults are made anew for each.
    """
    payload_kind: Any = kind.model_fields["payload"].annotation
    payload_fields: dict[str, FieldInfo] = payload_kind.model_fields
    plain = {name: field.default for name, field in payload_fields.items() if field.default_factory is None}
    made = [name for name, field in payload_fields.items() if field.default_factory is not None]
    given, with_changes = set(kind.model_fields) - {"changes"}, set(kind.model_fields)
    type_name: str = kind.model_fields["type"].default
    new: Any = object.__new__
    slots: Mapping[str, Any] = vars(BaseModel)
    set_dict, set_given = slots["__dict__"].__set__, slots["__pydantic_fields_set__"].__set__
    set_extra, set_private = slots["__pydantic_extra__"].__set__, slots["__pydantic_private__"].__set__

    def build(entry: Entry) -> Event:
        given_payload = entry.payload
        fields = plain | given_payload
        for name in made:
            if name not in given_payload:
                fields[name] = payload_fields[name].get_default(call_default_factory=True)
        payload = new(payload_kind)
        set_dict(payload, fields)
        set_given(payload, set(given_payload))
        set_extra(payload, None)
        set_private(payload, None)
        ids, span_id, changes = entry.run, entry.span_id, entry.changes
        event = new(kind)
        set_dict(
            event,
            {
                "run_id": ids.run_id,
                "seq": entry.seq,
                "timestamp": entry.timestamp,
                "trace_id": ids.trace_id,
                "span_id": None if span_id is None else span_id.to_bytes(8).hex(),
                "path": entry.path,
                "changes": None if changes is None else Changes(**changes),
                "type": type_name,
                "payload": payload,
            },
        )
        set_given(event, given if changes is None else with_changes)
        set_extra(event, None)
        set_private(event, None)
        built: Event = event
        return built

    _BUILDERS[kind] = build
    return build
