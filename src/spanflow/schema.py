"""What a type annotation means at run time: validation, JSON, names, and whether two annotations fit."""

import dataclasses
import inspect
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import partial
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    ForwardRef,
    Generic,
    Literal,
    NewType,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticUserError,
    Secret,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationError,
)
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import SchemaError
from pydantic_core import to_json as write_json
from typing_extensions import ReadOnly, TypeAliasType, TypeVarTuple, Unpack, is_protocol, is_typeddict

from spanflow.errors import DefinitionError, SpanflowError

T = TypeVar("T")

CONFIG = ConfigDict(
    arbitrary_types_allowed=True, ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings"
)
_write = partial(write_json, by_alias=False, round_trip=True, bytes_mode="base64", inf_nan_mode="strings")


class Schema(Generic[T]):
    """Validate, restore and describe the values of one annotation.

    ``validate(value)`` is pydantic's own bound method, in lax mode: one C call. It raises ``pydantic.ValidationError``.
    A plain class is checked with ``isinstance``; ``Any`` and a missing annotation check nothing.
    Bytes are base64 in JSON, except inside a model or pydantic dataclass, whose own config governs its fields.
    """

    __slots__ = ("_adapter", "annotation", "name", "validate")

    annotation: Any
    name: str
    validate: Callable[[Any], T]
    _adapter: TypeAdapter[T]

    def __init__(self, annotation: type[T] | Any) -> None:
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
        if _takes_fields(annotation) and not hasattr(annotation, "__pydantic_config__"):
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
                self.validate = self._adapter.validator.validate_python
        except (PydanticUserError, PydanticUndefinedAnnotation, SchemaError, TypeError) as error:
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


