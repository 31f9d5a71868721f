"""What must reach neither a trace nor an error: secrets, known by their key or marked where the model is written."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from typing_extensions import is_typeddict

REDACTED = "[redacted]"

_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[\W_]+")
_LONGEST_KEY = 512
_SECRET_WORDS = frozenset(
    {
        "accesstoken", "apikey", "apikeys", "auth", "authorization", "bearer", "clientsecret", "cookie", "cookies",
        "credential", "credentials", "jwt", "jwts", "passphrase", "passwd", "password", "passwords", "privatekey",
        "refreshtoken", "secret", "secrets", "ssn",
    }
)  # fmt: skip
_SECRET_PAIRS = frozenset({("api", "key"), ("api", "keys"), ("private", "key"), ("private", "keys")})
# `token` alone is a secret, `token_count` is a figure.
_AFTER_COUNTED_TOKEN = frozenset({"budget", "cost", "count", "counts", "length", "limit", "price", "rate", "usage"})
# `tokens` alone is a figure (`max_tokens`), `access_tokens` are secrets.
_BEFORE_SECRET_TOKENS = frozenset({"access", "api", "auth", "bearer", "id", "refresh", "secret", "session"})


class Redacted:
    """Mark a field whose value must not be recorded: ``card: Annotated[str, Redacted]``.

    Works on fields of pydantic models, dataclasses, named tuples and typed dicts, and on parameters of tools,
    as the class itself or as an instance.
    """


def is_secret_key(key: str) -> bool:
    """Tell whether values under this key are secrets, going by the words in its name.

    Case, ``-`` and ``_`` make no difference, and words count whole: ``auth`` is a secret, ``author`` is not;
    ``access_token`` is one, ``input_tokens`` and ``token_count`` are figures.
    """
    if len(key) > _LONGEST_KEY:
        key = f"{key[: _LONGEST_KEY // 2]} {key[-_LONGEST_KEY // 2 :]}"
    return _has_secret_word(key)


@lru_cache(maxsize=4096)
def _has_secret_word(key: str) -> bool:
    words = [word.casefold().rstrip("0123456789") for word in _WORD_BOUNDARY.split(key)]
    words = [word for word in words if word]
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if word in _SECRET_WORDS or (word, after) in _SECRET_PAIRS:
            return True
        if word == "token" and after not in _AFTER_COUNTED_TOKEN:
            return True
        if word == "tokens" and before in _BEFORE_SECRET_TOKENS:
            return True
    return False


class Field(NamedTuple):
    """How one field of a class is shown."""

    name: str
    redacted: bool
    marked: frozenset[str]
    """Names that the typed dicts below this field mark as redacted."""


def is_redacted(annotation: object) -> bool:
    """Tell whether an annotation carries the marker `Redacted`, also inside a union or a container."""
    if annotation is Redacted or isinstance(annotation, Redacted):
        return True
    if isinstance(annotation, str):  # a reference that could not be resolved: better to hide too much
        return "Redacted" in annotation
    if get_origin(annotation) is Annotated:
        marks: tuple[object, ...] = getattr(annotation, "__metadata__", ())
        return any(map(is_redacted, marks)) or is_redacted(get_args(annotation)[0])
    return any(map(is_redacted, _arguments(annotation)))


def marked_keys(annotation: object) -> frozenset[str]:
    """Collect the keys that typed dicts (and functions) in this annotation mark as redacted.

    A typed dict is a plain ``dict`` when it is recorded, so its marks have to come from the annotation.
    """
    try:
        return _marked_keys(annotation)
    except TypeError:  # not hashable: nothing that could be a typed dict
        return frozenset()


@lru_cache(maxsize=1024)
def _marked_keys(annotation: object) -> frozenset[str]:
    found: set[str] = set()
    seen: set[int] = set()
    waiting: list[object] = [annotation]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if is_typeddict(current) or _is_function(current):
            hints = _hints(current)
            found.update(name for name, hint in hints.items() if is_redacted(hint))
            waiting.extend(hints.values())
        else:
            waiting.extend(_arguments(current))
    return frozenset(found)


def marked_fields(cls: type[Any]) -> frozenset[str]:
    """Return the names, and aliases, of the fields that a model, dataclass or typed dict marks as redacted."""
    if issubclass(cls, BaseModel):
        marked = {
            name: info
            for name, info in cls.model_fields.items()
            if is_redacted(info.annotation) or any(map(is_redacted, info.metadata))
        }
        aliases = (key for info in marked.values() for key in (info.alias, info.validation_alias))
        return frozenset(marked).union(key for key in aliases if isinstance(key, str))
    return frozenset(name for name, hint in _hints(cls).items() if is_redacted(hint))


def fields_of(value: object) -> tuple[Field, ...] | None:
    """List the fields of a model, dataclass or named tuple; None for any other value."""
    cls: Any = type(value)
    return _fields(cls)


@lru_cache(maxsize=1024)
def _fields(cls: type[Any]) -> tuple[Field, ...] | None:
    hidden: set[str] = set()
    hints: dict[str, object]
    if issubclass(cls, BaseModel):
        hidden.update(name for name, info in cls.model_fields.items() if any(map(is_redacted, info.metadata)))
        hints = {name: info.annotation for name, info in cls.model_fields.items() if not info.exclude}
    elif dataclasses.is_dataclass(cls):
        declared = _hints(cls)
        hints = {field.name: declared.get(field.name) for field in dataclasses.fields(cls)}
    elif issubclass(cls, tuple) and (names := _names_of_tuple(cls)):
        declared = _hints(cls)
        hints = {name: declared.get(name) for name in names}
    else:
        return None
    return tuple(
        Field(name, name in hidden or is_secret_key(name) or is_redacted(hint), marked_keys(hint))
        for name, hint in hints.items()
    )


def _names_of_tuple(cls: Any) -> tuple[str, ...]:
    return getattr(cls, "_fields", ())


def _arguments(annotation: object) -> tuple[object, ...]:
    value: object = getattr(annotation, "__value__", None)  # `type X = ...` and TypeAliasType
    return (*get_args(annotation), value) if value is not None else get_args(annotation)


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type) and hasattr(value, "__annotations__")


def _hints(owner: Any) -> Mapping[str, object]:
    resolve: Callable[..., dict[str, Any]] = get_type_hints
    try:
        return resolve(owner, include_extras=True)
    except Exception:  # a name that only a type checker sees; the annotations as written still tell the marks
        written: Mapping[str, object] = cast(Any, getattr(owner, "__annotations__", {}))
        return written
