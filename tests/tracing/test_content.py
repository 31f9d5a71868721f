"""Captured content is valid JSON of bounded size, and holds no secrets."""

import json
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PostgresDsn, RootModel, SecretBytes, SecretStr, ValidationError
from typing_extensions import TypedDict

from spanflow.redaction import is_secret_key
from spanflow.tracing import content
from spanflow.tracing.content import Redacted, capture, capture_enabled, capture_from_environment, set_capture

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text().filter(lambda key: not is_secret_key(key)), inner),
    max_leaves=40,
)
any_leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=3000),  # with lone surrogates and control characters
    st.binary(),
    st.decimals(),
    st.uuids(),
    st.datetimes(),
    st.timedeltas(),
    st.builds(object),
    st.builds(ValueError, st.text()),
)
any_value = st.recursive(
    any_leaf,
    lambda inner: st.one_of(
        st.lists(inner),
        st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner),
        st.tuples(inner, inner),
        st.sets(st.integers() | st.text()),
    ),
    max_leaves=60,
)


def captured(value: object, **options: Any) -> Any:
    return json.loads(capture(value, **options))


@given(json_values)
def test_json_under_the_limit_is_captured_as_it_is(value: Any) -> None:
    if len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) <= 8192:
        assert captured(value) == value


@given(any_value, st.integers(64, 2000))
def test_anything_becomes_json_within_the_limit(value: object, limit: int) -> None:
    text = capture(value, limit=limit)
    json.loads(text)
    assert len(text.encode()) <= limit


@given(
    st.recursive(
        st.just("hunter2") | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=20,
    ),
    st.sampled_from(["password", "API-Key", "clientSecret", "X-Auth-Token", "Set-Cookie", "aws_secret_access_key"]),
    st.integers(64, 500),
)
def test_nothing_below_a_secret_key_is_shown(secret: object, key: str, limit: int) -> None:
    assert "hunter2" not in capture({"before": 1, key: secret, "after": [{key: {"deep": secret}}]}, limit=limit)


@pytest.mark.parametrize(
    "key",
    [
        *["password", "passwd", "password2", "db.password", "secret", "ssn", "jwt", "credential", "credentials"],
        *["api_key", "apikey", "API-KEY", "X-Api-Key", "client_secret", "clientSecret", "private_key", "privateKey"],
        *["auth", "auth_header", "authorization", "Proxy-Authorization", "bearer", "cookie", "Set-Cookie"],
        *["token", "access_token", "AccessToken", "access_tokens", "refresh_token", "APIToken"],
    ],
)
def test_names_of_secrets_are_known_in_any_spelling(key: str) -> None:
    assert captured({key: "x"}) == {key: "[redacted]"}


@pytest.mark.parametrize(
    "key",
    [
        *["input_tokens", "max_tokens", "total_tokens", "token_count", "gen_ai.usage.output_tokens", "token_limit"],
        *["tokens", "tokenizer", "session_id", "session.id", "user.id", "author", "authority", "secretary", "key"],
    ],
)
def test_names_that_only_look_like_secrets_pass(key: str) -> None:
    assert captured({key: "x"}) == {key: "x"}


def test_a_secret_that_is_not_set_is_shown_as_such() -> None:
    assert captured({"password": None}) == {"password": None}


def test_secret_headers_given_as_pairs_are_redacted() -> None:
    headers = [(b"host", b"example.org"), (b"authorization", b"Bearer abc")]
    assert captured(headers) == [["host", "example.org"], ["authorization", "[redacted]"]]


class Card(TypedDict):
    number: Annotated[str, Redacted]
    expires: str


class Inner(BaseModel):
    note: Annotated[str, Redacted()] | None = None
    shown: str = "shown"


class Order(BaseModel):
    id: int
    iban: Annotated[str, Redacted]
    limited: Annotated[str, Redacted, Field(min_length=1)]
    many: list[Annotated[str, Redacted]]
    pin: SecretStr
    raw: SecretBytes
    password: str
    card: Card
    cards: dict[str, list[Card]]
    inner: Inner
    hidden: str = Field(default="x", exclude=True)


