"""The parameters of a tool: their JSON schema for a model, and arguments validated against it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, NotRequired

from docstring_parser import Docstring, ParseError, parse
from pydantic import ConfigDict
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_jsonable_python
from typing_extensions import TypedDict

from spanflow.errors import DefinitionError
from spanflow.schema import CONFIG, Schema, fields_of
from spanflow.signatures import ParameterType, signature_types

_CONFIG: ConfigDict = {**CONFIG, "extra": "forbid"}
_REFUSED: Mapping[Any, str] = {
    inspect.Parameter.POSITIONAL_ONLY: "is positional-only, but a model names each argument. Remove the `/`.",
    inspect.Parameter.VAR_POSITIONAL: "has no names for a JSON schema. Take one parameter that is a list.",
    inspect.Parameter.VAR_KEYWORD: "would accept any name. Name each parameter, or take one that is a dict.",
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a tool takes, read once from its signature and docstring with ``Parameters.of(fn)``.

    ``json_schema`` is the object schema of a tool definition. A description in ``Field(description=...)`` goes before
    the docstring's. ``annotations`` keep ``Annotated`` metadata such as markers for redaction.
    """

    description: str
    json_schema: dict[str, Any]
    names: tuple[str, ...]
    annotations: Mapping[str, Any]
    _schema: Schema[dict[str, Any]]
    _defaults: Mapping[str, Any]
    _required: frozenset[str]
    _positional: tuple[str, ...]
    _signature: inspect.Signature
    _function: str
    _sole: Schema[Any] | None

    @classmethod
    def of(cls, fn: Callable[..., Any], localns: Mapping[str, Any] | None = None) -> "Parameters":
        """Read a function. Raises ``DefinitionError`` for parameters that cannot be named or have no JSON schema."""
        name = getattr(fn, "__name__", type(fn).__name__)
        types = signature_types(fn, localns).parameters
        required = frozenset(parameter.name for parameter in types if _is_required(parameter))
        for parameter in types:
            if parameter.kind in _REFUSED:
                raise DefinitionError(
                    f"The parameter {parameter.name!r} of the tool {name}() {_REFUSED[parameter.kind]}"
                )
        docstring = _parse(inspect.getdoc(fn) or "")
        fields = {parameter.name: _field(parameter) for parameter in types}
        defaults = {
            parameter.name: parameter.default
            for parameter in types
            if not parameter.required and not isinstance(parameter.default, FieldInfo)
        }
        schema: Schema[dict[str, Any]] = Schema(_typed_dict(name, fields, required))
        return cls(
            description=(docstring.description or "").strip(),
            json_schema=_json_schema(schema, fields, defaults, docstring),
            names=tuple(fields),
            annotations=MappingProxyType(fields),
            _schema=schema,
            _defaults=defaults,
            _required=required,
            _positional=tuple(parameter.name for parameter in types if parameter.positional),
            _signature=inspect.signature(fn),
            _function=name,
            _sole=Schema(fields[types[0].name]) if len(types) == 1 else None,
        )

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Check and convert arguments by name, and fill in defaults, which stay the very objects of the signature.

        Raises ``pydantic.ValidationError``, also for an unknown name.
        """
        return {**self._defaults, **self._schema.validate(arguments)}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Name the arguments of a call as Python would, without defaults. Raises Python's ``TypeError``."""
        if len(args) <= len(self._positional):
            bound = {**dict(zip(self._positional, args, strict=False)), **kwargs}
            is_unique = len(bound) == len(args) + len(kwargs)
            if is_unique and bound.keys() >= self._required and bound.keys() <= self.annotations.keys():
                return bound
        try:
            return self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self._function}(): {error}") from None

    def from_value(self, value: Any) -> dict[str, Any]:
        """Read the value that a step was given as arguments, to be validated next.

        Where there is one parameter and the value is of its type as it stands, the value is the argument, also when it
        is a mapping. Else a mapping gives the arguments by name, as does a model or dataclass with its fields; with
        one parameter only if that is the sole key. Anything else is the argument of the one parameter.
        Raises ``pydantic.ValidationError`` where there are several parameters and the value has no fields; with no
        parameter the value must be ``None`` or empty.
        """
        by_name: dict[Any, Any] = dict(value) if issubclass(type(value), Mapping) else fields_of(value)
        if self._sole is not None and (self._sole.accepts(value) or tuple(by_name) != self.names):
            return {self.names[0]: value}
        return by_name if by_name or (value is None and not self.names) else self._schema.validate(value)


def _parse(text: str) -> Docstring:
    try:
        return parse(text)
    except ParseError:
        docstring = Docstring()
        docstring.short_description = text
        return docstring


def _field(parameter: ParameterType) -> Any:
    """The annotation, with a ``Field(...)`` that stands as default moved into it."""
    if isinstance(parameter.default, FieldInfo):
        return Annotated[parameter.annotation, parameter.default]
    return parameter.annotation


def _is_required(parameter: ParameterType) -> bool:
    return parameter.default.is_required() if isinstance(parameter.default, FieldInfo) else parameter.required


def _typed_dict(name: str, fields: Mapping[str, Any], required: frozenset[str]) -> Any:
    # A TypedDict, unlike a model, takes any parameter name (`schema`, `_id`) and validates to a plain dict.
    create: Any = TypedDict
    keys = {key: field if key in required else NotRequired[field] for key, field in fields.items()}
    created = create(name, keys)
    created.__pydantic_config__ = _CONFIG
    return created


def _json_schema(
    schema: Schema[dict[str, Any]], fields: Mapping[str, Any], defaults: Mapping[str, Any], docstring: Docstring
) -> dict[str, Any]:
    try:
        written = schema.json_schema()
    except DefinitionError as error:
        raise _without_schema(fields, error) from error
    described = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in docstring.params}
    for name, property_schema in written["properties"].items():
        if "description" not in property_schema and described.get(name):
            property_schema["description"] = described[name]
        if name in defaults:
            try:
                property_schema["default"] = to_jsonable_python(defaults[name])
            except PydanticSerializationError:
                continue  # it still applies, only a model is not told
    written.pop("title", None)
    return written


def _without_schema(fields: Mapping[str, Any], error: DefinitionError) -> DefinitionError:
    for name, field in fields.items():
        try:
            Schema(field).json_schema()
        except DefinitionError as reason:
            return DefinitionError(
                f"The parameter {name!r} of a tool must have a JSON schema, so that a model can give it: {reason}"
            )
    return error
