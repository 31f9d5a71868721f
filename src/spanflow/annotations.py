"""What a type annotation says: its name, its fields, and whether one fits another."""

import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    ForwardRef,
    Literal,
    NewType,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typing_extensions import ReadOnly, TypeAliasType, TypeVarTuple, Unpack, is_protocol, is_typeddict

_UNIONS = (Union, types.UnionType)
_WRAPPERS = (Annotated, Required, NotRequired, ReadOnly, ClassVar, Final)
_ALIASES = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))
_PROMOTED: Mapping[Any, tuple[type, ...]] = {float: (int,), complex: (int, float), bytes: (bytearray, memoryview)}
_ITEMS: Mapping[Any, tuple[Any, ...]] = {str: (str,), bytes: (int,)}
_DEPTH = 16  # beyond it, recursive aliases are taken to fit


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


def is_model(annotation: Any) -> bool:
    """Whether it is a pydantic model."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def takes_fields(annotation: Any) -> bool:
    """Whether it is a dataclass or a TypedDict."""
    return isinstance(annotation, type) and (hasattr(annotation, "__dataclass_fields__") or is_typeddict(annotation))


def field_types(annotation: Any) -> dict[str, Any]:
    """Types of the fields of a model (also under their aliases), dataclass or TypedDict; empty for anything else."""
    if is_model(annotation):
        fields: dict[str, FieldInfo] = annotation.model_fields
        named = ((key, field) for name, field in fields.items() for key in (name, field.alias, field.validation_alias))
        return {key: field.annotation for key, field in named if isinstance(key, str)}
    if not takes_fields(annotation):
        return {}
    try:
        return typing.get_type_hints(annotation, include_extras=True)
    except (NameError, TypeError):  # a name known only where the class was written
        return {}


# --- does one fit another


def fits(source: Any, target: Any) -> bool:
    """Whether a value annotated ``source`` may be passed where ``target`` is annotated.

    Says what a static type checker would say, but ``False`` only when sure: what it does not know fits, containers are
    covariant, and a ``dict`` with string keys may be any ``TypedDict``.
    """
    return _fits(source, target, 0)


def _fits(source: Any, target: Any, depth: int) -> bool:
    source, target = plain(source), plain(target)
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


def plain(annotation: Any) -> Any:
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
    given, wanted = field_types(source), field_types(target)
    if not given or not source.__required_keys__ >= target.__required_keys__:
        return not given
    return all(_fits(given[key], wanted[key], depth + 1) for key in wanted.keys() & given.keys())


def _fits_tuple(source: tuple[Any, ...], target: tuple[Any, ...], depth: int) -> bool:
    if any(map(_is_unpacked, (*source, *target))):
        return True
    if target[-1:] == (Ellipsis,):
        return all(_fits(part, target[0], depth + 1) for part in source if part is not Ellipsis)
    if source[-1:] == (Ellipsis,):
        return not _known(plain(source[0]))  # tuple[Any, ...] fits any tuple, tuple[int, ...] none of fixed length
    return len(source) == len(target) and all(_fits(a, b, depth + 1) for a, b in zip(source, target, strict=True))


def _is_unpacked(part: Any) -> bool:
    return get_origin(part) is Unpack or getattr(part, "__unpacked__", False) or isinstance(part, TypeVarTuple)


def _fits_arguments(
    kind: Any, args: tuple[Any, ...] | None, wanted: Any, wanted_args: tuple[Any, ...], depth: int
) -> bool:
    """Compare type arguments where both classes use them alike."""
    if kind is tuple and args:
        args = (Union[tuple(part for part in args if part is not Ellipsis)],)  # noqa: UP007  made at run time
    elif kind is not wanted and is_model(kind):
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
