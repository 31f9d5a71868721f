"""Schemas: validation, JSON that comes back, errors in words, and annotations that fit."""

import json
import math
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    LiteralString,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    Union,
    cast,
)
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, computed_field, with_config
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypeAliasType, TypedDict

from spanflow.annotations import annotation_name, fits
from spanflow.errors import DefinitionError, SpanflowError
from spanflow.explain import describe
from spanflow.redaction import Redacted
from spanflow.schema import Schema, to_json
from spanflow.signatures import signature_types

T = TypeVar("T")
Consumed = TypeVar("Consumed", contravariant=True)
UserId = NewType("UserId", int)
Json = TypeAliasType("Json", "dict[str, Json] | list[Json] | str | int | None")
Pairs = TypeAliasType("Pairs", list[tuple[T, T]], type_params=(T,))


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Answer(BaseModel):
    text: str
    sources: list[str] = []


class LongAnswer(Answer):
    pages: int = 1


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")
    when: datetime
    tags: set[str]
    data: bytes
    price: Decimal
    by_number: dict[int, str]
    color: Color
    length: timedelta
    pair: tuple[int, UUID]

    @computed_field
    @property
    def count(self) -> int:
        return len(self.tags)


class Renamed(BaseModel):
    in_name: int = Field(alias="inName")
    out_name: int = Field(serialization_alias="outName")


class Box(BaseModel, Generic[T]):
    value: T


class IntBox(Box[int]):
    pass


class Sink(Generic[Consumed]):
    def put(self, value: Consumed) -> None: ...


class Point(TypedDict):
    x: int
    y: NotRequired[int]


class Point3(Point):
    z: int


class Raw(TypedDict):
    data: bytes


@dataclass
class Row:
    data: bytes
    number: int


@pydantic_dataclass
class PydanticRow:
    data: bytes
    number: int


class ModelRow(BaseModel):
    data: bytes
    number: int
    row: Row = Row(b"0", 1)


class Named(NamedTuple):
    data: bytes


class Closeable(Protocol):
    def close(self) -> None: ...


class Client:
    """A plain class that pydantic knows nothing of."""


@dataclass
class Holder:
    client: Client


unannotated: Callable[[Any], Any] = lambda value: value  # noqa: E731


class Login(BaseModel):
    user: str
    credentials: SecretStr
    pin: SecretStr = Field(default=SecretStr("0"), max_length=4)


def back(annotation: Any, value: Any) -> Any:
    return Schema[Any](annotation).restore(json.loads(to_json(value)))


def problem(annotation: Any, value: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Schema[Any](annotation).validate(value)
    return caught.value


class TestSchema:
    def test_validates_and_converts_as_pydantic_does(self) -> None:
        assert Schema(int).validate("3") == 3
        assert Schema[Any](list[Answer]).validate([{"text": "a"}]) == [Answer(text="a")]

    def test_checks_a_plain_class_with_isinstance(self) -> None:
        client = Client()
        assert Schema(Client).validate(client) is client
        assert "Client" in describe(problem(list[Client], [1]))

    def test_lets_everything_pass_for_any_and_for_no_annotation(self) -> None:
        value = object()
        empty = signature_types(unannotated).parameters[0].annotation
        assert Schema[Any](Any).validate(value) is value
        assert Schema[Any](empty).validate(value) is value

    def test_is_one_c_call_on_the_hot_path(self) -> None:
        assert type(Schema(Answer).validate).__name__ == "builtin_function_or_method"

    def test_refuses_a_type_that_pydantic_cannot_build_and_names_the_fix(self) -> None:
        @dataclass
        class Holder:
            client: Client

        with pytest.raises(DefinitionError, match=r"Holder.*Client.*arbitrary_types_allowed=True"):
            Schema(with_config(ConfigDict())(Holder))

    def test_resolves_a_forward_reference_at_the_first_value(self) -> None:
        class Early(BaseModel):
            late: "Late"

        schema = Schema(Early)

        class Late(BaseModel):
            number: int

        Early.model_rebuild(_types_namespace={"Late": Late})
        assert schema.validate({"late": {"number": 1}}).late == Late(number=1)
        assert schema.validate({"late": {"number": 2}}).late == Late(number=2)

    def test_says_so_if_a_forward_reference_never_resolves(self) -> None:
        class Broken(BaseModel):
            never: "Nowhere"  # pyright: ignore  # noqa: F821

        with pytest.raises(DefinitionError, match="Broken"):
            Schema(Broken).validate({"never": 1})

    def test_tells_a_value_of_the_type_from_one_that_needs_conversion(self) -> None:
        assert Schema(int).accepts(3)
        assert not Schema(int).accepts("3")
        assert not Schema(Answer).accepts({"text": "a"})

    def test_gives_a_json_schema_without_noise(self) -> None:
        assert Schema[Any](list[int]).json_schema() == {"type": "array", "items": {"type": "integer"}}
        assert Schema(Raw).json_schema()["properties"]["data"]["type"] == "string"
        assert Schema(Answer).json_schema()["properties"]["text"] == {"type": "string"}

    def test_refuses_a_json_schema_of_a_plain_class(self) -> None:
        with pytest.raises(DefinitionError, match="Client has no JSON schema"):
            Schema(Client).json_schema()


texts = st.text(st.characters(exclude_categories=["Cs"]))  # no lone surrogates: they are no text
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner))
moments = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-3))]))
stricts = st.builds(
    Strict,
    when=moments,
    tags=st.sets(texts),
    data=st.binary(),
    price=st.decimals(allow_nan=False, allow_infinity=False),
    by_number=st.dictionaries(st.integers(), texts),
    color=st.sampled_from(Color),
    length=st.timedeltas(min_value=timedelta(days=-999), max_value=timedelta(days=999)),
    pair=st.tuples(st.integers(), st.uuids()),
)


