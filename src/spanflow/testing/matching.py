"""Find things by name and attributes."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any


def matches(
    name: str, attributes: Mapping[str, Any] | None, wanted_name: str, wanted_attributes: Mapping[str, Any] | None
) -> bool:
    """Tell whether a name fits a pattern, and whether all wanted attributes are there; ``...`` is any value."""
    found = attributes or {}
    return (name == wanted_name or fnmatchcase(name, wanted_name)) and all(
        key in found and (value is ... or found[key] == _as_kept(value))
        for key, value in (wanted_attributes or {}).items()
    )


def wish(name: str, attributes: Mapping[str, Any] | None) -> str:
    """Put what is looked for into words."""
    return repr(name) + (f" with {dict(attributes)!r}" if attributes else "")


def _as_kept(value: Any) -> Any:
    """OpenTelemetry keeps lists as tuples."""
    return tuple(value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # any list
