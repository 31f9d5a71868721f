"""The pytest plugin, in sessions and processes of their own."""

from inspect import cleandoc

import pytest

from spanflow.testing import plugin

pytest_plugins = ("pytester",)

INI = """
    [pytest]
    asyncio_mode = auto
    asyncio_default_fixture_loop_scope = function
    filterwarnings = error
"""
WORKFLOW = """
    import sys
    import pytest
    from opentelemetry import trace
    from spanflow import Workflow, step

    @step
    async def increment(value: int) -> int:
        return value + 1

    async def count(id: str) -> None:
        await (await Workflow(id, input=int).then(increment).create_run()).start(1)
"""


def session(pytester: pytest.Pytester, tests: str, *, conftest: str = "") -> pytest.RunResult:
    """Run tests in a process of their own, with the plugin as users have it."""
    pytester.makeini(cleandoc(INI))
    pytester.makeconftest(cleandoc(conftest))
    pytester.makepyfile(cleandoc(WORKFLOW) + "\n\n" + cleandoc(tests))
    return pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")


def test_each_test_of_a_session_has_its_own_spans_and_a_failed_one_shows_them(pytester: pytest.Pytester) -> None:
    result = session(
        pytester,
        """
        async def test_before(traces):
            await count("first")
            trace.get_tracer("app").start_span("open and forgotten")
            assert traces.tree() == "invoke_workflow first\\n└── step increment"

        async def test_without():
            await count("unseen")

        @pytest.mark.parametrize("number", [1, 2])
        async def test_after(traces, number):
            assert traces.spans == traces.open == ()
            await count(f"number {number}")
            traces.assert_complete()
            assert traces.tree() == f"invoke_workflow number {number}\\n└── step increment"

        async def test_that_fails(traces):
            await count("doomed")
            raise RuntimeError("as it must")

        async def test_that_fails_without_spans(traces):
            raise RuntimeError("as it must")
        """,
    )
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(["*Spans of this test*", "invoke_workflow doomed*", "└── step increment *[mµ]s"])
    assert str(result.stdout).count("Spans of this test") == 1


def test_a_session_that_does_not_ask_for_traces_pays_nothing_for_them(pytester: pytest.Pytester) -> None:
    result = session(
        pytester,
        """
        def test_nothing_is_imported_and_nothing_is_set():
            assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
            assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)

        async def test_a_run_is_untraced():
            run = await Workflow("w", input=int).then(increment).create_run()
            assert (await run.start(1)).trace_id is None
        """,
    )
    result.assert_outcomes(passed=2)


def test_a_provider_of_the_application_is_used_and_gets_its_spans_as_before(pytester: pytest.Pytester) -> None:
    result = session(
        pytester,
        """
        from conftest import exporter, provider

        async def test_traces(traces):
            await count("shared")
            traces.assert_complete()
            assert trace.get_tracer_provider() is provider
            assert {span.name for span in exporter.get_finished_spans()} == {span.name for span in traces.spans}
            assert traces.spans[0].resource.attributes["service.name"] == "shop"
        """,
        conftest="""
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter = InMemorySpanExporter()
        provider = TracerProvider(resource=Resource({"service.name": "shop"}))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        """,
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("conftest", "text"),
    [
        (
            """
            from opentelemetry import trace
            trace.set_tracer_provider(trace.NoOpTracerProvider())
            """,
            "*SpanflowError: Spans cannot be captured: *NoOpTracerProvider*not the SDK's*",
        ),
        (
            """
            import os
            os.environ["OTEL_SDK_DISABLED"] = "true"
            """,
            "*SpanflowError: Spans cannot be captured: the SDK is disabled. Unset OTEL_SDK_DISABLED*",
        ),
    ],
    ids=["a provider of another kind", "the SDK is disabled"],
)
def test_where_spans_cannot_be_captured_the_fixture_says_why(
    pytester: pytest.Pytester, conftest: str, text: str
) -> None:
    result = session(pytester, "def test_nothing(traces): pass", conftest=conftest)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([text])


def test_metrics_cannot_be_captured_beside_another_meter_provider(pytester: pytest.Pytester) -> None:
    result = session(
        pytester,
        """
        def test_refused(metrics): pass

        async def test_traces_are_captured_all_the_same(traces):
            await count("seen")
            traces.assert_complete()
        """,
        conftest="""
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider

        metrics.set_meter_provider(MeterProvider())
        """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*SpanflowError: Metrics cannot be captured: this process has a meter provider*"])


def test_a_sampler_from_the_environment_hides_no_span(pytester: pytest.Pytester) -> None:
    result = session(
        pytester,
        """
        async def test_traces(traces):
            await count("seen")
            traces.assert_complete()
        """,
        conftest="""
        import os
        os.environ["OTEL_TRACES_SAMPLER"] = "always_off"
        """,
    )
    result.assert_outcomes(passed=1)


def test_the_example_of_the_fixture_passes(pytester: pytest.Pytester) -> None:
    example = cleandoc(plugin.traces.__doc__ or "").partition("Example:")[2]
    result = session(pytester, cleandoc(example))
    result.assert_outcomes(passed=1)
