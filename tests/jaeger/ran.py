"""Every example's workflow, run for one user, session and customer. To be imported by a process of its own."""

from pathlib import Path
from typing import Any

import httpx

from examples.approval import refunds as refunds_at_once
from examples.containers import Line, Order, checkout
from examples.durable_approval import Refund
from examples.durable_approval import refunds as durable_refunds
from examples.quickstart import Question, answer_from_docs
from examples.streaming_tool import checksum
from examples.web import app
from spanflow import TracingOptions, Workflow, WorkflowResult

USER, SESSION = "u-42", "s-7"
METADATA = {"feature_flag.style": "plain", "customer": {"tier": "gold"}}
WHO = TracingOptions(user_id=USER, session_id=SESSION, metadata=METADATA)
HERE = Path(__file__).parent

SUCCEEDING: dict[str, tuple[Workflow[Any, Any], Any]] = {
    "approval.py": (refunds_at_once, 250),
    "containers.py": (checkout, Order(lines=[Line(fruit="apple", count=3), Line(fruit="pear", count=12)])),
    "durable_approval.py": (durable_refunds, Refund(amount=250)),
    "quickstart.py": (answer_from_docs, Question(text="Which storage is there?", folder=HERE.parent.parent)),
    "streaming_tool.py": (checksum, __file__),
}
FAILING: dict[str, tuple[Workflow[Any, Any], Any]] = {
    "containers.py": (checkout, Order(lines=[Line(fruit="kiwi", count=1)])),
    "streaming_tool.py": (checksum, "/nowhere"),
}
ANSWERS = {"approval.py": {"answer": "yes"}, "durable_approval.py": {"approved": True}}
SERVER = "web.py"


async def run_examples() -> dict[str, dict[str, str | None]]:
    """Return the trace ids of what succeeded and of what failed, by example."""
    succeeded = {name: (await _run(name, *what)).trace_id for name, what in SUCCEEDING.items()}
    failed = {name: (await _run(name, *what)).trace_id for name, what in FAILING.items()}
    return {"succeeded": {**succeeded, SERVER: await _request()}, "failed": failed}


async def _run(name: str, workflow: Workflow[Any, Any], given: Any) -> WorkflowResult[Any]:
    run = await workflow.create_run()
    result = await run.start(given, tracing_options=WHO)
    return await run.resume(ANSWERS[name]) if result.status == "suspended" else result


async def _request() -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://web") as client:
        headers = {"x-user-id": USER, "x-session-id": SESSION}
        answer = await client.post("/greetings", json={"name": "Ada"}, headers=headers)
        return answer.json()["trace_id"]
