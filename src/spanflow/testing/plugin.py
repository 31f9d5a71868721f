"""The pytest plugin: fixtures ``traces`` and ``metrics``, and the tree of a failed test in its report."""

from collections.abc import Generator, Iterator

import pytest

from spanflow.testing.capture import capture_traces
from spanflow.testing.metering import Metrics, capture_metrics
from spanflow.testing.traces import Traces

_TRACES: pytest.StashKey[Traces] = pytest.StashKey()


@pytest.fixture
def traces(request: pytest.FixtureRequest) -> Iterator[Traces]:
    """The spans that this test causes, in memory and apart from those of every other test.

    Name it before fixtures that start runs: what was begun before it belongs to nobody.

    Example:
        from spanflow import Workflow, step
        from spanflow.testing import Traces

        @step
        async def answer(question: str) -> str:
            return f"{question}? Yes."

        async def test_a_question_is_answered_in_one_step(traces: Traces) -> None:
            run = await Workflow("qa", input=str).then(answer).create_run()
            await run.start("Well")
            traces.assert_complete()
            assert traces.tree() == "invoke_workflow qa\\n└── step answer"
    """
    with capture_traces() as captured:
        request.node.stash[_TRACES] = captured
        yield captured


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    """What instruments measure during this test, in memory."""
    with capture_metrics() as captured:
        yield captured


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    captured = item.stash.get(_TRACES, None)
    if captured is not None and report.when == "call" and report.failed and captured.spans:
        report.sections.append(("Spans of this test", captured.tree(times=True)))
    return report
