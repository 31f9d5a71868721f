"""A web application: each request is one trace, and each run in it carries its user and session.

    uv run examples/web.py
    curl -s localhost:8000/greetings -d '{"name": "Ada"}' -H 'x-user-id: u-42' -H 'x-session-id: s-7'

Look at the tree that each request prints, and at ``trace_id`` in the answer. The middleware opens the request's span,
and the run takes it as its parent without being told. Send a ``traceparent`` header, and that trace goes on here.
"""

import argparse
import sys
from collections.abc import Sequence
from json import JSONDecodeError

import uvicorn
from opentelemetry import propagate, trace
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from spanflow import InvalidInput, TracingOptions, Workflow, configure_tracing, step

tracer = trace.get_tracer("greetings")


class Visitor(BaseModel):
    name: str


@step
async def greet(visitor: Visitor) -> str:
    return f"Hello {visitor.name}"


greetings = Workflow("greetings", input=Visitor).then(greet)


async def create_greeting(request: Request) -> JSONResponse:
    run = await greetings.create_run()
    who = TracingOptions(
        user_id=request.headers.get("x-user-id"),
        session_id=request.headers.get("x-session-id"),
        metadata={"feature_flag.style": "plain"},
    )
    try:
        result = await run.start(await request.json(), tracing_options=who)
    except (InvalidInput, JSONDecodeError) as error:
        return JSONResponse({"error": str(error)}, status_code=422)
    return JSONResponse({"greeting": result.unwrap(), "run_id": result.run_id, "trace_id": result.trace_id})


class RequestSpans:
    """What the ASGI instrumentation of OpenTelemetry does for you, in a few lines: a span around each request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        caller = propagate.extract({key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]})
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        with tracer.start_as_current_span(scope["method"], caller, trace.SpanKind.SERVER, attributes):
            await self.app(scope, receive, send)


app = Starlette(routes=[Route("/greetings", create_greeting, methods=["POST"])], middleware=[Middleware(RequestSpans)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Serve greetings over HTTP.")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(argv)
    with configure_tracing(service_name="greetings", console=True):
        uvicorn.run(app, host="127.0.0.1", port=options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