def test_marked_and_secret_fields_of_models_are_redacted() -> None:
    card: Card = {"number": "4111", "expires": "12/30"}
    order = Order(
        id=1,
        iban="DE1",
        limited="DE2",
        many=["DE3"],
        pin=SecretStr("1234"),
        raw=SecretBytes(b"5678"),
        password="hunter2",
        card=card,
        cards={"main": [card]},
        inner=Inner(note="psst"),
    )
    gone = "[redacted]"
    safe_card = {"number": gone, "expires": "12/30"}
    assert captured(order) == {
        "id": 1,
        "iban": gone,
        "limited": gone,
        "many": gone,
        "pin": gone,
        "raw": gone,
        "password": gone,
        "card": safe_card,
        "cards": {"main": [safe_card]},
        "inner": {"note": gone, "shown": "shown"},
    }


@dataclass
class Person:
    name: str
    iban: Annotated[str, Redacted]


class Point(NamedTuple):
    x: int
    y: Annotated[int, Redacted]


class Names(RootModel[list[str]]):
    pass


def test_marks_work_on_dataclasses_and_named_tuples() -> None:
    assert captured(Person("Ada", "DE1")) == {"name": "Ada", "iban": "[redacted]"}
    assert captured(Point(1, 2)) == {"x": 1, "y": "[redacted]"}


def test_a_typed_dict_is_redacted_by_its_annotation() -> None:
    assert captured([{"number": "4111", "expires": "x"}], annotation=list[Card]) == [
        {"number": "[redacted]", "expires": "x"}
    ]


def test_marked_parameters_are_redacted_in_the_arguments_of_a_function() -> None:
    def pay(amount: int, iban: Annotated[str, Redacted]) -> None: ...

    assert captured({"amount": 5, "iban": "DE1"}, annotation=pay) == {"amount": 5, "iban": "[redacted]"}


def test_a_value_that_is_marked_itself_is_redacted() -> None:
    assert captured("4111", annotation=Annotated[str, Redacted]) == "[redacted]"


def test_a_mark_in_an_annotation_that_cannot_be_resolved_still_hides_the_value() -> None:
    @dataclass
    class Late:
        iban: "Annotated[Nowhere, Redacted]"  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore
        name: "str"

    assert captured(Late("DE1", "Ada")) == {"iban": "[redacted]", "name": "Ada"}


def test_the_input_quoted_by_a_validation_error_is_left_out() -> None:
    with pytest.raises(ValidationError) as caught:
        Order.model_validate({"id": "hunter2"})
    assert "hunter2" not in capture(caught.value)


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Shape(Enum):
    ROUND = ("r", 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (timedelta(seconds=90), "0:01:30"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (PurePosixPath("/a"), "/a"),
        (b"text", "text"),
        (b"\xff\xfe", "<2 bytes>"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Shape.ROUND, ["r", 1]),
        ({3, 1, 2}, [1, 2, 3]),
        (deque([1]), [1]),
        (range(3), [0, 1, 2]),
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        (ValueError("no"), {"type": "ValueError", "message": "no"}),
        ({1: "a", None: "b", Colour.RED: "c"}, {"1": "a", "null": "b", "red": "c"}),
        (object(), "<object>"),
        (len, "<builtin_function_or_method len>"),
        (int, "<class int>"),
        pytest.param(10**5000, "<integer of 16610 bits>", id="huge integer"),
        (PostgresDsn("postgres://ada:hunter2@db/x"), "postgres://ada:[redacted]@db/x"),
        (Names(["a"]), ["a"]),
    ],
)
def test_values_that_json_does_not_know_are_shown_readably(value: object, expected: object) -> None:
    assert captured(value) == expected


def test_what_contains_itself_is_shown_once() -> None:
    loop: dict[str, object] = {"name": "a"}
    loop["self"] = [loop]
    assert captured(loop) == {"name": "a", "self": ["<dict that contains itself>"]}


def test_the_same_value_twice_is_no_cycle() -> None:
    shared = {"a": 1}
    assert captured([shared, shared]) == [{"a": 1}, {"a": 1}]


