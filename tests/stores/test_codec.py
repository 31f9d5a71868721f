"""What durable stores write: it comes back, it is small, and what cannot come back is refused."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from spanflow import SpanflowError
from spanflow.entries import Entry, RunIds
from spanflow.events import (
    Counts,
    Envelope,
    Finish,
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
from spanflow.ports import Message
from spanflow.schema import Schema
from spanflow.stores.codec import (
    decode_batch,
    decode_message,
    decode_record,
    encode_batch,
    encode_message,
    encode_record,
)
from tests.stores.support import as_json, numbered, record, start, step, step_finish, step_result, step_start

IDS = RunIds("r1", "0af7651916cd43dd8448eb211c80319c")
ELSEWHERE = (RunIds("r1", "4bf92f3577b34da6a3ce929d0e0e4736", elsewhere=True), RunIds("r1", None, elsewhere=True))

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
mappings = st.dictionaries(texts, values, max_size=2)
ids = st.sampled_from(["a", "fetch", "price it", "größe"])
refs = st.none() | st.sampled_from(["", ":3", "a", "each[*]", "each[?]"]) | st.lists(st.sampled_from(["a", "b:1"]))
errors = st.builds(StepError, path=texts, type=texts, message=texts, traceback=texts)
counts = st.builds(
    Counts, **dict.fromkeys(["steps", "tool_calls", "retries", "spans", "spans_dropped"], st.integers(0))
)
numbers_from_1 = st.integers(1, 5)


@st.composite
def paths(draw: st.DrawFn, id: str) -> str:
    return (
        draw(st.sampled_from(["", "outer/", "loop#2/", "each[7]/"])) + id + draw(st.sampled_from(["", "[0]", "[12]"]))
    )


def payloads(kind: type[Envelope], id: str) -> st.SearchStrategy[dict[str, Any]]:
    """Payloads as the engine makes them."""
    given_id, call = st.just(id), {"tool_call_id": texts, "tool_name": texts}
    done = st.sampled_from(["success", "bailed"])
    made: dict[type[Envelope], list[tuple[dict[str, Any], dict[str, Any]]]] = {
        Start: [
            ({"workflow_id": texts, "input": values, "metadata": mappings}, {}),
            ({"workflow_id": texts, "resumed": st.builds(Resumed, path=texts, data=values)}, {}),
            (
                {
                    "workflow_id": texts,
                    "input": values,
                    "metadata": mappings,
                    "travelled": st.builds(Travelled, run_id=texts, path=texts, inputs=mappings),
                },
                {},
            ),
        ],
        StepStart: [
            (
                {"id": given_id, "attempt": numbers_from_1, "input": values, "input_ref": st.none()},
                {"foreach_index": st.integers(0), "loop_iteration": st.integers(1)},
            ),
            ({"id": given_id, "attempt": numbers_from_1, "input": st.none(), "input_ref": refs}, {}),
        ],
        StepResultEvent: [
            (
                {"id": given_id, "status": done, "output": values},
                {"message_id": texts},
            ),
            ({"id": given_id, "status": st.just("failed"), "error": errors}, {}),
            ({"id": given_id, "status": st.just("canceled")}, {}),
        ],
        StepFinish: [({"id": given_id, "attempt": numbers_from_1, "duration": st.floats(0, 1e9)}, {})],
        StepRetry: [({"id": given_id, "attempt": numbers_from_1, "error": errors, "delay": st.floats(0, 1e9)}, {})],
        StepSuspended: [({"id": given_id, "payload": values, "resume_type": st.none() | texts}, {})],
        StepWaiting: [({"id": given_id, "until": st.none() | st.integers(0), "event": st.none() | texts}, {})],
        ToolCall: [({**call, "args": mappings}, {})],
        ToolCallStreamingStart: [(call, {})],
        ToolResultEvent: [({**call, "result": values}, {}), ({**call, "error": errors}, {})],
        Finish: [
            (
                {
                    "status": st.sampled_from(["success", "suspended", "canceled"]),
                    "result": values,
                    "result_ref": st.none(),
                    "error": st.none() | errors,
                    "suspended": st.builds(dict[str, Any]),
                    "duration": st.floats(0, 1e9),
                    "counts": counts,
                },
                {},
            )
        ],
    }
    return st.one_of(*(st.fixed_dictionaries(required, optional=more) for required, more in made[kind]))


KINDS = (
    Start,
    StepStart,
    StepResultEvent,
    StepFinish,
    StepRetry,
    StepSuspended,
    StepWaiting,
    ToolCall,
    ToolCallStreamingStart,
    ToolResultEvent,
    Finish,
)
changes = st.none() | st.fixed_dictionaries({}, optional={"decisions": mappings, "state": st.just({"": {"n": 1}})})


@st.composite
def journals(draw: st.DrawFn) -> list[Entry]:
    """Events in any order, of few places, so that neighbours often share theirs."""
    first_seq = draw(st.integers(1, 10_000))
    places = [
        (id, draw(paths(id)), draw(st.none() | st.integers(0, 2**64 - 1))) for id in draw(st.lists(ids, min_size=1))
    ]
    entries: list[Entry] = []
    for number in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(KINDS))
        id, path, span_id = draw(st.sampled_from(places))
        payload = draw(payloads(kind, id))
        at = draw(st.sampled_from([5, 5, 1_700_000_000_000_000_000, 1_700_000_000_000_000_001]))
        ids_of_event = draw(st.sampled_from([IDS, IDS, *ELSEWHERE]))
        entries.append(Entry(kind, payload, ids_of_event, first_seq + number, at, span_id, path, draw(changes)))
    return entries


def read_back(entries: Sequence[Entry]) -> list[Entry]:
    return decode_batch(encode_batch(entries), IDS, entries[0].seq)


class TestEvents:
    @given(journals())
    def test_events_come_back_as_they_were(self, entries: list[Entry]) -> None:
        assert as_json(read_back(entries)) == as_json(entries)

    @given(journals(), st.data())
    def test_it_does_not_matter_how_events_are_batched(self, entries: list[Entry], data: st.DataObject) -> None:
        cut = data.draw(st.integers(0, len(entries)))
        parts = [part for part in (entries[:cut], entries[cut:]) if part]

        assert as_json([entry for part in parts for entry in read_back(part)]) == as_json(entries)

    @given(journals())
    def test_what_was_read_back_can_be_written_again(self, entries: list[Entry]) -> None:
        assert as_json(read_back(read_back(entries))) == as_json(entries)

    def test_a_value_that_is_stored_elsewhere_is_not_written_again(self) -> None:
        large = "x" * 1000
        by_reference: list[tuple[type[Envelope], str, dict[str, Any]]] = [
            (StepStart, "a", {"id": "a", "attempt": 1, "input": large, "input_ref": ""}),
            (StepResultEvent, "a", {"id": "a", "status": "success", "output": large, "output_ref": "b"}),
            (
                Finish,
                "",
                {"status": "success", "result": large, "result_ref": "a", "duration": 1.0, "counts": Counts()},
            ),
        ]

        text = encode_batch(numbered(*by_reference))

        assert len(text) < 300
        read = decode_batch(text, IDS, 1)
        assert [entry.payload.get("input_ref") for entry in read] == ["", None, None]
        assert read[2].payload["result_ref"] == "a"

    def test_the_events_of_a_step_take_little_more_than_its_value(self) -> None:
        entries = numbered(step_result("each[9998]", "x" * 200), step_finish("each[9998]"), step_start("each[9999]"))
        for entry in entries:
            entry.timestamp += 123_456_789 * entry.seq
        entries[1].timestamp = entries[0].timestamp
        entries[2].payload |= {"input_ref": ":9999", "foreach_index": 9999}

        assert len(encode_batch(entries)) < 200 + 160

    def test_what_version_1_wrote_can_always_be_read(self) -> None:
        written = (
            '[1,1700000000000000000,["start",0,{"workflow_id":"w","input":1,"metadata":{"user.id":"u-1"}},"",'
            '"b7ad6b7169203331"],["s",1000,{"r":""},"each[0]","b7ad6b7169203332"],["r",500,{"v":[2.5],"d":0.25}],'
            '["r",0,{"r":"each[*]","i":"x","d":1.0,"a":2},"each",null,{"decisions":{"b?0":true}}],'
            '["finish",7,{"status":"success","result_ref":"each","suspended":{"b":"?"},"duration":1.5,"counts":{"steps":1,'
            '"tool_calls":0,"retries":0,"spans":3,"spans_dropped":0}},"","b7ad6b7169203331"]]'
        )

        entries = decode_batch(written, IDS, 4)

        assert [(entry.kind, entry.seq, entry.path) for entry in entries] == [
            (Start, 4, ""),
            (StepStart, 5, "each[0]"),
            (StepResultEvent, 6, "each[0]"),
            (StepFinish, 7, "each[0]"),
            (StepResultEvent, 8, "each"),
            (StepFinish, 9, "each"),
            (Finish, 10, ""),
        ]
        assert [entry.timestamp - 1_700_000_000_000_000_000 for entry in entries] == [0, 1000] + [1500] * 4 + [1507]
        assert [entry.span_id for entry in entries[:5]] == [0xB7AD6B7169203331] + [0xB7AD6B7169203332] * 3 + [None]
        assert [entry.changes for entry in entries[3:6]] == [None, {"decisions": {"b?0": True}}, None]
        assert entries[3].payload == {"id": "each", "attempt": 1, "duration": 0.25}
        assert entries[4].payload == {"id": "x", "status": "success", "output": None, "output_ref": "each[*]"}
        assert entries[5].payload == {"id": "x", "attempt": 2, "duration": 1.0}
        assert entries[6].payload["counts"] == Counts(steps=1, spans=3)
        assert entries[6].payload["suspended"] == {"b": "?"}
        assert encode_batch(entries) == written.replace('"suspended":{"b":"?"},', "")


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    at: datetime


class Part(BaseModel):
    name: str = Field(alias="Name")
    points: list[Point] = []


class Whole(BaseModel):
    parts: dict[str, Part]
    colour: Colour
    price: Decimal
    id: UUID
    took: timedelta
    unique: set[int]
    pair: tuple[int, str]


class TestTypes:
    @pytest.mark.parametrize(
        ("annotation", "value"),
        [
            (int, 2**70),
            (float, float("inf")),
            (bytes, b"\x00\xff"),
            (Colour, Colour.RED),
            (tuple[int, Decimal], (1, Decimal("1.10"))),
            (dict[date, UUID], {date(2026, 1, 2): UUID(int=1)}),
            (set[int] | None, {1, 2}),
            (list[Point], [Point(1, datetime(2026, 1, 2, tzinfo=UTC))]),
            (Path, Path("a/b")),
            (
                Whole,
                Whole(
                    parts={"p": Part(Name="n", points=[Point(2, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC))])},
                    colour=Colour.RED,
                    price=Decimal("0.10"),
                    id=UUID(int=7),
                    took=timedelta(days=1, microseconds=5),
                    unique={1},
                    pair=(1, "a"),
                ),
            ),
        ],
    )
    def test_the_schema_of_a_step_gives_its_values_their_types_back(self, annotation: Any, value: Any) -> None:
        (_, result, _) = read_back(numbered(*step("a", value)))

        restored: Any = Schema(annotation).restore(result.payload["output"])

        assert restored == value
        assert type(restored) is type(value)


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


FINE: list[Any] = [nested(190), ["]" * 500, "{[" * 500], [[0]] * 1000, [{"a": [0]}] * 1000]


class TestRefusals:
    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            (object(), "value of type object"),
            ({"a": [1, object()]}, r"value\['a'\]\[1\] of type object"),
            (Point(1, object()), r"value\.at of type object"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            ("\ud800", "value of type str"),
            (nested(300), "Maximum serialization depth exceeded"),
            (nested(210), "nested more than 200 levels"),
            ([nested(210), "]" * 500], "nested more than 200 levels"),
        ],
    )
    def test_what_could_not_come_back_is_refused_with_the_step_it_is_of(self, value: Any, problem: str) -> None:
        entries = numbered(start(), *step("fine"), *step("each[3]", value))

        with pytest.raises(SpanflowError, match=rf"Step 'each\[3\]': its value: .*{problem}"):
            encode_batch(entries)

    def test_what_a_condition_or_state_holds_is_refused_with_its_step(self) -> None:
        entries = numbered(*step("a"))
        entries[1].changes = {"state": {"": {"client": object()}}}

        with pytest.raises(SpanflowError, match=r"Step 'a': its changes: value\['state'\]\[''\]\['client'\]"):
            encode_batch(entries)

    @pytest.mark.parametrize("value", FINE)
    def test_wide_values_and_texts_full_of_brackets_are_fine(self, value: list[Any]) -> None:
        assert read_back(numbered(*step("a", value)))[1].payload["output"] == value

    @pytest.mark.parametrize("field", ["initial_state", "runtime_context"])
    def test_a_run_that_could_not_be_loaded_is_refused(self, field: str) -> None:
        with pytest.raises(SpanflowError, match=rf"value\['{field}'\]\['client'\] of type object"):
            encode_record(replace(record(), **{field: {"client": object()}}))

    @pytest.mark.parametrize("text", ["", "[", "{}", "null", "[]", "[1]", '[1,5,["?",0,{}]]', '[1,5,["s"]]'])
    def test_a_damaged_batch_is_refused_by_name(self, text: str) -> None:
        with pytest.raises(SpanflowError, match="journal of run 'r1' cannot be read at event 7"):
            decode_batch(text, IDS, 7)

    def test_a_newer_batch_is_refused_by_name(self) -> None:
        with pytest.raises(SpanflowError, match=r"Event 7 of run 'r1' is written in format 2; .* reads format 1"):
            decode_batch('[2,"whatever"]', IDS, 7)

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"v":1}', '{"v":1,"trace":{},"plan":3}'])
    def test_a_damaged_record_is_refused(self, text: str) -> None:
        with pytest.raises(SpanflowError, match="record of a run cannot be read"):
            decode_record(text)

    def test_a_newer_record_is_refused_by_name(self) -> None:
        with pytest.raises(SpanflowError, match="record of run 'r1' is written in format 9"):
            decode_record('{"v":9,"run_id":"r1"}')


class TestMessages:
    @given(texts, texts, values)
    def test_messages_come_back_as_they_were(self, id: str, name: str, payload: Any) -> None:
        message = Message(id=id, name=name, payload=payload)

        assert decode_message(encode_message(message)) == message
