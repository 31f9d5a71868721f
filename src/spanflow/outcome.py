"""``Ok`` and ``Err``: what a ``foreach(..., on_error="collect")`` gives for each item."""

from typing import Generic, Literal

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypeVar

from spanflow.events import StepError

T = TypeVar("T")


class Ok(BaseModel, Generic[T]):
    """An item that succeeded."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["ok"] = "ok"
    value: T


class Err(BaseModel):
    """An item that failed. ``error.exception`` is the exception itself, where the process still has it."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["err"] = "err"
    error: StepError