class TestJson:
    @given(values)
    def test_plain_values_come_back_without_a_type(self, value: Any) -> None:
        # Infinities are strings where nothing says that they are numbers.
        finite = json.loads(json.dumps(value), parse_constant=str)
        assert back(Any, value) == finite

    @given(st.lists(stricts, max_size=3))
    def test_strict_models_come_back(self, models: list[Strict]) -> None:
        assert back(list[Strict], models) == models

    @given(st.binary())
    def test_bytes_come_back_in_every_container(self, data: bytes) -> None:
        assert back(bytes, data) == data
        assert back(dict[str, list[bytes]], {"a": [data]}) == {"a": [data]}
        assert back(set[bytes], {data}) == {data}
        assert back(Raw, Raw(data=data)) == {"data": data}
        assert back(list[Raw], [Raw(data=data)]) == [{"data": data}]
        assert back(Named, Named(data)) == Named(data)
        assert back(Row, Row(data, 1)) == Row(data, 1)
        assert back(list[Row], [Row(data, 1)]) == [Row(data, 1)]

    @given(texts)
    def test_text_as_bytes_comes_back_in_a_pydantic_dataclass_and_a_model(self, text: str) -> None:
        for annotation in (PydanticRow, ModelRow):
            row = annotation(data=text.encode(), number=1)
            assert back(annotation, row) == row
            assert back(list[annotation], [row]) == [row]

    @given(st.dictionaries(st.integers(), st.frozensets(st.dates())))
    def test_keys_sets_and_dates_come_back(self, value: dict[int, frozenset[date]]) -> None:
        assert back(dict[int, frozenset[date]], value) == value

    def test_nan_and_infinities_survive_stores_that_know_only_json(self) -> None:
        assert to_json([math.nan, math.inf, -math.inf]) == '["NaN","Infinity","-Infinity"]'
        nan, inf = back(tuple[float, float], (math.nan, math.inf))
        assert math.isnan(nan)
        assert inf == math.inf

    def test_aliases_come_back(self) -> None:
        renamed = Renamed(inName=1, out_name=2)
        assert back(Renamed, renamed) == renamed

    def test_models_are_written_by_their_runtime_type(self) -> None:
        assert json.loads(to_json({"a": [LongAnswer(text="t", pages=3)]}))["a"][0]["pages"] == 3

    def test_is_compact(self) -> None:
        assert to_json({"a": [1, "é"]}) == '{"a":[1,"é"]}'

    def test_never_writes_a_secret(self) -> None:
        assert "hunter2" not in to_json(Login(user="u", credentials=SecretStr("hunter2")))

    def test_names_type_and_place_of_what_cannot_be_written(self) -> None:
        with pytest.raises(SpanflowError, match=r"value\['rows'\]\[1\] of type Client cannot be written as JSON"):
            to_json({"rows": [1, Client()]})
        with pytest.raises(SpanflowError, match=r"value\.value\.client of type Client"):
            to_json(Box[Any](value=Holder(Client())))

    def test_refuses_a_cycle(self) -> None:
        cycle: list[Any] = []
        cycle.append(cycle)
        with pytest.raises(SpanflowError, match=r"Circular reference"):
            to_json(cycle)

    def test_tells_how_to_write_bytes_that_are_not_text_in_a_model(self) -> None:
        class Blob(BaseModel):
            data: bytes

        with pytest.raises(SpanflowError, match=r"value\[0\] of type Blob .*ser_json_bytes='base64'"):
            to_json([Blob(data=b"\xff")])