def annotation_name(annotation: Any) -> str:
    """The annotation as a person would write it: ``list[str]``, ``Answer``, ``int | None``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return annotation_name(args[0])
    if origin in _UNIONS:
        return " | ".join(map(annotation_name, args))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, args))}]"
    if origin is not None and origin is not annotation:  # Generic is its own origin
        names = ", ".join(map(annotation_name, args)) or ("()" if annotation == tuple[()] else "")
        return f"{annotation_name(origin)}[{names}]" if names else annotation_name(origin)
    if annotation is None or annotation is types.NoneType:
        return "None"
    if annotation is Ellipsis:
        return "..."
    if issubclass(type(annotation), list):  # the parameters of a Callable
        return f"[{', '.join(map(annotation_name, annotation))}]"
    if isinstance(annotation, str | ForwardRef):
        return annotation if isinstance(annotation, str) else annotation.__forward_arg__
    name: str | None = getattr(annotation, "__name__", None)
    return name or repr(annotation)


# --- JSON


def to_json(value: Any) -> str:
    """Write a value as compact JSON from which ``Schema.restore`` gives it back.

    Models are written by their runtime type, fields by name, without computed fields; NaN and infinities as strings.
    A ``SecretStr`` is written as asterisks. Raises ``SpanflowError`` with type and place of what JSON cannot hold.
    """
    try:
        return _write(value).decode()
    except (ValueError, TypeError, RecursionError) as error:
        place, culprit = _unwritable(value, "value", 0)
        raise SpanflowError(
            f"{place} of type {type(culprit).__name__} cannot be written as JSON: {error}. "
            "Use a pydantic model, a dataclass or plain data (bytes that are not text need "
            "`ser_json_bytes='base64', val_json_bytes='base64'` in their model's config), or pass live objects as deps."
        ) from error


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


# --- errors of validation in words


_SECRET = re.compile(r"pass(word|wd|phrase)|secret|token|api_?key|private_?key|credential|authorization", re.IGNORECASE)


def looks_secret(name: Any) -> bool:
    """Whether a key or field of this name is likely to hold a secret, e.g. ``api_key``."""
    return isinstance(name, str) and _SECRET.search(name.replace("-", "_")) is not None


def describe(error: ValidationError, annotation: Any = None) -> str:
    """One line per problem, at most five: ``items[2].price: Input should be a valid number (got 'abc')``.

    Values are cut to 80 characters. No value is shown under a key that looks like a secret's or, where the annotation
    that was validated is given, of a field that it types as ``SecretStr``.
    """
    problems = error.errors(include_url=False, include_context=False)
    secrets = _secret_fields(annotation)
    lines = [_problem(problem, secrets) for problem in problems[:5]]
    if len(problems) > 5:
        lines.append(f"… and {len(problems) - 5} more")
    return "\n".join(lines)


def _problem(problem: Any, secrets: frozenset[str]) -> str:
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in problem["loc"]).removeprefix(".")
    message = problem["msg"]
    if any(looks_secret(key) or key in secrets for key in problem["loc"]):
        # A validator's own words may quote the value.
        message = "is not valid" if problem["type"] in {"value_error", "assertion_error"} else message
    elif problem["type"] != "missing":  # there the input is the parent
        message += f" (got {_Shown(secrets).repr(problem['input'])})"
    return f"{path}: {message}" if path else message


class _Shown(reprlib.Repr):
    def __init__(self, secrets: frozenset[str]) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.secrets = secrets

    def repr(self, x: Any) -> str:
        text = super().repr(x)
        return text if len(text) <= 80 else f"{text[:79]}…"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        shown = {key: _Hidden() if looks_secret(key) or key in self.secrets else part for key, part in x.items()}
        return super().repr_dict(shown, level)

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, BaseModel) or dataclasses.is_dataclass(x):
            return f"{type(x).__name__} {self.repr_dict(fields_of(x), level)}"
        return super().repr_instance(x, level)


class _Hidden:
    def __repr__(self) -> str:
        return "***"


def _secret_fields(annotation: Any) -> frozenset[str]:
    """Names of the fields, at any depth of the annotation, that it types as secrets."""
    names: set[str] = set()
    parts = _nested(annotation)
    for part in parts:  # grows
        for name, field in _hints(part).items():
            inner = _nested(field)
            if any(each in (SecretStr, SecretBytes) or get_origin(each) is Secret for each in inner):
                names.add(name)
            parts += [each for each in inner if each not in parts]
    return frozenset(names)


def _nested(annotation: Any) -> list[Any]:
    parts = [_plain(annotation)]
    for part in parts:  # grows; a recursive alias ends where it meets itself
        parts += [each for each in map(_plain, get_args(part)) if each not in parts]
    return parts


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _takes_fields(annotation: Any) -> bool:
    return isinstance(annotation, type) and (hasattr(annotation, "__dataclass_fields__") or is_typeddict(annotation))


def _hints(annotation: Any) -> dict[str, Any]:
    """Types of the fields of a model (also under their aliases), dataclass or TypedDict; empty for anything else."""
    if _is_model(annotation):
        fields: dict[str, FieldInfo] = annotation.model_fields
        named = ((key, field) for name, field in fields.items() for key in (name, field.alias, field.validation_alias))
        return {key: field.annotation for key, field in named if isinstance(key, str)}
    if not _takes_fields(annotation):
        return {}
    try:
        return typing.get_type_hints(annotation, include_extras=True)
    except (NameError, TypeError):  # a name known only where the class was written
        return {}


# --- does one annotation fit another


_UNIONS = (Union, types.UnionType)
_WRAPPERS = (Annotated, Required, NotRequired, ReadOnly, ClassVar, Final)
_ALIASES = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))
_PROMOTED: Mapping[Any, tuple[type, ...]] = {float: (int,), complex: (int, float), bytes: (bytearray, memoryview)}
_ITEMS: Mapping[Any, tuple[Any, ...]] = {str: (str,), bytes: (int,)}
_DEPTH = 16  # beyond it, recursive aliases are taken to fit


def fits(source: Any, target: Any) -> bool:
    """Whether a value annotated ``source`` may be passed where ``target`` is annotated.

    Says what a static type checker would say, but ``False`` only when sure: what it does not know fits, containers are
    covariant, and a ``dict`` with string keys may be any ``TypedDict``.
    """
    return _fits(source, target, 0)


def _fits(source: Any, target: Any, depth: int) -> bool:
    source, target = _plain(source), _plain(target)
    if source is target or target is object or depth > _DEPTH or not (_known(source) and _known(target)):
        return True
    if members := _members(source):
        return all(_fits(member, target, depth + 1) for member in members)
    if members := _members(target):
        return any(_fits(source, member, depth + 1) for member in members)
    if isinstance(source, NewType):
        return _fits(source.__supertype__, target, depth + 1)
    if isinstance(target, NewType):
        return False
    if get_origin(target) is Literal:
        return _fits_literal(source, get_args(target)[0])
    if get_origin(source) is Literal:
        return _fits(type(get_args(source)[0]), target, depth + 1)
    return _fits_class(source, target, depth)


def _plain(annotation: Any) -> Any:
    """Without ``Annotated`` and the like, and with type aliases replaced by what they stand for."""
    for _ in range(_DEPTH):
        origin, args = get_origin(annotation), get_args(annotation)
        try:
            if origin in _WRAPPERS:
                annotation = args[0]
            elif isinstance(annotation, _ALIASES):
                annotation = annotation.__value__
            elif isinstance(origin, _ALIASES):
                value, given = origin.__value__, dict(zip(origin.__type_params__, args, strict=False))
                annotation = value[tuple(given[parameter] for parameter in value.__parameters__)]
            else:
                break
        except (NameError, TypeError, AttributeError, KeyError):
            return Any
    return types.NoneType if annotation is None else annotation


def _known(annotation: Any) -> bool:
    special = isinstance(annotation, NewType) or get_origin(annotation) in (*_UNIONS, Literal)
    return special or (annotation is not Any and _split(annotation) is not None)


def _members(annotation: Any) -> tuple[Any, ...]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return tuple(Literal[value] for value in args) if len(args) > 1 else ()
    return args if origin in _UNIONS else ()


def _fits_literal(source: Any, value: Any) -> bool:
    if get_origin(source) is Literal:
        (given,) = get_args(source)
        return type(given) is type(value) and given == value
    kind = source if isinstance(source, type) else object
    # A checker expands bool and enums to their members.
    return kind is type(value) and (value is None or isinstance(value, bool | Enum))


def _split(annotation: Any) -> tuple[type, tuple[Any, ...] | None] | None:
    """Class and type arguments (``None``: not given); ``None`` for what is no class."""
    metadata = getattr(annotation, "__pydantic_generic_metadata__", None)
    if metadata and metadata["origin"]:
        return metadata["origin"], metadata["args"]
    origin, args = get_origin(annotation), get_args(annotation)
    if isinstance(origin, type):
        return origin, args if args or isinstance(annotation, types.GenericAlias) else None
    return (annotation, None) if isinstance(annotation, type) else None


def _fits_class(source: Any, target: Any, depth: int) -> bool:
    split_source, split_target = _split(source), _split(target)
    if split_source is None or split_target is None:
        return True
    (kind, args), (wanted, wanted_args) = split_source, split_target
    if any(is_protocol(each) or each is _CALLABLE for each in (kind, wanted)):
        return True
    if is_typeddict(wanted):
        if is_typeddict(kind):
            return _fits_typeddict(kind, wanted, depth)
        return _fits_class(source, Mapping[str, Any], depth)
    try:
        if not issubclass(kind, (wanted, *_PROMOTED.get(wanted, ()))):
            return False
    except TypeError:
        return True
    if wanted_args is None or (wanted is tuple and (kind is not tuple or args is None)):
        return True
    if wanted is tuple:
        return _fits_tuple(args or (), wanted_args, depth)
    return _fits_arguments(kind, args, wanted, wanted_args, depth)


_CALLABLE: Any = get_origin(Callable[..., Any])


def _fits_typeddict(source: Any, target: Any, depth: int) -> bool:
    given, wanted = _hints(source), _hints(target)
    if not given or not source.__required_keys__ >= target.__required_keys__:
        return not given
    return all(_fits(given[key], wanted[key], depth + 1) for key in wanted.keys() & given.keys())


def _fits_tuple(source: tuple[Any, ...], target: tuple[Any, ...], depth: int) -> bool:
    if any(map(_is_unpacked, (*source, *target))):
        return True
    if target[-1:] == (Ellipsis,):
        return all(_fits(part, target[0], depth + 1) for part in source if part is not Ellipsis)
    if source[-1:] == (Ellipsis,):
        return not _known(_plain(source[0]))  # tuple[Any, ...] fits any tuple, tuple[int, ...] none of fixed length
    return len(source) == len(target) and all(_fits(a, b, depth + 1) for a, b in zip(source, target, strict=True))


def _is_unpacked(part: Any) -> bool:
    return get_origin(part) is Unpack or getattr(part, "__unpacked__", False) or isinstance(part, TypeVarTuple)


def _fits_arguments(
    kind: Any, args: tuple[Any, ...] | None, wanted: Any, wanted_args: tuple[Any, ...], depth: int
) -> bool:
    """Compare type arguments where both classes use them alike."""
    if kind is tuple and args:
        args = (Union[tuple(part for part in args if part is not Ellipsis)],)  # noqa: UP007  made at run time
    elif kind is not wanted and _is_model(kind):
        found = (split[1] for base in kind.__mro__ if (split := _split(base)) and split[0] is wanted)
        kind, args = wanted, next(found, None)
    elif issubclass(kind, Mapping) and args and len(wanted_args) == 1:
        args = args[:1]
    args = _ITEMS.get(kind, args)
    alike = kind is wanted or kind.__module__ in {"builtins", "collections", "collections.abc"}
    if not alike or args is None or len(args) != len(wanted_args):
        return True
    parameters = (*_type_parameters(wanted), *args)  # builtins name no parameters: theirs count as covariant
    return all(
        _fits(a, b, depth + 1) or (_may_be_contravariant(parameter) and _fits(b, a, depth + 1))
        for a, b, parameter in zip(args, wanted_args, parameters, strict=False)
    )


def _type_parameters(kind: Any) -> tuple[Any, ...]:
    metadata: dict[str, Any] = getattr(kind, "__pydantic_generic_metadata__", None) or {}
    found: tuple[Any, ...] = metadata.get("parameters") or getattr(kind, "__parameters__", None) or ()
    return found


def _may_be_contravariant(parameter: Any) -> bool:
    return isinstance(parameter, TypeVar) and (
        parameter.__contravariant__ or getattr(parameter, "__infer_variance__", False)
    )


# --- signatures


@dataclasses.dataclass(frozen=True, slots=True)
class ParameterType:
    """One parameter of a function; ``default`` is ``inspect.Parameter.empty`` where there is none."""

    name: str
    annotation: Any
    kind: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def positional(self) -> bool:
        return self.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclasses.dataclass(frozen=True, slots=True)
class SignatureTypes:
    """Parameters in order, without a bound ``self``, and the return annotation as written; ``Any`` where missing."""

    parameters: tuple[ParameterType, ...]
    returns: Any

    @property
    def positional(self) -> tuple[ParameterType, ...]:
        return tuple(parameter for parameter in self.parameters if parameter.positional)


def signature_types(fn: Callable[..., Any], localns: Mapping[str, Any] | None = None) -> SignatureTypes:
    """Resolve a function's annotations, also of local classes under ``from __future__ import annotations``.

    Names are looked up in ``localns`` (the locals of the frame that defines the function), its closure and its module.
    Raises ``DefinitionError`` for a name that is nowhere, or for what has no signature.
    """
    try:
        signature = inspect.signature(fn)
    except (ValueError, TypeError) as error:
        raise DefinitionError(f"{fn!r} has no signature to read. Wrap it in a function of your own.") from error
    hints = _resolve(fn, localns or {})
    parameters = (
        ParameterType(name, hints.get(name, Any), parameter.kind, parameter.default)
        for name, parameter in signature.parameters.items()
    )
    return SignatureTypes(tuple(parameters), hints.get("return", Any))


def _resolve(fn: Any, localns: Mapping[str, Any]) -> dict[str, Any]:
    fn = inspect.unwrap(fn.func if isinstance(fn, partial) else fn)
    if not inspect.isroutine(fn) and not isinstance(fn, type):
        fn = type(fn).__call__
    function = inspect.unwrap(getattr(fn, "__func__", fn))
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    names = dict(localns)
    for name, cell in zip(code.co_freevars if code else (), cells, strict=False):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # assigned only after this definition
            continue
    try:
        return typing.get_type_hints(function, localns=names, include_extras=True)
    except Exception as error:  # an annotation is any expression
        raise _unresolved(function, error) from error


def _unresolved(fn: Any, error: Exception) -> DefinitionError:
    missing = getattr(error, "name", None) if isinstance(error, NameError) else None
    written = {name: text for name, text in fn.__annotations__.items() if isinstance(text, str)}
    guilty = [name for name, text in written.items() if missing and re.search(rf"\b{missing}\b", text)] or list(written)
    which = ", ".join(f"`{name}: {written[name]}`" for name in guilty)
    return DefinitionError(
        f"The annotation {which} of {getattr(fn, '__name__', fn)}() cannot be resolved: {error}. "
        "Import or define its names before the function, in its module or the enclosing function, "
        "not only under `if TYPE_CHECKING:`."
    )
