"""A tool that streams: the SHA-256 of a file, with progress.

    uv run examples/streaming_tool.py some-large-file

Look at the events: each ``yield`` of the tool is a ``tool-call-delta`` the moment it happens, and ``ToolResult`` is
what the caller gets from ``await``. In the trace all of it is one span, ``execute_tool digest``.
"""

import argparse
import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Sequence

from spanflow import ToolResult, Workflow, configure_tracing, step, tool

CHUNK = 2**20  # bytes


@tool
async def digest(path: str) -> AsyncIterator[int | ToolResult[str]]:
    """Compute the SHA-256 of a file.

    Args:
        path: the file.
    """
    file = await asyncio.to_thread(open, path, "rb")
    with file:
        size, done, hashed = os.fstat(file.fileno()).st_size, 0, hashlib.sha256()
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            hashed.update(chunk)
            done += len(chunk)
            yield 100 * done // max(size, 1)
    yield ToolResult(hashed.hexdigest())


@step
async def check(path: str) -> str:
    return f"{await digest(path)}  {path}"


checksum = Workflow("checksum", input=str).then(check)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compute the SHA-256 of a file.")
    parser.add_argument("file", nargs="?", default=__file__)
    options = parser.parse_args(argv)
    with configure_tracing(service_name="checksum", console=True):
        return asyncio.run(show(options.file))


async def show(path: str) -> int:
    run = await checksum.create_run()
    stream = await run.stream(path)
    async for event in stream:
        delta = f" {event.payload.delta} %" if event.type == "tool-call-delta" else ""
        print(f"{event.type}{delta}")
    result = await stream.get_workflow_state()
    if result.error is not None:
        print(f"error: {result.error.message}", file=sys.stderr)
        return 1
    print(f"{result.unwrap()}\ntrace_id  {result.trace_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