class TestDescribe:
    def test_gives_path_message_and_value(self) -> None:
        text = describe(problem(list[Answer], [{"text": "a"}, {"text": 3, "sources": ["a", None]}]))
        assert text.splitlines() == [
            "[1].text: Input should be a valid string (got 3)",
            "[1].sources[1]: Input should be a valid string (got None)",
        ]

    def test_gives_only_the_message_for_the_value_itself(self) -> None:
        assert describe(problem(int, "abc")).startswith("Input should be a valid integer")
        assert describe(problem(int, "abc")).endswith("(got 'abc')")

    def test_stops_after_five_problems(self) -> None:
        lines = describe(problem(list[int], ["x"] * 8)).splitlines()
        assert len(lines) == 6
        assert lines[-1] == "… and 3 more"

    def test_cuts_long_values(self) -> None:
        for long in ("x" * 10_000, ["x" * 70] * 50, {str(key): "y" * 30 for key in range(9)}):
            assert len(describe(problem(int, long))) < 160

    def test_shows_no_value_of_a_field_that_is_missing(self) -> None:
        assert describe(problem(Answer, {"other": "private"})) == "text: Field required"

    @pytest.mark.parametrize("name", ["password", "apiKey", "X-API-Key", "client_secret", "accessToken"])
    def test_shows_no_value_under_a_key_that_looks_secret(self, name: str) -> None:
        assert "hunter2" not in describe(problem(dict[str, int], {name: "hunter2"}))
        assert "hunter2" not in describe(problem(list[int], {name: "hunter2"}))
        assert "hunter2" not in describe(problem(int, [{"inner": {name: "hunter2"}}]))

    def test_shows_no_value_of_a_secret_field_whatever_its_name(self) -> None:
        wrong = {"user": "u", "credentials": "c", "pin": "hunter2"}
        assert "hunter2" not in describe(problem(Login, wrong), Login)
        assert "hunter2" not in describe(problem(list[Login], [wrong]), list[Login])
        assert "hunter2" not in describe(problem(int, wrong), dict[str, Login] | int)

    def test_finds_secret_fields_in_recursive_and_generic_models(self) -> None:
        class Node(BaseModel):
            code: list[SecretStr] | None = Field(default=None, alias="Code")
            children: "list[Node]" = []

        wrong = {"value": {"children": [{"Code": ["hunter2", 3]}]}}
        assert describe(problem(Box[Node], wrong), Box[Node]) == (
            "value.children[0].Code[1]: Input should be a valid string"
        )

    def test_shows_no_secret_of_a_model_that_came_in_whole(self) -> None:
        class Account(BaseModel):
            password: str

        assert describe(problem(int, Account(password="hunter2"))).endswith("(got Account {'password': ***})")

    def test_shows_no_value_of_a_field_that_is_marked_as_redacted(self) -> None:
        class Card(BaseModel):
            number: Annotated[int, Redacted] = Field(alias="cardNumber")

        class Note(TypedDict):
            text: Annotated[int, Redacted]

        @dataclass
        class Key:
            door: Annotated[int, Redacted]

        for marked, name in ((Card, "cardNumber"), (Note, "text"), (Key, "door")):
            assert "hunter2" not in describe(problem(list[marked], [{name: "hunter2"}]), list[marked])
            assert "hunter2" not in describe(problem(dict[str, marked], {"a": {name: ["hunter2"]}}), dict[str, marked])
        assert describe(problem(int, Key(door=7))).endswith("(got Key {'door': ***})")

    def test_shows_no_value_of_a_parameter_that_is_marked_as_redacted(self) -> None:
        class Card(BaseModel):
            number: Annotated[int, Redacted]

        def pay(pin: Annotated[int, Redacted], card: Card) -> None: ...

        assert "hunter2" not in describe(problem(dict[str, int], {"pin": "hunter2"}), pay)
        assert "hunter2" not in describe(problem(dict[str, Card], {"card": {"number": "hunter2"}}), pay)


