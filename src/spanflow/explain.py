"""A failed validation in words."""

import dataclasses
import re
import reprlib
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Secret, SecretBytes, SecretStr, ValidationError

from spanflow.annotations import field_types, plain
from spanflow.schema import fields_of

_SECRET = re.compile(r"pass(word|wd|phrase)|secret|token|api_?key|private_?key|credential|authorization", re.IGNORECASE)


def _looks_secret(name: Any) -> bool:
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
    if any(_looks_secret(key) or key in secrets for key in problem["loc"]):
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
        shown = {key: _Hidden() if _looks_secret(key) or key in self.secrets else part for key, part in x.items()}
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
