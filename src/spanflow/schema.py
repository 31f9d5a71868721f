"""What a type annotation means at run time: validate values of it, write them as JSON and read them back."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import SchemaError, from_json
from pydantic_core import to_json as write_json
from typing_extensions import TypeAliasType

from spanflow.annotations import annotation_name, takes_fields
from spanflow.errors import DefinitionError, SpanflowError

T = TypeVar("T")

READABLE = 200
"""Levels of nesting that pydantic's reader follows. Its writer goes further."""
DEEPEST = 180
"""Levels that a value may be nested: less, for it is stored inside of others."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

CONFIG = ConfigDict(
    arbitrary_types_allowed=True, ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings"
)
_write = partial(write_json, by_alias=False, round_trip=True, bytes_mode="base64", inf_nan_mode="strings")


class Schema(Generic[T]):
    """Validate, restore and describe the values of one annotation.

    ``validate(value)`` is pydantic's own bound method, in lax mode: one C call. It raises ``pydantic.ValidationError``.
    A plain class is checked with ``isinstance``; ``Any`` and a missing annotation check nothing.
    Bytes are base64 in JSON, except inside a model or pydantic dataclass, whose own config governs its fields.

    With ``by_name`` the fields of a model may be given by their names also where they have aliases.
    """

    __slots__ = ("_adapter", "_by_name", "annotation", "name", "validate")

    annotation: Any
    name: str
    validate: Callable[[Any], T]
    _adapter: TypeAdapter[T]

    def __init__(self, annotation: type[T] | Any, *, by_name: bool = False) -> None:
        self._by_name = by_name
        self.annotation = Any if annotation is inspect.Parameter.empty else annotation
        self.name = annotation_name(self.annotation)
        self._build()
        if not self._adapter.pydantic_complete:
            # A forward reference to a class that the module defines further down: complete at the first value.
            self.validate = self._validate_first

    def accepts(self, value: Any) -> bool:
        """Whether the value is of this type as it stands: validation would leave it as it is."""
        try:
            checked: Any = self._complete().validator.validate_python(value, strict=True)
        except ValidationError:
            return False
        return checked is value or (type(checked) is type(value) and bool(checked == value))

    def restore(self, value: Any) -> T:
        """Give back the typed value that ``to_json`` wrote, from its parsed JSON.

        Raises ``pydantic.ValidationError`` where the annotation has changed since and the value no longer fits.
        """
        restored: T = self._complete().validator.validate_json(_write(value), by_alias=True, by_name=True)
        return restored

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema (draft 2020-12) of values that ``validate`` accepts."""
        try:
            return self._complete().json_schema(schema_generator=_JsonSchema)
        except PydanticUserError as error:
            raise DefinitionError(
                f"{self.name} has no JSON schema: {error.message}. Use a pydantic model, a dataclass or plain data."
            ) from error

    def _build(self) -> None:
        annotation = self.annotation
        if takes_fields(annotation) and not hasattr(annotation, "__pydantic_config__"):
            # Pydantic takes no config for a bare TypedDict or dataclass, but does for an alias of one.
            alias: Any = TypeAliasType
            annotation = alias(annotation.__name__, annotation)
        try:
            try:
                self._adapter = TypeAdapter(annotation, config=CONFIG)
            except PydanticUserError as error:
                if error.code != "type-adapter-config-unused":
                    raise
                self._adapter = TypeAdapter(annotation)
            if self._adapter.pydantic_complete:
                validate = self._adapter.validator.validate_python
                self.validate = partial(validate, by_alias=True, by_name=True) if self._by_name else validate
        except (PydanticUserError, PydanticUndefinedAnnotation, SchemaError, TypeError, SyntaxError) as error:
            raise DefinitionError(
                f"pydantic cannot handle the type {self.name}: {str(error).splitlines()[0].rstrip('.')}. "
                "Give the model that holds it `model_config = ConfigDict(arbitrary_types_allowed=True)`, "
                "or pass live objects such as clients as deps."
            ) from error

    def _complete(self) -> TypeAdapter[T]:
        if not self._adapter.pydantic_complete:
            self._build()
        if not self._adapter.pydantic_complete:
            raise DefinitionError(
                f"The type {self.name} refers to a name that is not defined. Define or import that name in the module "
                "of the type (not only under `if TYPE_CHECKING:`) before the first run."
            )
        return self._adapter

    def _validate_first(self, value: Any) -> T:
        self._complete()
        return self.validate(value)


class _JsonSchema(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # "Limit" for `limit` says nothing


def to_json(value: Any, deepest: int = DEEPEST) -> str:
    """Write a value as compact JSON from which ``Schema.restore`` gives it back.

    Models are written by their runtime type, fields by name, without computed fields; NaN and infinities as strings.
    A ``SecretStr`` is written as asterisks. Raises ``SpanflowError`` with type and place of what JSON cannot hold, and
    where it is nested more than ``deepest`` levels.
    """
    try:
        text = _write(value).decode()
    except (ValueError, TypeError, RecursionError) as error:
        place, culprit = _unwritable(value, "value", 0)
        raise SpanflowError(
            f"{place} of type {type(culprit).__name__} cannot be written as JSON: {error}. "
            "Use a pydantic model, a dataclass or plain data (bytes that are not text need "
            "`ser_json_bytes='base64', val_json_bytes='base64'` in their model's config), or pass live objects as deps."
        ) from error
    if len(text) > 2 * deepest and text.count("[") + text.count("{") > deepest and _is_deeper(text, deepest):
        raise SpanflowError(
            f"A value nested more than {deepest} levels deep can be written as JSON, but not be read again."
            " Make it flatter, or write it as a text."
        )
    return text


def _is_deeper(text: str, deepest: int) -> bool:
    brackets = text.encode().translate(None, delete=_NO_BRACKETS)
    for _ in range(deepest // 2):  # each time a level or two less
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    try:  # there are brackets in its texts, or it is deep indeed: only reading it can tell
        from_json("[" * (READABLE - deepest) + text + "]" * (READABLE - deepest))
    except ValueError:
        return True
    return False


def _unwritable(value: Any, place: str, depth: int) -> tuple[str, Any]:
    for key, part in _parts(value):
        if depth < 20 and not _writable(part):
            return _unwritable(part, place + key, depth + 1)
    return place, value


def _writable(value: Any) -> bool:
    try:
        _write(value)
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if issubclass(type(value), Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif issubclass(type(value), list | tuple | set | frozenset):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    else:
        yield from ((f".{name}", part) for name, part in fields_of(value).items())


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a model or dataclass instance with their values, not converted; empty for anything else."""
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields} | (value.model_extra or {})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {}
