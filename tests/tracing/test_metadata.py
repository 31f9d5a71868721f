"""Metadata of any shape becomes legal span attributes that never shadow our own."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from spanflow.tracing.metadata import flatten

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=30,
)


def is_legal(value: object) -> bool:
    if isinstance(value, tuple):
        items = cast(Sequence[object], value)
        return len({type(item) for item in items}) <= 1 and all(map(is_legal, items))
    if isinstance(value, str):
        return len(value.encode()) <= 1024  # raises where UTF-8 cannot carry it
    return type(value) in (bool, float) or (type(value) is int and -(2**63) <= value < 2**63)


@given(st.dictionaries(st.text(st.characters()) | st.integers() | st.none(), json_values))
def test_any_json_becomes_legal_attributes(metadata: dict[Any, Any]) -> None:
    attributes = flatten(metadata)
    assert len(attributes) <= 64
    for key, value in attributes.items():
        assert key
        assert len(key) <= 256
        assert is_legal(value), (key, value)
        assert not key.startswith(("gen_ai.", "spanflow.", "otel."))


def test_primitives_are_kept_as_given() -> None:
    metadata = {"user.id": "u-42", "beta": True, "retries": 3, "score": 0.5, "ids": [1, 2], "names": ["a"]}
    assert flatten(metadata) == {
        "user.id": "u-42",
        "beta": True,
        "retries": 3,
        "score": 0.5,
        "ids": (1, 2),
        "names": ("a",),
    }


def test_no_metadata_gives_no_attributes() -> None:
    assert flatten(None) == {}
    assert flatten({}) == {}


def test_nested_mappings_are_flattened_with_dots() -> None:
    assert flatten({"feature_flag": {"ranker": "v2", "deep": {"x": 1}}}) == {
        "feature_flag.ranker": "v2",
        "feature_flag.deep.x": 1,
    }


def test_none_is_dropped() -> None:
    assert flatten({"a": None, "b": {"c": None}}) == {}


def test_mixed_and_nested_lists_become_json() -> None:
    metadata: dict[str, Any] = {
        "mixed": [1, "a"],
        "none": [None, 1],
        "objects": [{"a": 1}],
        "flag": [True, 1],
        "empty": {},
    }
    assert flatten(metadata) == {
        "mixed": '[1,"a"]',
        "none": "[null,1]",
        "objects": '[{"a":1}]',
        "flag": "[true,1]",
        "empty": "{}",
    }


def test_other_values_become_text() -> None:
    class Point(BaseModel):
        x: int

    at = datetime(2026, 1, 2, tzinfo=UTC)
    assert flatten({"at": at, "point": Point(x=1), "big": 2**64, "raw": b"ab"}) == {
        "at": "2026-01-02T00:00:00+00:00",
        "point": '{"x":1}',
        "big": "18446744073709551616",
        "raw": "ab",
    }


def test_keys_that_are_no_strings_are_written_as_text() -> None:
    metadata: dict[Any, Any] = {1: "a", None: "b", (1, 2): "c"}
    assert flatten(metadata) == {"1": "a", "null": "b", "[1,2]": "c"}


@pytest.mark.parametrize("key", ["gen_ai.operation.name", "spanflow.run.id", "otel.status_code", "error.type"])
def test_reserved_keys_are_kept_under_a_prefix(key: str) -> None:
    assert flatten({key: "mine"}) == {f"metadata.{key}": "mine"}


def test_reserved_keys_are_found_when_nested_too() -> None:
    assert flatten({"error": {"type": "x", "code": 1}}) == {"metadata.error.type": "x", "error.code": 1}


def test_what_is_reserved_can_be_chosen() -> None:
    assert flatten({"user.id": "u", "error.type": "x"}, reserved=lambda key: key == "user.id") == {
        "metadata.user.id": "u",
        "error.type": "x",
    }


def test_of_colliding_keys_the_first_keeps_its_name() -> None:
    assert flatten({"a.b": 1, "a": {"b": 2}, "metadata.error.type": 3, "error.type": 4}) == {
        "a.b": 1,
        "a.b#2": 2,
        "metadata.error.type": 3,
        "metadata.error.type#2": 4,
    }


def test_an_empty_key_is_kept_under_a_name() -> None:
    assert flatten({"": 1}) == {"metadata.": 1}


def test_secrets_are_redacted_by_key_and_type() -> None:
    metadata = {"api_key": "x", "auth": {"user": "x"}, "pin": SecretStr("x"), "input_tokens": 3, "session.id": "s"}
    assert flatten(metadata) == {
        "api_key": "[redacted]",
        "auth": "[redacted]",
        "pin": "[redacted]",
        "input_tokens": 3,
        "session.id": "s",
    }


def test_more_than_64_keys_are_cut_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        attributes = flatten({f"k{i}": "x" * 5000 for i in range(100)})
    assert list(attributes) == [f"k{i}" for i in range(64)]
    assert len(caplog.records) == 1
    assert "64 keys" in caplog.text


def test_long_texts_and_keys_are_cut_visibly() -> None:
    attributes = flatten({"k" * 300: "ä" * 2000, "k" * 301: 1})
    (first, text), (second, _) = attributes.items()
    assert first == "k" * 255 + "…"
    assert second == "k" * 254 + "#2"
    assert isinstance(text, str)
    assert text.endswith(" chars]")
    assert len(text.encode()) <= 1024


def test_a_mapping_that_contains_itself_ends(caplog: pytest.LogCaptureFixture) -> None:
    loop: dict[str, Any] = {"a": 1}
    loop["self"] = loop
    assert flatten(loop)["self.self.a"] == 1


def test_nothing_that_cannot_be_read_raises(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Mapping[str, object]):
        def __getitem__(self, key: str) -> object:
            raise RuntimeError("no")

        def __iter__(self) -> Iterator[str]:
            return iter("ab")

        def __len__(self) -> int:
            return 2

    broken: Any = [1, 2]
    assert flatten({"first": 1, "broken": Broken()}) == {"first": 1}
    assert flatten(broken) == {}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
