"""A failed validation in words."""

import dataclasses
import inspect
import reprlib
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Secret, SecretBytes, SecretStr, ValidationError

from spanflow.annotations import field_types, plain
from spanflow.redaction import is_secret_key, marked_fields, marked_keys
from spanflow.schema import fields_of


def describe(error: ValidationError, annotation: Any = None) -> str:
    """One line per problem, at most five: ``items[2].price: Input should be a valid number (got 'abc')``.

    Values are cut to 80 characters. No value is shown under a key that looks like a secret's or, where the annotation
    that was validated is given, of a field that it types as ``SecretStr`` or marks as ``Redacted``.
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
    if any(_is_secret(key, secrets) for key in problem["loc"]):
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
        shown = {key: _Hidden() if _is_secret(key, self.secrets) else part for key, part in x.items()}
        return super().repr_dict(shown, level)

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, BaseModel) or dataclasses.is_dataclass(x):
            hidden = marked_fields(type(x))
            shown = {name: _Hidden() if name in hidden else part for name, part in fields_of(x).items()}
            return f"{type(x).__name__} {self.repr_dict(shown, level)}"
        return super().repr_instance(x, level)


class _Hidden:
    def __repr__(self) -> str:
        return "***"


def _is_secret(key: Any, secrets: frozenset[str]) -> bool:
    return isinstance(key, str) and (key in secrets or is_secret_key(key))


def _secret_fields(annotation: Any) -> frozenset[str]:
    """Names of the fields, at any depth of the annotation, that it types or marks as secrets."""
    names: set[str] = set(marked_keys(annotation))
    parts = _nested(annotation)
    if inspect.isfunction(annotation):
        parts += [part for hint in inspect.get_annotations(annotation).values() for part in _nested(hint)]
    for part in parts:  # grows
        if isinstance(part, type):
            names.update(marked_fields(part))
        for name, field in field_types(part).items():
            inner = _nested(field)
            if any(each in (SecretStr, SecretBytes) or get_origin(each) is Secret for each in inner):
                names.add(name)
            parts += [each for each in inner if each not in parts]
    return frozenset(names)


def _nested(annotation: Any) -> list[Any]:
    parts = [plain(annotation)]
    for part in parts:  # grows; a recursive alias ends where it meets itself
        parts += [each for each in map(plain, get_args(part)) if each not in parts]
    return parts
