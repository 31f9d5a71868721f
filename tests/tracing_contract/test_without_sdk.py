"""Without an SDK everything runs and nothing is traced; a disabled SDK and a sampler that says no are as quiet."""

import pytest

from tests.otlp_receiver import OtlpReceiver
from tests.tracing_contract.processes import in_process

RUN = """
import logging
from tests.tracing_contract.scenario import everything, run_everything

logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")

async def main():
    events, result = await run_everything(await everything.create_run())
    return dict(
        status=result.status,
        result=result.result,
        trace_ids=sorted({str(event.trace_id) for event in events} | {str(result.trace_id)}),
        span_ids=len({event.span_id for event in events} - {None}),
        counted=events[-1].payload.counts.spans,
        spanless=len([event for event in events if event.span_id is None]),
        events=len(events),
    )
"""

LOADED = """
def loaded(*names):
    return sorted(name for name in sys.modules if name.split(".")[0] in names or name.startswith(names))
"""


@pytest.mark.parametrize("module", ["spanflow", "spanflow.runtime", "spanflow.logs"])
def test_importing_spanflow_imports_neither_the_sdk_nor_any_extra(module: str) -> None:
    heavy = (
        *("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "grpc", "google", "requests"),
        *("rich", "typer", "click", "psycopg", "psycopg_pool", "temporalio", "pydantic_ai"),
        *("pytest", "_pytest", "starlette", "uvicorn"),
    )
    shown = in_process(f"{LOADED}\nimport {module}\nshow(loaded=loaded{heavy})")
    assert shown.facts["loaded"] == []


def test_everything_runs_without_a_provider_and_says_that_nothing_is_traced() -> None:
    shown = in_process(RUN + LOADED + 'show(**asyncio.run(main()), loaded=loaded("opentelemetry.sdk", "grpc"))')
    events = shown.facts.pop("events")
    assert events > 70
    assert shown.facts == {
        "status": "success",
        "result": 7,
        "trace_ids": ["None"],
        "span_ids": 0,
        "spanless": events,
        "counted": 0,
        "loaded": [],
    }
    assert shown.stderr == ""


def test_the_trace_id_of_a_stream_is_none_only_without_a_provider() -> None:
    shown = in_process("""
        from spanflow import Workflow, step

        @step
        async def look(value: int) -> int:
            return value

        async def trace_id():
            stream = await (await Workflow("quiet", input=int).then(look).create_run()).stream(1)
            result = await stream.get_workflow_state()
            assert stream.trace_id == result.trace_id
            return stream.trace_id

        before = asyncio.run(trace_id())
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        trace.set_tracer_provider(TracerProvider())
        show(before=before, after=asyncio.run(trace_id()))
    """)
    assert shown.facts["before"] is None
    assert len(bytes.fromhex(shown.facts["after"])) == 16


def test_a_run_travels_in_time_without_a_provider_and_is_traced_as_soon_as_there_is_one() -> None:
    shown = in_process("""
        from spanflow import TracingOptions, Workflow, step
        from spanflow.testing import capture_traces

        @step
        async def look(value: int) -> int:
            return value

        async def main():
            run = await Workflow("quiet", input=int).then(look).create_run()
            await run.start(1, tracing_options=TracingOptions(metadata={"flag": "v2"}))
            first = await run.time_travel(look)
            with capture_traces() as traces:
                second = await run.time_travel(look)
                results = [(await each.wait()).unwrap() for each in (first, second)]
                traces.assert_complete()
                tree = traces.tree(attributes=["flag"])
            show(results=results, first=first.trace_id, traced=second.trace_id is not None, tree=tree)

        asyncio.run(main())
    """)
    tree = "invoke_workflow quiet  [flag=v2]\n└── step look"
    assert shown.facts == {"results": [1, 1], "first": None, "traced": True, "tree": tree}
    assert shown.stderr == ""


def test_the_current_span_takes_what_it_is_given_without_a_provider() -> None:
    shown = in_process("""
        from opentelemetry import trace
        from spanflow import StepContext, Workflow, step

        @step
        def inside(value: int, ctx: StepContext) -> list[bool]:
            span = ctx.tracing_context.current_span
            span.set_attribute("passages", value)
            span.add_event("read")
            with trace.get_tracer("user").start_as_current_span("mine") as mine:
                return [span.is_recording(), mine.is_recording(), mine.get_span_context().is_valid]

        async def main():
            return await (await Workflow("quiet", input=int).then(inside).create_run()).start(3)

        show(recording=asyncio.run(main()).unwrap())
    """)
    assert shown.facts["recording"] == [False, False, False]
    assert shown.stderr == ""


def test_a_failure_is_as_clear_without_a_provider() -> None:
    shown = in_process("""
        from spanflow import Workflow
        from tests.tracing_contract.scenario import flaky

        async def main():
            nested = Workflow("inner", input=int).then(flaky.with_id("once"))
            run = await Workflow("outer", input=int).then(nested).branch((lambda v: 1 / 0, flaky)).create_run()
            return await run.start(1)

        result = asyncio.run(main())
        show(status=result.status, error=result.error.type, path=result.error.path)
    """)
    assert shown.facts == {"status": "failed", "error": "ZeroDivisionError", "path": "branch"}
    assert shown.stderr == ""


def test_a_disabled_sdk_exports_nothing_and_everything_runs() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        shown = in_process(
            RUN + "from spanflow import configure_tracing\nwith configure_tracing():\n    show(**asyncio.run(main()))",
            OTEL_SDK_DISABLED="true",
            **receiver.environment,
        )
    assert (shown.facts["status"], shown.facts["result"]) == ("success", 7)
    assert shown.stderr.count("OTEL_SDK_DISABLED=true: nothing is traced. Unset it") == 1
    assert receiver.spans() == []


def test_a_provider_of_the_applications_own_may_be_disabled_too() -> None:
    shown = in_process(
        RUN
        + """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
show(**asyncio.run(main()))
""",
        OTEL_SDK_DISABLED="true",
    )
    assert (shown.facts["status"], shown.facts["trace_ids"]) == ("success", ["None"])


@pytest.mark.parametrize("sampler", ["always_off", "parentbased_always_off"])
def test_an_unsampled_run_has_its_ids_and_exports_nothing(sampler: str) -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        shown = in_process(
            RUN
            + """
from opentelemetry import trace
from spanflow import configure_tracing
with configure_tracing() as setup:
    facts = asyncio.run(main())
    show(**facts, flushed=setup.flush())
""",
            OTEL_TRACES_SAMPLER=sampler,
            **receiver.environment,
        )
    facts = shown.facts
    assert (facts["status"], facts["result"], facts["flushed"]) == ("success", 7, True)
    assert shown.stderr.count(f"OTEL_TRACES_SAMPLER={sampler}: no trace is sampled") == 1
    (trace_id,) = facts["trace_ids"]
    assert len(bytes.fromhex(trace_id)) == 16
    assert facts["spanless"] == 0
    assert receiver.spans() == []


def test_the_finish_of_an_unsampled_run_counts_no_spans() -> None:
    shown = in_process(
        RUN + "from spanflow import configure_tracing\nconfigure_tracing()\nshow(**asyncio.run(main()))",
        OTEL_TRACES_SAMPLER="always_off",
        OTEL_TRACES_EXPORTER="none",
    )
    assert shown.facts["counted"] == 0


def test_a_run_below_an_unsampled_parent_exports_nothing() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        shown = in_process(
            RUN
            + """
from opentelemetry import propagate
from opentelemetry import context
from spanflow import configure_tracing
parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}

async def below():
    context.attach(propagate.extract(parent))
    return await main()

with configure_tracing() as setup:
    facts = asyncio.run(below())
    show(**facts, flushed=setup.flush())
""",
            **receiver.environment,
        )
    assert shown.facts["trace_ids"] == ["0af7651916cd43dd8448eb211c80319c"]
    assert shown.facts["status"] == "success"
    assert receiver.spans() == []
