"""What a caller hands to a run: checked here, before anything is recorded."""

import os
import sys
from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from spanflow.errors import InvalidInput, SpanflowError
from spanflow.explain import describe
from spanflow.schema import Schema, to_json

_PLAIN = (int, float, type(None))


def validated(schema: Schema[Any], value: Any, what: str) -> Any:
    try:
        return schema.validate(value)
    except ValidationError as error:
        raise InvalidInput(f"{what} must be {schema.name}: {describe(error, schema.annotation)}") from None


def require_storable(value: Any, what: str, refusal: type[SpanflowError] = InvalidInput) -> None:
    if isinstance(value, _PLAIN) or (isinstance(value, str) and value.isascii()):
        return  # of anything else, only writing it tells
    try:
        to_json(value)
    except SpanflowError as error:
        raise refusal(f"{what} cannot be stored: {error}") from None


def json_mapping(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # bad input
        raise InvalidInput(f"{name} must be a mapping, got {type(value).__name__}.")
    try:
        to_json(value)
    except SpanflowError as error:
        raise InvalidInput(f"{name} must be JSON: {error} Pass live objects as deps.") from None
    return dict(value)


def json_copy(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as JSON can hold it; it is kept as far as possible, and never a reason to fail."""
    if not metadata:
        return {}
    try:
        copied = to_jsonable_python(metadata, fallback=str, inf_nan_mode="strings", bytes_mode="base64")
    except Exception:  # e.g. it refers to itself
        return {str(key): str(value) for key, value in metadata.items()}
    return cast("dict[str, Any]", copied)


def schema_named(resume_type: str | None) -> Schema[Any] | None:
    """Return the model of an answer that another process asked for, where its module is loaded here.

    Nothing is imported for it: what a store says is no reason to run code. Where the model is not at hand, the step
    itself validates the answer when it runs again.
    """
    module, _, name = (resume_type or "").partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return Schema(found) if isinstance(found, type) else None


def new_id() -> str:
    """Return a random UUID (version 4) as text, without the object that ``uuid.uuid4`` makes on the way."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
