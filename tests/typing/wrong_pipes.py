"""Pipes that do not fit. Both type checkers must refuse each of them.

Every wrong line carries the exact errors that it is to be refused with. A checker that no longer finds one reports the
needless ignore.
"""

from datetime import UTC, datetime

from pydantic import BaseModel

from spanflow import Err, Ok, Run, StepContext, Workflow, WorkflowResult, step, tool


class Question(BaseModel):
    text: str


class Answer(BaseModel):
    text: str


class Approval(BaseModel):
    approved: bool


class Deps:
    model: str


@step
async def reply(question: Question) -> Answer:
    return Answer(text=question.text)


@step
def shorten(text: str) -> str:
    return text[:80]


@step
def count(text: str, ctx: StepContext[Deps]) -> int:
    return len(text)


@step
async def increment(value: int) -> int:
    return value + 1


@tool
async def search(query: str, limit: int = 3) -> list[str]:
    return [query] * limit


@tool
def add(a: int, b: int = 1) -> int:
    return a + b


def is_positive(value: int) -> bool:
    return value > 0


def is_long(text: str) -> bool:
    return len(text) > 80


def length(text: str) -> int:
    return len(text)


qa = Workflow("qa", input=Question).then(reply)
texts = Workflow("texts", input=str)
numbers = Workflow("numbers", input=int)
lists = Workflow("lists", input=list[str])


class Then:
    def what_takes_another_type(self) -> None:
        texts.then(increment)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.then(shorten).then(reply)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.then(count).then(shorten)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        numbers.then(count.with_id("again"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def a_nested_workflow_of_another_type(self) -> None:
        texts.then(qa)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        qa.then(texts)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def what_takes_less_than_it_is_given(self) -> None:
        @step
        def of_answers(values: list[str]) -> str:
            return "".join(values)

        Workflow("w", input=list[str | None]).then(of_answers)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        qa.map(lambda answer: answer.text or None).then(shorten)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def what_is_no_step(self) -> None:
        texts.then(length)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.then("shorten")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def a_result_that_is_taken_for_another(self) -> None:
        wrong: Workflow[str, str] = texts.then(count)  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
        wrong_input: Workflow[int, int] = texts.then(count)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        print(wrong, wrong_input)


class Parallel:
    def a_wrong_arm(self) -> None:
        texts.parallel(shorten, increment)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.parallel(shorten, count, increment)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.parallel(shorten, count, shorten, qa)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.parallel(shorten, count, shorten, count, reply)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.parallel(shorten, shorten, shorten, shorten, shorten, shorten, increment)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def a_step_that_takes_another_tuple(self) -> None:
        @step
        def join(parts: tuple[str, str]) -> str:
            return "".join(parts)

        texts.parallel(shorten, count).then(join)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.parallel(shorten, shorten, shorten).then(join)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def a_wrong_option(self) -> None:
        texts.parallel(shorten, count, on_error="ignore")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


class Branch:
    def a_wrong_arm(self) -> None:
        texts.branch((is_long, increment))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.branch((is_long, shorten), (is_long, reply))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.branch((is_long, shorten), default=increment)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def a_wrong_condition(self) -> None:
        texts.branch((is_positive, shorten))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.branch((is_long, shorten), (is_positive, count))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.branch((length, shorten))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.branch((True, shorten))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def a_step_that_takes_one_output_of_two(self) -> None:
        texts.branch((is_long, shorten), default=count).then(shorten)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.branch((is_long, shorten), (is_long, count)).then(increment)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def all_matches_taken_for_one(self) -> None:
        texts.branch((is_long, shorten), mode="all").then(shorten)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def what_is_no_pair(self) -> None:
        texts.branch(shorten)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]

    def a_wrong_option(self) -> None:
        texts.branch((is_long, shorten), mode="some")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


class Foreach:
    def what_is_no_list(self) -> None:
        numbers.foreach(increment)  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        qa.foreach(shorten)  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

    def a_step_for_other_items(self) -> None:
        lists.foreach(increment)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lists.foreach(qa)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def a_step_for_the_whole_list(self) -> None:
        @step
        def join(values: list[str]) -> str:
            return "".join(values)

        lists.foreach(join)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def results_that_are_taken_for_values(self) -> None:
        @step
        def join(values: list[str]) -> str:
            return "".join(values)

        lists.foreach(shorten, on_error="collect").then(join)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def a_value_that_may_be_an_error(self, result: Ok[str] | Err) -> str:
        return result.value  # type: ignore[union-attr]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]


class Loops:
    def a_wrong_body(self) -> None:
        texts.do_while(increment, lambda value: True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
        texts.do_until(qa, lambda value: True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]

    def a_wrong_condition(self) -> None:
        numbers.do_while(increment, is_long)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
        numbers.do_until(increment, is_long)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
        numbers.do_while(increment, lambda value: value.text)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownLambdaType, reportUnknownMemberType]
        numbers.do_until(increment, lambda value: value.bit_length)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType, reportCallIssue]


