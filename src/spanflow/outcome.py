"""``Ok`` and ``Err``: what a ``foreach(..., on_error="collect")`` gives for each item."""

from typing import Generic, Literal

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypeVar

from spanflow.events import StepError

T = TypeVar("T")


class Ok(BaseModel, Generic[T]):
    """An item that succeeded.

    Example:
        >>> import asyncio
        >>> from spanflow import Err, Ok, Workflow, step
        >>> @step
        ... async def invert(value: int) -> float:
        ...     return 1 / value
        >>> async def main() -> list[Ok[float] | Err]:
        ...     workflow = Workflow("inverses", input=list[int]).foreach(invert, on_error="collect")
        ...     run = await workflow.create_run()
        ...     return (await run.start([2, 0])).unwrap()
        >>> for each in asyncio.run(main()):
        ...     print(each.value if isinstance(each, Ok) else each.error.message)
        0.5
        division by zero
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["ok"] = "ok"
    value: T


class Err(BaseModel):
    """An item that failed. ``error.exception`` is the exception itself, where the process still has it."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["err"] = "err"
    error: StepError
