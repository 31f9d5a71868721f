"""The types in a function's signature, resolved."""

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from spanflow.errors import DefinitionError


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
