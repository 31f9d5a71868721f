"""The public API as a user's type checker sees it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Never, assert_type

from pydantic import BaseModel

from spanflow import (
    Err,
    Event,
    MemoryStore,
    Ok,
    Retry,
    Run,
    RunStream,
    Runtime,
    StepContext,
    StepError,
    StepResult,
    Tool,
    ToolResult,
    TracingContext,
    TracingOptions,
    Workflow,
    WorkflowResult,
    step,
    tool,
)


class Question(BaseModel):
    text: str


class Answer(BaseModel):
    text: str
    sources: list[str]


class Term(BaseModel):
    query: str


class Sum(BaseModel):
    a: int
    b: int


class Approval(BaseModel):
    approved: bool


@dataclass
class Deps:
    model: str


# --- the example of the documentation


@tool
async def search(query: str, limit: int = 3) -> list[str]:
    """Find passages that answer a query."""
    return [query] * limit


@step
async def retrieve(question: Question) -> list[str]:
    return await search(query=question.text)


@step
async def answer(passages: list[str], ctx: StepContext) -> Answer:
    ctx.tracing_context.current_span.set_attribute("passages", len(passages))
    await ctx.emit({"progress": 0.5})
    return Answer(text=passages[0], sources=passages)


qa = Workflow("qa", input=Question).then(retrieve).then(answer)
assert_type(qa, Workflow[Question, Answer])


async def the_example() -> None:
    run = await qa.create_run()
    stream = await run.stream(
        input_data=Question(text="..."),
        tracing_options=TracingOptions(
            metadata={"user.id": "u-42", "session.id": "s-7", "feature_flag.ranker": "v2"},
        ),
    )
    assert_type(stream.trace_id, str | None)
    async for event in stream:
        print(event.type, event.payload)
    async for event in stream.stream:
        assert_type(event, Event)
    result = await stream.get_workflow_state()
    assert_type(result.result, Answer)


# --- steps


@step
def shorten(text: str) -> str:
    return text[:80]


@step
def count(text: str, ctx: StepContext[Deps]) -> int:
    assert_type(ctx.deps, Deps)
    return len(text)


@step(id="measure", retry=Retry(max_attempts=3), timeout=2.5, description="Measure a text.")
async def measure(text: str) -> float:
    return float(len(text))


@step(id="grade")
async def grade(text: str, ctx: StepContext[Deps]) -> bytes:
    return text.encode()


@step(timeout=1)
def number(text: str) -> int:
    return int(text)


@step(retry=Retry())
def numbered(value: int, ctx: StepContext) -> str:
    assert_type(ctx.deps, object)
    return f"{ctx.attempt}: {value}"


@step
async def increment(value: int) -> int:
    return value + 1


@step
async def discard(value: object) -> None:
    return None


class Steps:
    """What a step is when it is called, as in a unit test."""

    async def called(self, ctx: StepContext[Deps]) -> None:
        assert_type(await retrieve(Question(text="")), list[str])
        assert_type(await answer([], ctx), Answer)
        assert_type(shorten(""), str)
        assert_type(count("", ctx), int)
        assert_type(await measure(""), float)
        assert_type(await grade("", ctx), bytes)
        assert_type(number(""), int)
        assert_type(numbered(1, ctx), str)
        increased = assert_type(increment(1), Coroutine[Any, Any, int])
        task = asyncio.create_task(increased)
        assert_type(await task, int)

    def described(self) -> None:
        assert_type(retrieve.id, str)
        assert_type(retrieve.returns, type[list[str]])
        assert_type(retrieve.timeout, float | None)
        assert_type(retrieve.retry, Retry | None)

    async def under_another_id(self) -> None:
        again = retrieve.with_id("again")
        assert_type(await again(Question(text="")), list[str])
        assert_type(Workflow("w", input=Question).then(again), Workflow[Question, list[str]])
        assert_type(Workflow("w", input=str).then(shorten.with_id("twice")), Workflow[str, str])


# --- tools


@tool
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@tool(id="look_up", description="Look a word up.")
async def look_up(word: str) -> Answer:
    return Answer(text=word, sources=[])


@tool
async def tokens(prompt: str) -> AsyncIterator[str]:
    """Stream an answer."""
    yield prompt


@tool(id="letters")
async def letters(prompt: str) -> AsyncGenerator[str, None]:
    yield prompt


@tool
async def only_a_result(prompt: str) -> AsyncIterable[ToolResult[Answer]]:
    yield ToolResult(Answer(text=prompt, sources=[]))


class Tools:
    """What a tool gives when it is called, and as a step."""

    async def called(self) -> None:
        assert_type(await search(query="q"), list[str])
        assert_type(await search("q", limit=2), list[str])
        assert_type(add(1), int)
        assert_type(add(a=1, b=2), int)
        assert_type(await look_up("word"), Answer)
        assert_type(await asyncio.create_task(look_up("word")), Answer)

    async def streaming(self) -> None:
        assert_type(await tokens("p"), str)
        async for token in tokens("p"):
            assert_type(token, str)
        assert_type(await letters("p"), str)
        assert_type(await only_a_result("p"), Answer)
        assert_type(aiter(only_a_result("p")), AsyncIterator[Never])

    def described(self) -> None:
        assert_type(search.json_schema, dict[str, Any])
        assert_type(search.description, str)
        assert_type(search.name, str)
        assert_type(search.returns, type[list[str]])

    def as_steps(self) -> None:
        terms = Workflow("terms", input=Term)
        assert_type(terms.then(search), Workflow[Term, list[str]])
        assert_type(terms.then(search.with_id("again")), Workflow[Term, list[str]])
        assert_type(Workflow("sums", input=Sum).then(add), Workflow[Sum, int])
        assert_type(texts.then(look_up), Workflow[str, Answer])
        assert_type(texts.then(tokens), Workflow[str, str])
        assert_type(texts.then(only_a_result), Workflow[str, Answer])

    async def under_another_id(self) -> None:
        assert_type(await search.with_id("again")("q", limit=1), list[str])

    def of_any_kind(self) -> None:
        mixed: list[Tool[..., Any, Any]] = [search, add, tokens]
        print(mixed)


# --- the context


class Context:
    """What a step may ask of its context."""

    def facts(self, ctx: StepContext) -> None:
        assert_type(ctx.run_id, str)
        assert_type(ctx.workflow_id, str)
        assert_type(ctx.step_id, str)
        assert_type(ctx.path, str)
        assert_type(ctx.attempt, int)
        assert_type(ctx.idempotency_key, str)
        assert_type(ctx.init_data, Any)
        assert_type(ctx.state, Any)
        assert_type(ctx.runtime_context, Mapping[str, Any])
        assert_type(ctx.tracing_context, TracingContext)

    def results(self, ctx: StepContext) -> None:
        assert_type(ctx.result_of(retrieve), list[str])
        assert_type(ctx.result_of(retrieve.with_id("again")), list[str])
        assert_type(ctx.result_of(shorten), str)
        assert_type(ctx.result_of(count), int)
        assert_type(ctx.result_of(discard), None)
        assert_type(ctx.result_of(search), list[str])
        assert_type(ctx.result_of(qa), Answer)
        assert_type(ctx.result_of(qa, None), Answer | None)
        assert_type(ctx.result_of(count, default="none"), int | str)
        assert_type(ctx.result_of("retrieve"), Any)
        assert_type(ctx.result_of("retrieve", default=None), Any)

    async def suspension(self, ctx: StepContext) -> None:
        assert_type(await ctx.suspend(Question(text="May I?"), resume=Approval), Approval)
        assert_type(await ctx.suspend({"text": "May I?"}, resume=bool), bool)
        assert_type(await ctx.suspend(resume=list[str]), list[str])
        assert_type(await ctx.suspend("May I?"), Any)
        await ctx.suspend("May I?", resume=str | int)

    def bailing(self, ctx: StepContext, text: str | None) -> None:
        if text is None:
            ctx.bail(Answer(text="", sources=[]))
        assert_type(text, str)

    def aborting(self, ctx: StepContext, text: str | None) -> None:
        if text is None:
            ctx.abort("there is no text")
        assert_type(text, str)

    async def changes(self, ctx: StepContext) -> None:
        await ctx.set_state(seen=1)
        await ctx.set_state({"seen": 1})
        await ctx.set_state(Question(text=""), seen=1)
        ctx.emit(0.5)


# --- operations

texts = Workflow("texts", input=str)
numbers = Workflow("numbers", input=int)
lists = Workflow("lists", input=list[int])


def is_long(text: str) -> bool:
    return len(text) > 80


def is_late(text: str, ctx: StepContext[Deps]) -> bool:
    return ctx.attempt > 1


async def is_known(text: str) -> bool:
    return bool(text)


async def is_open(text: str, ctx: StepContext) -> bool:
    return not ctx.runtime_context


class Definition:
    """What a workflow is made of, and what may be left out."""

    def workflows(self) -> None:
        assert_type(texts, Workflow[str, str])
        assert_type(lists, Workflow[list[int], list[int]])
        assert_type(
            Workflow(
                "w", input=Question, output=Answer, state=Approval, retry=Retry(max_attempts=2), description="Answers."
            ),
            Workflow[Question, Question],
        )

    def types_that_are_no_classes(self) -> None:
        assert_type(Workflow("w", input=Literal["a", "b"]), Workflow[Any, Any])
        choice: Workflow[str | int, str | int] = Workflow("w", input=str | int)
        assert_type(choice.then(discard), Workflow[str | int, None])
        assert_type(texts.wait_for_event("anything").then(shorten), Workflow[str, str])

    def another_id(self) -> None:
        assert_type(qa.with_id("qa_2"), Workflow[Question, Answer])

    def described(self) -> None:
        assert_type(qa.id, str)
        assert_type(qa.returns, type[Answer])
        assert_type(qa.to_mermaid(), str)
        assert_type(qa.plan.model_dump_json(), str)


class Then:
    """What a pipe of steps takes and gives."""

    def pipes(self) -> None:
        assert_type(texts.then(shorten), Workflow[str, str])
        assert_type(texts.then(shorten).then(count), Workflow[str, int])
        assert_type(texts.then(count).then(numbered), Workflow[str, str])
        assert_type(texts.then(measure), Workflow[str, float])
        assert_type(texts.then(grade), Workflow[str, bytes])
        assert_type(texts.then(discard), Workflow[str, None])

    def what_takes_more_than_it_is_given(self) -> None:
        @step
        def total(values: Sequence[float]) -> float:
            return sum(values)

        @step
        def optional(value: str | None) -> str:
            return value or ""

        assert_type(lists.then(total), Workflow[list[int], float])
        assert_type(texts.then(optional), Workflow[str, str])

    def nesting(self) -> None:
        inner = texts.then(count)
        assert_type(texts.then(inner), Workflow[str, int])
        assert_type(texts.then(shorten).then(inner.with_id("inner_2")).then(increment), Workflow[str, int])
        assert_type(texts.parallel(inner, shorten), Workflow[str, tuple[int, str]])
        assert_type(texts.branch((is_long, inner), default=shorten), Workflow[str, int | str])
        assert_type(Workflow("w", input=list[str]).foreach(inner), Workflow[list[str], list[int]])
        assert_type(texts.do_until(texts.then(shorten), lambda text: True), Workflow[str, str])


class Parallel:
    """Outputs of arms side by side."""

    def arms(self) -> None:
        assert_type(texts.parallel(shorten, count), Workflow[str, tuple[str, int]])
        assert_type(texts.parallel(shorten, count, measure), Workflow[str, tuple[str, int, float]])
        assert_type(texts.parallel(shorten, count, measure, grade), Workflow[str, tuple[str, int, float, bytes]])
        assert_type(
            texts.parallel(shorten, count, measure, grade, discard),
            Workflow[str, tuple[str, int, float, bytes, None]],
        )

    def any_number_of_arms(self) -> None:
        assert_type(texts.parallel(count), Workflow[str, tuple[int]])
        six = [count.with_id(f"count_{index}") for index in range(6)]
        assert_type(texts.parallel(*six), Workflow[str, tuple[int, ...]])
        a, b, c, d, e, f = six
        assert_type(texts.parallel(a, b, c, d, e, f), Workflow[str, tuple[int, ...]])

    def options(self) -> None:
        assert_type(texts.parallel(shorten, look_up, on_error="collect", id="both"), Workflow[str, tuple[str, Answer]])

    def into_a_step(self) -> None:
        @step
        def join(parts: tuple[str, int]) -> str:
            return "".join(map(str, parts))

        assert_type(texts.parallel(shorten, count).then(join), Workflow[str, str])


class Branch:
    """One arm of several."""

    def first_match(self) -> None:
        assert_type(texts.branch((is_long, shorten)), Workflow[str, str])
        assert_type(texts.branch((is_long, shorten), (is_late, count)), Workflow[str, str | int])
        assert_type(
            texts.branch((is_long, shorten), (is_late, count), (is_known, measure)),
            Workflow[str, str | int | float],
        )
        assert_type(
            texts.branch((is_long, shorten), (is_late, count), (is_known, measure), (is_open, grade)),
            Workflow[str, str | int | float | bytes],
        )

    def default(self) -> None:
        assert_type(texts.branch((is_long, shorten), default=count), Workflow[str, str | int])
        assert_type(texts.branch((is_long, count), (is_late, measure), default=None), Workflow[str, int | float])
        assert_type(
            texts.branch((is_long, shorten), (is_late, count), default=grade, id="choice"),
            Workflow[str, str | int | bytes],
        )

    def all_matches(self) -> None:
        assert_type(texts.branch((is_long, shorten), mode="all"), Workflow[str, dict[str, str]])
        assert_type(texts.branch((is_long, shorten), (is_late, count), mode="all"), Workflow[str, dict[str, str | int]])
        assert_type(
            texts.branch((is_long, shorten), (is_late, count), default=grade, mode="all"),
            Workflow[str, dict[str, str | int | bytes]],
        )

    def any_number_of_arms(self) -> None:
        arms = [(is_long, count.with_id(f"count_{index}")) for index in range(6)]
        assert_type(texts.branch(*arms), Workflow[str, int])
        assert_type(texts.branch(*arms, default=shorten), Workflow[str, int | str])
        assert_type(texts.branch(*arms, mode="all"), Workflow[str, dict[str, int]])

    def lambdas(self) -> None:
        assert_type(
            texts.branch(
                (lambda text: len(text) > 80, shorten),
                (lambda text, ctx: ctx.attempt > 1, count),
            ),
            Workflow[str, str | int],
        )


class Foreach:
    """A step for each item."""

    def lists(self) -> None:
        assert_type(lists.foreach(increment), Workflow[list[int], list[int]])
        assert_type(lists.foreach(numbered, concurrency=8), Workflow[list[int], list[str]])
        assert_type(Workflow("w", input=list[Sum]).foreach(add), Workflow[list[Sum], list[int]])
        assert_type(lists.foreach(numbered, on_error="fail"), Workflow[list[int], list[str]])

    def collecting(self) -> None:
        collected = lists.foreach(numbered, on_error="collect")
        assert_type(collected, Workflow[list[int], list[Ok[str] | Err]])

        @step
        def good(results: list[Ok[str] | Err]) -> list[str]:
            return [each.value for each in results if each.kind == "ok"]

        assert_type(collected.then(good), Workflow[list[int], list[str]])

    def each_result(self, results: list[Ok[str] | Err]) -> None:
        for each in results:
            match each:
                case Ok():
                    assert_type(each.value, str)
                case Err():
                    assert_type(each.error, StepError)
                    assert_type(each.error.exception, BaseException | None)

    def other_sequences(self) -> None:
        assert_type(Workflow("w", input=tuple[int, ...]).foreach(numbered), Workflow[tuple[int, ...], list[str]])
        assert_type(texts.then(shorten).map(lambda text: [text]).foreach(count), Workflow[str, list[int]])


class Loops:
    """A step, then a test of its output."""

    def loops(self) -> None:
        assert_type(numbers.do_while(increment, lambda value: value < 10), Workflow[int, int])
        assert_type(numbers.do_until(increment, lambda value: value > 10, max_iterations=20), Workflow[int, int])
        assert_type(numbers.do_while(increment, lambda value, ctx: ctx.attempt < value), Workflow[int, int])
        assert_type(numbers.do_until(increment, lambda value, ctx: ctx.attempt > value), Workflow[int, int])
        assert_type(texts.do_while(shorten, is_long), Workflow[str, str])
        assert_type(texts.do_until(shorten, is_late), Workflow[str, str])
        assert_type(texts.do_while(shorten, is_known), Workflow[str, str])
        assert_type(texts.do_until(shorten, is_open), Workflow[str, str])


class Maps:
    """A value in another shape."""

    def functions(self) -> None:
        def double(value: int) -> list[int]:
            return [value, value]

        def with_context(value: int, ctx: StepContext[Deps]) -> str:
            return ctx.deps.model

        def with_bare_context(value: int, ctx: StepContext) -> str:
            return ctx.path

        assert_type(numbers.map(double), Workflow[int, list[int]])
        assert_type(numbers.map(double, id="doubled"), Workflow[int, list[int]])
        assert_type(numbers.map(with_context), Workflow[int, str])
        assert_type(numbers.map(with_bare_context), Workflow[int, str])

    def coroutine_functions(self) -> None:
        async def fetch(value: int) -> bytes:
            return bytes(value)

        async def fetch_with_context(value: int, ctx: StepContext) -> bytes:
            return bytes(ctx.attempt)

        assert_type(numbers.map(fetch), Workflow[int, bytes])
        assert_type(numbers.map(fetch_with_context), Workflow[int, bytes])

    def lambdas(self) -> None:
        assert_type(numbers.map(lambda value: value + 0.5), Workflow[int, float])
        assert_type(numbers.map(lambda value: [value]), Workflow[int, list[int]])
        assert_type(numbers.map(lambda value, ctx: ctx.result_of(shorten)), Workflow[int, str])
        assert_type(numbers.map(lambda value, ctx: (value, ctx.path)), Workflow[int, tuple[int, str]])
        assert_type(qa.map(lambda value: value.sources), Workflow[Question, list[str]])

    def classes_and_builtins(self) -> None:
        assert_type(numbers.map(str), Workflow[int, str])


class Waits:
    """Time and events from outside."""

    def sleep(self) -> None:
        def pause(text: str, ctx: StepContext) -> float:
            return ctx.attempt / 2

        async def ask(text: str) -> float:
            return 1.0

        assert_type(texts.sleep(60), Workflow[str, str])
        assert_type(texts.sleep(0.5, id="breathe"), Workflow[str, str])
        assert_type(texts.sleep(lambda text: len(text)), Workflow[str, str])
        assert_type(texts.sleep(lambda text, ctx: ctx.attempt), Workflow[str, str])
        assert_type(texts.sleep(pause), Workflow[str, str])
        assert_type(texts.sleep(ask), Workflow[str, str])

    def sleep_until(self) -> None:
        def tomorrow(text: str) -> datetime:
            return datetime.now(UTC) + timedelta(days=1)

        async def ask(text: str, ctx: StepContext) -> datetime:
            return tomorrow(text)

        assert_type(texts.sleep_until(datetime(2030, 1, 1, tzinfo=UTC)), Workflow[str, str])
        assert_type(texts.sleep_until(tomorrow, id="tomorrow"), Workflow[str, str])
        assert_type(texts.sleep_until(ask), Workflow[str, str])
        assert_type(texts.sleep_until(lambda text: tomorrow(text)), Workflow[str, str])
        assert_type(texts.sleep_until(lambda text, ctx: tomorrow(text)), Workflow[str, str])

    def events(self) -> None:
        assert_type(texts.wait_for_event("approval", Approval), Workflow[str, Approval])
        assert_type(texts.wait_for_event("approval", payload=Approval, timeout=60, id="boss"), Workflow[str, Approval])
        assert_type(texts.wait_for_event("names", list[str]), Workflow[str, list[str]])
        assert_type(texts.wait_for_event("anything"), Workflow[str, Any])
        assert_type(texts.wait_for_event("choice", Literal["yes", "no"]), Workflow[str, Any])


# --- runs


class Runs:
    """A run, its stream and its result."""

    async def creation(self) -> None:
        assert_type(await qa.create_run(), Run[Question, Answer])
        assert_type(await qa.create_run("r-1", "tenant-1", deps=Deps(model="m")), Run[Question, Answer])
        async with Runtime(store=MemoryStore(), workflows=[qa, texts.then(count)], deps=Deps(model="m")) as runtime:
            assert_type(await runtime.create_run(qa), Run[Question, Answer])
            assert_type(await runtime.create_run(qa, run_id="r-2", deps=Deps(model="n")), Run[Question, Answer])
            assert_type(await runtime.get_run("r-2"), Run[Any, Any])
            found = await runtime.find_runs(status="success", workflow=qa, trace_id="0" * 32, metadata={"a": 1})
            assert_type([each.run_id for each in found], list[str])

    async def start(self, run: Run[Question, Answer]) -> None:
        result = await run.start(
            Question(text=""),
            initial_state=Approval(approved=False),
            runtime_context={"locale": "en"},
            tracing_context=TracingContext(),
            tracing_options=TracingOptions(tags=["nightly"]),
        )
        assert_type(result, WorkflowResult[Answer])
        assert_type(result.unwrap(), Answer)
        assert_type(result.result, Answer)
        assert_type(result.status, Literal["running", "success", "failed", "suspended", "canceled"])
        assert_type(result.error, StepError | None)
        assert_type(result.suspended, dict[str, Any])
        assert_type(result.steps, dict[str, StepResult])
        assert_type(result.trace_id, str | None)
        assert_type(result.run_id, str)

    async def stream(self, run: Run[Question, Answer]) -> None:
        stream = await run.stream(input_data=Question(text=""))
        assert_type(stream, RunStream[Answer])
        assert_type(stream.run_id, str)
        async for event in stream:
            assert_type(event, Event)
            match event.type:
                case "step-start":
                    assert_type(event.payload.attempt, int)
                case "step-output":
                    assert_type(event.payload.output, Any)
                case "finish":
                    assert_type(event.payload.status, Literal["success", "failed", "suspended", "canceled"])
                case _:
                    assert_type(event.run_id, str)
        assert_type(await stream.get_workflow_state(), WorkflowResult[Answer])
        await stream.aclose()

    async def resume(self, run: Run[Question, Answer]) -> None:
        assert_type(await run.resume(Approval(approved=True)), WorkflowResult[Answer])
        assert_type(await run.resume({"approved": True}, step=answer), WorkflowResult[Answer])
        assert_type(await run.resume(True, step=search), WorkflowResult[Answer])
        assert_type(await run.resume(True, step=texts), WorkflowResult[Answer])
        assert_type(await run.resume(step="nested/answer"), WorkflowResult[Answer])
        assert_type(await run.resume_stream(Approval(approved=True), step=answer), RunStream[Answer])

    async def other_calls(self, run: Run[Question, Answer]) -> None:
        assert_type(run.run_id, str)
        assert_type(run.trace_id, str | None)
        assert_type(await run.wait(), WorkflowResult[Answer])
        assert_type(await run.cancel(), WorkflowResult[Answer])
        assert_type(run.observe_stream(after=3), AsyncIterator[Event])
        await run.send_event("approval", Approval(approved=True))

    async def where_less_is_known(self, run: Run[Question, Answer]) -> None:
        any_run: Run[Any, Any] = run
        model_run: Run[Question, BaseModel] = run
        result: WorkflowResult[BaseModel] = await run.wait()
        workflow: Workflow[Question, BaseModel] = qa
        print(any_run, model_run, result, workflow)
