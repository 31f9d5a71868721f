"""Whether a body fits where it is put: what it takes against what comes in."""

import types
from collections.abc import Iterable, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from spanflow.annotations import annotation_name, fits, plain
from spanflow.parameters import Parameters


def misfit(given: Any, target: Any, parameters: Parameters | None) -> str | None:
    """Say what is wrong with a value annotated ``given`` for what takes ``target``, or these parameters of a tool.

    None where it may fit.
    """
    if parameters is not None:
        return _tool_misfit(given, parameters)
    return None if fits(given, target) else f"takes {annotation_name(target)}"


def item_of(annotation: Any) -> Any:
    """Return the annotation of a list's items, Any where it is unknown, None where it is no list."""
    annotation = plain(annotation)
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (Union, types.UnionType):
        items = [item_of(each) for each in arguments]
        return None if None in items else either(items)
    if annotation is Any or not isinstance(origin, type):
        return Any
    if not issubclass(origin, Sequence) or issubclass(origin, (str, bytes, bytearray)):
        return None
    if not arguments:
        return Any
    if issubclass(origin, tuple):
        return either(each for each in arguments if each is not ...)
    return arguments[0]


def either(annotations: Iterable[Any]) -> Any:
    """Return the union of annotations."""
    return Union[tuple(annotations)]  # noqa: UP007  # made at run time


def _tool_misfit(given: Any, parameters: Parameters) -> str | None:
    """Say what a tool lacks when its arguments are taken from a value of this type."""
    if not (isinstance(given, type) and issubclass(given, (BaseModel, int, float, str, bytes))):
        return None
    names: tuple[str, ...] = parameters.names
    if len(names) == 1 and fits(given, parameters.annotations[names[0]]):
        return None
    required = list(parameters.json_schema.get("required", ()))
    has = given.model_fields if issubclass(given, BaseModel) else {}
    missing = [name for name in required if name not in has]
    return f"needs {', '.join(missing)}" if missing else None