class TestName:
    @pytest.mark.parametrize(
        ("annotation", "name"),
        [
            (Answer, "Answer"),
            (list[str], "list[str]"),
            (int | None, "int | None"),
            (Optional[Answer], "Answer | None"),  # noqa: UP045  the old spelling
            (Annotated[str, "marked"], "str"),
            (dict[str, tuple[int, ...]], "dict[str, tuple[int, ...]]"),
            (Literal["a", 1], "Literal['a', 1]"),
            (Callable[[int], str], "Callable[[int], str]"),
            (Box[int], "Box[int]"),
            (tuple[()], "tuple[()]"),
            (None, "None"),
            (Any, "Any"),
            (UserId, "UserId"),
            (Json, "Json"),
            ("Later", "Later"),
            (type[Answer], "type[Answer]"),
        ],
    )
    def test_reads_as_a_person_would_write_it(self, annotation: Any, name: str) -> None:
        assert annotation_name(annotation) == name


FITTING: list[tuple[Any, Any]] = [
    (int, int),
    (bool, int),
    (int, float),
    (bool, float),
    (LongAnswer, Answer),
    (int, object),
    (int, Any),
    (Any, int),
    (int, int | None),
    (None, Optional[int]),  # noqa: UP045  the old spelling
    (None, type(None)),
    (int | str, Union[str, int, None]),  # noqa: UP007  the old spelling
    (Literal["a"], str),
    (Literal["a"], Literal["a", "b"]),
    (bool, Literal[True, False]),
    (Color, Literal[Color.RED, Color.BLUE]),
    (None, Literal["a", None]),
    (Annotated[int, "x"], int),
    (int, Annotated[int, Field(gt=0)]),
    (UserId, int),
    (UserId, UserId),
    (list[int], list[float]),
    (list[int], Sequence[int]),
    (list[int], list),
    (list, list[int]),
    (list[UserId], Iterable[int]),
    (tuple[int, str], tuple[float, object]),
    (tuple[int, int], tuple[int, ...]),
    (tuple[int, ...], Sequence[int]),
    (tuple[int, bool], list[int] | Sequence[int]),
    (tuple[()], tuple[int, ...]),
    (tuple[Any, ...], tuple[int, str]),
    (tuple, tuple[int, str]),
    (Named, tuple[int, str]),
    (dict[str, int], Mapping[str, float]),
    (dict[str, int], Iterable[str]),
    (set[int], Iterable[int]),
    (str, Sequence[str]),
    (int, Hashable),
    (Point3, Point),
    (Point, Mapping[str, Any]),
    (dict[str, Any], Point),
    (Client, Closeable),
    (Closeable, Client),
    (Callable[[int], str], Callable[..., Any]),
    (Box[int], Box[float]),
    (Box[int], Box),
    (Box, Box[int]),
    (IntBox, Box[int]),
    (Sink[object], Sink[int]),
    (type[LongAnswer], type[Answer]),
    (T, int),
    (int, T),
    ("Later", int),
    (int, Json),
    (Json, Json),
    (list[Json], Json),
    (list[tuple[int, int]], Pairs[int]),
]

UNFIT: list[tuple[Any, Any]] = [
    (int, str),
    (float, int),
    (Answer, LongAnswer),
    (object, int),
    (int | None, int),
    (None, int),
    (int | str, int),
    (str, Literal["a"]),
    (Literal["c"], Literal["a", "b"]),
    (Literal[1], Literal[True]),
    (Literal["a"], int),
    (Annotated[int, "x"], Annotated[str, "x"]),
    (int, UserId),
    (UserId, str),
    (list[int], list[str]),
    (list[str], Sequence[int]),
    (list[int], tuple[int, ...]),
    (str, list[str]),
    (str, Iterable[int]),
    (tuple[int, str], tuple[int]),
    (tuple[int, str], tuple[str, int]),
    (tuple[int, str], Sequence[int]),
    (tuple[int, ...], tuple[int, int]),
    (dict[str, int], dict[str, str]),
    (dict[int, int], Mapping[str, int]),
    (dict[str, Any], Answer),
    (Answer, dict[str, Any]),
    (list[dict[str, int]], list[dict[str, str]]),
    (list[int], Hashable),
    (list[int], Point),
    (Point, Point3),
    (Point, Answer),
    (Box[int], Box[str]),
    (IntBox, Box[str]),
    (Sink[int], Sink[str]),
    (type[Answer], type[Client]),
    (list[tuple[int, int]], Pairs[str]),
]


