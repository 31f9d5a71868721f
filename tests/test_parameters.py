"""A tool's parameters: what a model is told, and arguments named, checked and filled in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr, ValidationError

from spanflow.errors import DefinitionError
from spanflow.parameters import Parameters


class Question(BaseModel):
    text: str


class Options(BaseModel):
    """How to search."""

    fuzzy: bool = False
    title: str = ""


class SearchInput(BaseModel):
    query: str
    limit: int = 3


@dataclass
class SearchRow:
    query: str
    limit: int


class Client:
    """A live object, which no model can send."""


async def search(query: str, limit: int = 3) -> list[str]:
    """Find passages that answer a query.

    Looks through every file.

    Args:
        query: What to find,
            in plain words.
        limit: How many at most.

    Returns:
        The passages.
    """
    return [query] * limit


def takes_text(text: str) -> None: ...


def takes_question(question: Question) -> None: ...


def takes_options(options: Options) -> None: ...


def takes_mapping(data: dict[str, Any]) -> None: ...


def takes_anything(value: Any) -> None: ...


def takes_nothing() -> None: ...


def takes_positional(a: int, /) -> None: ...


def takes_any_number(*names: str) -> None: ...


def takes_any_name(**options: int) -> None: ...


def problems(parameters: Parameters, arguments: Mapping[str, Any]) -> list[tuple[Any, str]]:
    with pytest.raises(ValidationError) as caught:
        parameters.validate(arguments)
    return [(problem["loc"], problem["type"]) for problem in caught.value.errors()]


class TestSchemaOfATool:
    def test_is_what_a_model_needs_to_call_it(self) -> None:
        parameters = Parameters.of(search)
        assert parameters.description == "Find passages that answer a query.\n\nLooks through every file."
        assert parameters.names == ("query", "limit")
        assert parameters.json_schema == {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "What to find, in plain words."},
                "limit": {"type": "integer", "description": "How many at most.", "default": 3},
            },
            "required": ["query"],
            "additionalProperties": False,
        }

    @pytest.mark.parametrize(
        "docstring",
        [
            "Find.\n\nArgs:\n    query: What to find.",
            "Find.\n\nParameters\n----------\nquery : str\n    What to find.",
            "Find.\n\n:param query: What to find.",
            "Find.\n\n@param query: What to find.",
        ],
        ids=["google", "numpy", "sphinx", "epydoc"],
    )
    def test_reads_every_style_of_docstring(self, docstring: str) -> None:
        def find(query: str) -> None: ...

        find.__doc__ = docstring
        parameters = Parameters.of(find)
        assert parameters.description == "Find."
        assert parameters.json_schema["properties"]["query"]["description"] == "What to find."

    def test_does_without_a_docstring(self) -> None:
        parameters = Parameters.of(takes_text)
        assert parameters.description == ""
        assert parameters.json_schema["properties"] == {"text": {"type": "string"}}

    def test_prefers_the_description_of_a_field(self) -> None:
        def find(
            a: Annotated[int, Field(description="from the field", ge=0)], b: int = Field(description="b!")
        ) -> None:
            """Find.

            Args:
                a: from the docstring
                b: from the docstring
            """

        schema = Parameters.of(find).json_schema
        assert schema["properties"]["a"] == {"type": "integer", "minimum": 0, "description": "from the field"}
        assert schema["properties"]["b"]["description"] == "b!"
        assert schema["required"] == ["a", "b"]

    def test_puts_models_into_defs(self) -> None:
        schema = Parameters.of(takes_options).json_schema
        assert schema["properties"]["options"] == {"$ref": "#/$defs/Options"}
        assert set(schema["$defs"]["Options"]["properties"]) == {"fuzzy", "title"}

    def test_describes_a_tool_without_parameters(self) -> None:
        assert Parameters.of(takes_nothing).json_schema == {
            "type": "object",
            "properties": {},
            "additionalProperties": False,
        }

    def test_takes_names_that_a_model_could_not_have_as_fields(self) -> None:
        def odd(schema: int, _id: int, model_config: int, copy: int) -> None: ...

        arguments = {"schema": 1, "_id": 2, "model_config": 3, "copy": 4}
        parameters = Parameters.of(odd)
        assert parameters.json_schema["required"] == list(arguments)
        assert parameters.validate(arguments) == arguments

    def test_leaves_out_a_default_that_json_cannot_hold(self) -> None:
        default = object()

        def find(mark: Any = default) -> None: ...

        parameters = Parameters.of(find)
        assert parameters.json_schema["properties"] == {"mark": {}}
        assert parameters.validate({})["mark"] is default

    def test_keeps_the_metadata_of_annotations(self) -> None:
        def login(user: Annotated[str, "redacted"], key: SecretStr) -> None: ...

        annotations = Parameters.of(login).annotations
        assert annotations == {"user": Annotated[str, "redacted"], "key": SecretStr}

    def test_resolves_local_classes(self) -> None:
        class Local(BaseModel):
            x: int

        def find(local: "Local") -> None: ...

        assert Parameters.of(find, locals()).validate({"local": {"x": 1}}) == {"local": Local(x=1)}

    @pytest.mark.parametrize(
        ("fn", "reason"),
        [
            (takes_positional, r"'a' .*takes_positional\(\) is positional-only.*Remove the `/`"),
            (takes_any_number, "'names' .* one parameter that is a list"),
            (takes_any_name, "'options' .* accept any name"),
        ],
    )
    def test_refuses_parameters_that_cannot_be_given_by_name(self, fn: Callable[..., Any], reason: str) -> None:
        with pytest.raises(DefinitionError, match=reason):
            Parameters.of(fn)

    def test_refuses_a_live_object_as_parameter_and_names_it(self) -> None:
        def find(query: str, client: Client) -> None: ...

        with pytest.raises(DefinitionError, match=r"'client' of a tool must have a JSON schema.*Client"):
            Parameters.of(find)


class TestValidate:
    def test_converts_and_fills_in_defaults(self) -> None:
        assert Parameters.of(search).validate({"query": "q"}) == {"query": "q", "limit": 3}
        assert Parameters.of(search).validate({"query": "q", "limit": "5"}) == {"query": "q", "limit": 5}

    def test_refuses_missing_wrong_and_unknown_arguments(self) -> None:
        found = problems(Parameters.of(search), {"limit": "many", "limits": 1})
        assert found == [
            (("query",), "missing"),
            (("limit",), "int_parsing"),
            (("limits",), "extra_forbidden"),
        ]

    def test_keeps_defaults_the_very_objects_of_the_signature(self) -> None:
        shared: list[int] = []

        def find(numbers: list[int] = shared, wrong: int = None) -> None: ...  # pyright: ignore[reportArgumentType]  # noqa: RUF013

        found = Parameters.of(find).validate({})
        assert found["numbers"] is shared
        assert found["wrong"] is None

    def test_makes_a_fresh_default_with_a_factory_of_a_field(self) -> None:
        fresh: Any = Field(default_factory=list[int])

        def find(numbers: list[int] = fresh, limit: int = Field(3, ge=1)) -> None: ...

        parameters = Parameters.of(find)
        assert parameters.validate({}) == {"numbers": [], "limit": 3}
        assert parameters.validate({})["numbers"] is not parameters.validate({})["numbers"]
        assert problems(parameters, {"limit": 0}) == [(("limit",), "greater_than_equal")]


def call(a: int, b: int = 2, *, c: int, d: int = 4) -> dict[str, int]:
    return {"a": a, "b": b, "c": c, "d": d}


class TestBind:
    @given(st.lists(st.integers(), max_size=3), st.dictionaries(st.sampled_from("abcdx"), st.integers()))
    def test_binds_exactly_as_python_would(self, args: list[int], kwargs: dict[str, int]) -> None:
        parameters = Parameters.of(call)
        try:
            expected = call(*args, **kwargs)
        except TypeError:
            with pytest.raises(TypeError, match=r"^call\(\): "):
                parameters.bind(tuple(args), kwargs)
        else:
            assert parameters.validate(parameters.bind(tuple(args), kwargs)) == expected

    @pytest.mark.parametrize(
        ("args", "kwargs", "message"),
        [
            ((), {}, "missing a required argument: 'query'"),
            (("q", 1, 2), {}, "too many positional arguments"),
            (("q",), {"query": "r"}, "multiple values for argument 'query'"),
            (("q",), {"limits": 1}, "got an unexpected keyword argument 'limits'"),
        ],
    )
    def test_says_what_is_wrong(self, args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(TypeError) as caught:
            Parameters.of(search).bind(args, kwargs)
        assert str(caught.value) == f"search(): {message}"

    def test_leaves_defaults_to_validation(self) -> None:
        assert Parameters.of(search).bind(("q",), {}) == {"query": "q"}

    def test_leaves_out_a_bound_self(self) -> None:
        class Shop:
            def buy(self, item: str) -> None: ...

        assert Parameters.of(Shop().buy).bind(("tea",), {}) == {"item": "tea"}


class TestFromValue:
    @pytest.mark.parametrize(
        ("fn", "value", "arguments"),
        [
            # several parameters: by name
            (search, {"query": "q", "limit": 1}, {"query": "q", "limit": 1}),
            (search, {"query": "q"}, {"query": "q"}),
            (search, SearchInput(query="q"), {"query": "q", "limit": 3}),
            (search, SearchRow("q", 1), {"query": "q", "limit": 1}),
            # one parameter: the value itself
            (takes_text, "a", {"text": "a"}),
            (takes_question, Question(text="a"), {"question": Question(text="a")}),
            (takes_question, {"text": "a"}, {"question": {"text": "a"}}),
            (takes_mapping, {"x": 1}, {"data": {"x": 1}}),
            (takes_anything, None, {"value": None}),
            # ... or by that one name
            (takes_text, {"text": "a"}, {"text": "a"}),
            (takes_text, Question(text="a"), {"text": "a"}),
            (takes_question, {"question": {"text": "a"}}, {"question": {"text": "a"}}),
            (takes_options, {"options": {"fuzzy": True}}, {"options": {"fuzzy": True}}),
            # ... unless a mapping under that name is itself of the type
            (takes_mapping, {"data": {"x": 1}}, {"data": {"data": {"x": 1}}}),
            (takes_anything, {"value": 1}, {"value": {"value": 1}}),
            # no parameter
            (takes_nothing, None, {}),
            (takes_nothing, {}, {}),
        ],
    )
    def test_reads_a_step_s_value(self, fn: Callable[..., Any], value: Any, arguments: dict[str, Any]) -> None:
        parameters = Parameters.of(fn)
        assert parameters.from_value(value) == arguments
        assert set(parameters.validate(arguments)) == set(parameters.names)

    @pytest.mark.parametrize(("fn", "value"), [(search, "q"), (search, 3), (search, {}), (takes_nothing, 3)])
    def test_refuses_a_value_that_names_no_arguments(self, fn: Callable[..., Any], value: Any) -> None:
        with pytest.raises(ValidationError):
            Parameters.of(fn).from_value(value)

    def test_leaves_unknown_names_to_validation(self) -> None:
        parameters = Parameters.of(search)
        assert problems(parameters, parameters.from_value({"query": "q", "x": 1})) == [(("x",), "extra_forbidden")]