class Hostile(Mapping[str, object]):
    def __getitem__(self, key: str) -> object:
        raise RuntimeError("no")

    def __iter__(self) -> Iterator[str]:
        yield "a"
        raise RuntimeError("no")

    def __len__(self) -> int:
        return 2

    def __repr__(self) -> str:
        raise RuntimeError("no")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_values_that_raise_when_read_leave_the_rest_readable() -> None:
    assert captured({"before": 1, "bad": Hostile(), "after": 2}) == {"before": 1, "bad": {"…": "+2 more"}, "after": 2}
    assert captured([Unprintable()]) == [{"type": "Unprintable", "…": "+1 more"}]


def test_long_strings_are_shortened_with_a_visible_mark() -> None:
    text = captured("x" * 9000, limit=1000)
    assert text == "x" * 972 + "…[+8028 chars]"


def test_long_lists_end_with_the_number_of_items_left_out() -> None:
    assert captured(list(range(1000)), limit=64) == [*range(15), "…+985 more"]


def test_small_entries_stay_whole_beside_a_large_one() -> None:
    shown = captured({"big": "x" * 50_000, "small": 1, "other": "abc"}, limit=500)
    assert shown["small"] == 1
    assert shown["other"] == "abc"
    assert shown["big"].startswith("x" * 300)


def test_every_item_that_is_shown_of_a_list_can_be_read() -> None:
    shown = captured([{"role": "user", "content": "x" * 5000}] * 100, limit=2000)
    assert all(item["content"].startswith("x" * 50) for item in shown[:-1])
    assert len(shown) > 5


def test_a_text_of_wide_characters_is_cut_between_characters() -> None:
    assert captured("ä😀" * 500, limit=100).startswith("ä😀ä😀")


def test_deep_nesting_is_summarised() -> None:
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    text = capture(deep)
    assert text.endswith('["…+1 more"]' + "]" * 64)


def test_long_keys_are_shortened() -> None:
    text = capture({"k" * 5000: 1, "b": 2}, limit=200)
    assert json.loads(text)["b"] == 2


def test_half_a_surrogate_pair_survives_as_an_escape() -> None:
    assert capture("\ud800") == '"\\ud800"'


def test_only_as_much_of_a_huge_value_is_read_as_can_be_shown() -> None:
    class Huge(Mapping[str, object]):
        read = 0

        def __getitem__(self, key: str) -> object:
            self.read += 1
            return "x" * 100

        def __iter__(self) -> Iterator[str]:
            return (str(i) for i in range(10**9))

        def __len__(self) -> int:
            return 10**9

    huge = Huge()
    assert captured(huge)["…"].endswith(" more")
    assert huge.read < 1000


def test_a_large_list_costs_little() -> None:
    large = ["x" * 50] * 1_000_000
    before = time.thread_time()
    capture(large)
    assert time.thread_time() - before < 0.5


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.delenv(VARIABLE, raising=False)
    content._meaning.cache_clear()  # pyright: ignore[reportPrivateUsage]
    set_capture(None)
    yield monkeypatch
    set_capture(None)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("SPAN_ONLY", True),
        ("span_and_event", True),
        ("true", True),
        ("1", True),
        ("NO_CONTENT", False),
        ("EVENT_ONLY", False),
        ("", False),
        ("false", False),
        ("0", False),
    ],
)
def test_the_environment_turns_capture_on(environment: pytest.MonkeyPatch, text: str, meaning: bool) -> None:
    environment.setenv(VARIABLE, text)
    assert capture_from_environment() is meaning


def test_nothing_is_captured_unless_asked_for(environment: pytest.MonkeyPatch) -> None:
    assert capture_enabled() is False


def test_an_unknown_value_means_no_capture_and_is_warned_of_once(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setenv(VARIABLE, "YES_PLEASE")
    with caplog.at_level(logging.WARNING):
        assert [capture_from_environment() for _ in range(3)] == [False] * 3
    assert len(caplog.records) == 1
    assert "YES_PLEASE" in caplog.text
    assert "SPAN_ONLY" in caplog.text


def test_an_explicit_setting_wins_over_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(VARIABLE, "SPAN_ONLY")
    set_capture(False)
    assert capture_enabled() is False
    set_capture(None)
    assert capture_enabled() is True