class TestFits:
    @pytest.mark.parametrize(("source", "target"), FITTING)
    def test_holds_for(self, source: Any, target: Any) -> None:
        assert fits(source, target)

    @pytest.mark.parametrize(("source", "target"), UNFIT)
    def test_fails_for(self, source: Any, target: Any) -> None:
        assert not fits(source, target)

    @pytest.mark.parametrize("odd", [Generic, LiteralString, Self, tuple, Callable, ParamSpec("P"), 3, [int], len])
    def test_passes_what_it_does_not_know(self, odd: Any) -> None:
        assert annotation_name(odd)
        assert fits(odd, odd)
        assert fits(list[odd], list[odd])

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="needs the `type` statement")
    def test_follows_recursive_aliases(self) -> None:
        names: dict[str, Any] = {}
        exec("type A = dict[str, A] | list[A] | str\ntype B = dict[str, B] | list[B] | str | None", names)
        alias, wider = names["A"], names["B"]
        assert fits(alias, wider)
        assert fits(list[dict[str, alias]], wider)
        assert not fits(wider, alias)
        assert not fits(float, wider)

    @given(st.sampled_from([pair[0] for pair in (*FITTING, *UNFIT)]))
    def test_every_type_fits_itself_any_and_object(self, annotation: Any) -> None:
        assert fits(annotation, annotation)
        assert fits(annotation, Any)
        assert fits(annotation, object)
        assert fits(annotation, Optional[annotation])  # noqa: UP045  also of a string
        assert fits(list[annotation], Sequence[annotation])

    @given(st.sampled_from([*FITTING, *UNFIT]))
    def test_a_container_fits_exactly_if_its_items_do(self, pair: tuple[Any, Any]) -> None:
        source, target = pair
        assert fits(list[source], list[target]) == fits(source, target)
        assert fits(dict[str, source], Mapping[str, target]) == fits(source, target)
        assert fits(tuple[int, source], tuple[int, target]) == fits(source, target)


class TestSignatureTypes:
    def test_reads_names_kinds_defaults_and_the_return_annotation(self) -> None:
        async def work(value: Annotated[int, "x"], ctx: str = "c", *, flag: bool = False) -> list[int]:
            return [value]

        types = signature_types(work)
        assert [(p.name, p.annotation, p.required) for p in types.positional] == [
            ("value", Annotated[int, "x"], True),
            ("ctx", str, False),
        ]
        assert [p.name for p in types.parameters] == ["value", "ctx", "flag"]
        assert types.returns == list[int]

    def test_gives_any_where_nothing_is_annotated(self) -> None:
        types = signature_types(unannotated)
        assert types.parameters[0].annotation is Any
        assert types.returns is Any

    def test_resolves_local_classes_from_the_locals_of_the_caller(self) -> None:
        class Local(BaseModel):
            x: int

        def work(value: "Local") -> "list[Local]":
            return [value]

        types = signature_types(work, locals())
        assert types.parameters[0].annotation is Local
        assert types.returns == list[Local]

    def test_resolves_local_classes_from_the_closure(self) -> None:
        class Local(BaseModel):
            x: int

        def work(value: "Local") -> None:
            Local(x=value.x)

        assert signature_types(work).parameters[0].annotation is Local

    def test_reads_methods_partials_and_callable_objects(self) -> None:
        class Worker:
            def work(self, value: int) -> str:
                return str(value)

            def __call__(self, value: float) -> bytes:
                return b""

        def add(a: int, b: str) -> str:
            return b * a

        assert [p.annotation for p in signature_types(Worker().work).parameters] == [int]
        assert [p.annotation for p in signature_types(Worker()).parameters] == [float]
        assert [p.annotation for p in signature_types(partial(add, 1)).parameters] == [str]

    def test_names_the_annotation_that_cannot_be_resolved_and_the_fix(self) -> None:
        def work(good: "int", value: "list[Nowhere]") -> None: ...  # pyright: ignore  # noqa: F821

        with pytest.raises(DefinitionError, match=r"`value: list\[Nowhere\]` of work\(\).*TYPE_CHECKING"):
            signature_types(cast(Any, work))

    def test_refuses_what_has_no_signature(self) -> None:
        with pytest.raises(DefinitionError, match="signature"):
            signature_types(dict)
