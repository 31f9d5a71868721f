"""Capture the spans of a block of code, in memory."""

from collections.abc import Generator
from contextlib import contextmanager

from spanflow.testing.traces import Traces


@contextmanager
def capture_traces() -> Generator[Traces]:
    """Capture the spans that the body causes. What pytest's ``traces`` fixture does, for any test framework.

    Spans that are still open at the end, and all that follow from them, are dropped. OpenTelemetry's tracer provider
    can be set once in a process: it is set here if the application has not, and stays.

    Raises:
        SpanflowError: the tracer provider of this process is not the SDK's, or the SDK is disabled.

    Example:
        >>> import asyncio
        >>> from spanflow import Workflow, step
        >>> @step
        ... async def double(value: int) -> int:
        ...     return 2 * value
        >>> async def main() -> None:
        ...     await (await Workflow("numbers", input=int).then(double).create_run()).start(21)
        >>> with capture_traces() as traces:
        ...     asyncio.run(main())
        >>> print(traces.tree())
        invoke_workflow numbers
        └── step double
    """
    from spanflow.testing.routing import installed_router  # here, since it imports the SDK

    router = installed_router()
    recording = router.open()
    try:
        yield Traces(recording)
    finally:
        router.close(recording)
