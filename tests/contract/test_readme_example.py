"""The example of the design, as it is written there, with the bodies filled in."""

import re

from pydantic import BaseModel

from spanflow import Event, StepContext, TracingOptions, Workflow, step, tool
from spanflow.testing import Traces

# --- the example, word for word but for the bodies


class Question(BaseModel):
    text: str


class Answer(BaseModel):
    text: str
    sources: list[str]


@tool
async def search(query: str, limit: int = 3) -> list[str]:
    """Find passages that answer a query."""
    return [f"passage {number} on {query}" for number in range(limit)]


@step
async def retrieve(question: Question) -> list[str]:
    return await search(query=question.text)  # a tool call: events and a span, also when called like this


@step
async def answer(passages: list[str], ctx: StepContext) -> Answer:
    ctx.tracing_context.current_span.set_attribute("passages", len(passages))
    await ctx.emit({"progress": 0.5})
    return Answer(text=passages[0], sources=passages)


qa = Workflow("qa", input=Question).then(retrieve).then(answer)  # Workflow[Question, Answer]


async def test_the_example_runs_as_it_is_written(traces: Traces) -> None:
    run = await qa.create_run()
    stream = await run.stream(
        input_data=Question(text="zebras"),
        tracing_options=TracingOptions(metadata={"user.id": "u-42", "session.id": "s-7", "feature_flag.ranker": "v2"}),
    )
    trace_id = stream.trace_id
    seen: list[Event] = [event async for event in stream]
    result = await stream.get_workflow_state()

    assert trace_id is not None
    assert re.fullmatch(r"[0-9a-f]{32}", trace_id)
    assert {event.trace_id for event in seen} == {trace_id}
    assert [event.type for event in seen] == [
        "start",
        "step-start",
        "tool-call",
        "tool-result",
        "step-result",
        "step-finish",
        "step-start",
        "step-output",
        "step-result",
        "step-finish",
        "finish",
    ]
    passages = ["passage 0 on zebras", "passage 1 on zebras", "passage 2 on zebras"]
    assert result.status == "success"
    assert result.result == Answer(text=passages[0], sources=passages)
    assert isinstance(result.unwrap(), Answer)
    assert result.trace_id == trace_id

    assert traces.trace_ids == (trace_id,)
    assert traces.tree() == ("invoke_workflow qa\n├── step retrieve\n│   └── execute_tool search\n└── step answer")
    attributes = traces.one("step answer").attributes
    assert attributes is not None
    assert attributes["passages"] == 3
    root = traces.one("invoke_workflow qa").attributes
    assert root is not None
    assert (root["user.id"], root["session.id"], root["feature_flag.ranker"]) == ("u-42", "s-7", "v2")


async def test_the_example_may_be_read_from_stream_stream() -> None:
    run = await qa.create_run()
    stream = await run.stream(input_data=Question(text="zebras"))
    types = [event.type async for event in stream.stream]
    assert (types[0], types[-1]) == ("start", "finish")


async def test_the_steps_of_the_example_stay_functions() -> None:
    assert len(await retrieve(Question(text="x"))) == 3
    assert await search(query="x", limit=1) == ["passage 0 on x"]