class Maps:
    def a_function_of_another_type(self) -> None:
        numbers.map(length)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
        qa.map(lambda answer: answer.sources)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownLambdaType, reportUnknownMemberType]

    def a_result_of_another_type(self) -> None:
        texts.map(length).then(shorten)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.map(lambda text: len(text)).then(shorten)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def a_function_of_too_much(self) -> None:
        def of_three(text: str, ctx: StepContext, more: int) -> str:
            return text

        texts.map(of_three)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


class Waits:
    def a_wrong_time(self) -> None:
        texts.sleep("1 s")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
        texts.sleep(lambda text: text)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType, reportCallIssue]
        texts.sleep(is_positive)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
        texts.sleep_until(5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
        texts.sleep_until(lambda text: 5)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType, reportCallIssue]

    def what_follows_an_event(self) -> None:
        texts.wait_for_event("approval", Approval).then(shorten)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def what_a_sleep_gives_is_what_it_was_given(self) -> None:
        texts.sleep(1).then(increment)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts.sleep_until(datetime(2030, 1, 1, tzinfo=UTC)).then(increment)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Steps:
    def calls(self, ctx: StepContext[Deps]) -> None:
        shorten(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        count(5, ctx)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        shorten()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        shorten("", "no context")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    async def results(self) -> None:
        wrong: str = await increment(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        not_awaited: int = increment(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        print(wrong, not_awaited)

    def a_tool(self) -> None:
        add("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        add(c=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    async def a_tool_of_coroutines(self) -> None:
        wrong: str = await search("q")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        not_awaited: list[str] = search("q")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        print(wrong, not_awaited)

    def a_step_of_nothing(self) -> None:
        @step  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
        def nothing() -> int:
            return 1

    def a_step_of_too_much(self) -> None:
        @step  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
        def three(value: int, ctx: StepContext, more: int) -> int:
            return value


class Context:
    def deps(self, ctx: StepContext[Deps], bare: StepContext) -> None:
        wrong: int = ctx.deps.model  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        print(ctx.deps.client)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
        print(bare.deps.model)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
        print(wrong)

    def results(self, ctx: StepContext) -> None:
        wrong: str = ctx.result_of(count)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        maybe: int = ctx.result_of(count, default=None)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        ctx.result_of(length)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
        print(wrong, maybe)

    async def answers(self, ctx: StepContext) -> None:
        wrong: Answer = await ctx.suspend(Question(text="May I?"), resume=Approval)  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
        not_awaited: Approval = ctx.suspend(resume=Approval)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        print((await ctx.suspend("May I?", resume=Approval)).granted)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
        print(wrong, not_awaited)


class Runs:
    async def input_data(self, run: Run[Question, Answer]) -> None:
        await run.start("a question")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await run.start({"text": "a question"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await run.stream(input_data=Answer(text=""))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await run.start()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        await (await qa.create_run()).start(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    async def results(self, run: Run[Question, Answer]) -> None:
        result = await run.start(Question(text=""))
        wrong: str = result.unwrap()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        wrong_result: WorkflowResult[str] = result  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        print(result.unwrap().sources)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
        print((await run.wait()).unwrap().sources)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
        print((await (await run.stream(Question(text=""))).get_workflow_state()).unwrap().sources)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
        print(wrong, wrong_result)

    async def resume(self, run: Run[Question, Answer]) -> None:
        wrong: str = (await run.resume(Approval(approved=True))).unwrap()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        await run.resume(Approval(approved=True), step=length)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await run.resume(Approval(approved=True), step=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        print(wrong)

    def a_run_of_another_workflow(self, run: Run[Question, Answer]) -> None:
        wrong: Run[str, Answer] = run  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        print(wrong)
