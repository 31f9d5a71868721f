"""The pytest plugin: a ``traces`` fixture, and the tree of a failed test in its report."""

from collections.abc import Generator, Iterator

import pytest

from spanflow.testing.capture import capture_traces
from spanflow.testing.traces import Traces

_TRACES: pytest.StashKey[Traces] = pytest.StashKey()


@pytest.fixture
def traces(request: pytest.FixtureRequest) -> Iterator[Traces]:
    """The spans that this test causes, in memory and apart from those of every other test.

    Example:
        async def test_the_trace_of_an_answer(traces: Traces) -> None:
            run = await qa.create_run()
            await run.start(Question(text="..."))
            traces.assert_complete()
            assert traces.one("step answer").attributes["passages"] == 3
    """
    with capture_traces() as captured:
        request.node.stash[_TRACES] = captured
        yield captured


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    captured = item.stash.get(_TRACES, None)
    if captured is not None and report.when == "call" and report.failed and captured.spans:
        report.sections.append(("Spans of this test", captured.tree(times=True)))
    return report
