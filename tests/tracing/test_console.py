"""With the console on, the tree of each finished run appears once, whatever else goes on in its trace."""

import io
import sys

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import Span, Tracer, set_span_in_context

from spanflow.tracing.console import ConsoleTreeProcessor


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Recorded:
    """A provider with the processor under test, and what that printed."""

    def __init__(self, processor: ConsoleTreeProcessor, stream: io.StringIO) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(processor)
        self.ours = self.provider.get_tracer("spanflow")
        self.theirs = self.provider.get_tracer("app")
        self.stream = stream

    @property
    def trees(self) -> list[list[str]]:
        return [tree.splitlines() for tree in self.stream.getvalue().split("\n\n") if tree]


def recorded(stream: io.StringIO | None = None, **limits: int) -> Recorded:
    stream = stream if stream is not None else io.StringIO()
    return Recorded(ConsoleTreeProcessor(stream, **limits), stream)


@pytest.fixture
def console() -> Recorded:
    return recorded()


def start(tracer: Tracer, name: str, parent: Span | None = None, **attributes: str | int) -> Span:
    keys = {key.replace("__", "."): value for key, value in attributes.items()}
    return tracer.start_span(name, set_span_in_context(parent) if parent is not None else None, attributes=keys)


def names_in(tree: list[str]) -> list[str]:
    return [" ".join(line.split("─ ")[-1].split()[:2]) for line in tree[1:]]


def test_a_run_is_printed_when_it_ends(console: Recorded) -> None:
    run = start(console.ours, "invoke_workflow qa", gen_ai__workflow__name="qa", spanflow__run__id="r-1")
    step = start(console.ours, "step a", run, spanflow__step__path="a")
    start(console.theirs, "GET /", step).end()
    step.end()
    assert console.trees == []
    run.set_attribute("spanflow.run.status", "success")
    run.end()
    ((header, *_),) = trees = console.trees
    assert header.startswith("qa · success · ")
    assert "run r-1 · trace " in header
    assert names_in(trees[0]) == ["invoke_workflow qa", "step a", "GET /"]


def test_a_request_span_above_the_run_is_not_waited_for(console: Recorded) -> None:
    request = start(console.theirs, "POST /ask")
    run = start(console.ours, "invoke_workflow qa", request)
    run.end()
    assert names_in(console.trees[0])[0] == "invoke_workflow qa"


def test_two_runs_of_one_request_are_printed_apart(console: Recorded) -> None:
    request = start(console.theirs, "POST /ask")
    first, second = (start(console.ours, f"invoke_workflow {name}", request) for name in "ab")
    steps = [start(console.ours, "step s", run, spanflow__step__path="s") for run in (second, first)]
    for span in (*steps, first, second, request):
        span.end()
    assert [names_in(tree) for tree in console.trees] == [
        ["invoke_workflow a", "step s"],
        ["invoke_workflow b", "step s"],
    ]


def test_nested_runs_are_part_of_the_outermost(console: Recorded) -> None:
    outer = start(console.ours, "invoke_workflow outer")
    step = start(console.ours, "step s", outer, spanflow__step__path="s")
    theirs = start(console.theirs, "their own", step)
    inner = start(console.ours, "invoke_workflow inner", theirs)
    for span in (inner, theirs, step, outer):
        span.end()
    assert [names_in(tree) for tree in console.trees] == [
        ["invoke_workflow outer", "step s", "their own", "invoke_workflow inner"]
    ]


def test_a_nested_run_waits_for_an_outermost_span_that_is_made_only_at_the_end(console: Recorded) -> None:
    run = start(console.ours, "invoke_workflow outer")
    other = recorded()  # the process in which the run is resumed
    inner = start(other.ours, "invoke_workflow inner", run, spanflow__step__path="inner")
    inner.end()
    assert other.trees == []


def test_a_run_inside_a_tool_that_was_called_outside_of_any_run_is_printed(console: Recorded) -> None:
    tool = start(console.ours, "execute_tool t")
    start(console.ours, "invoke_workflow w", tool).end()
    assert names_in(console.trees[0]) == ["invoke_workflow w"]


def test_a_workflow_span_of_another_library_is_no_run(console: Recorded) -> None:
    start(console.theirs, "invoke_workflow x").end()
    assert console.trees == []


def test_a_failed_run_says_so_in_its_header(console: Recorded) -> None:
    run = start(console.ours, "invoke_workflow w", spanflow__run__status="failed")
    run.end()
    assert console.trees[0][0].startswith("w · failed · ")


def test_of_too_many_spans_the_oldest_are_dropped_and_counted() -> None:
    console = recorded(max_spans=10)
    run = start(console.ours, "invoke_workflow w")
    for i in range(30):
        start(console.ours, f"step s{i}", run, spanflow__step__path=f"s{i}").end()
    run.end()
    (tree,) = console.trees
    assert tree[0].endswith("21 spans not shown")
    assert names_in(tree) == ["invoke_workflow w", *(f"step s{i}" for i in range(21, 30))]


def test_of_too_many_traces_the_oldest_is_forgotten() -> None:
    console = recorded(max_traces=2)
    runs = [start(console.ours, f"invoke_workflow w{i}") for i in range(3)]
    for run in runs:
        start(console.ours, "step s", run, spanflow__step__path="s").end()
    for run in reversed(runs):
        run.end()
    assert len(console.trees[0]) == 3


def test_nothing_is_held_after_a_run_or_without_one() -> None:
    processor = ConsoleTreeProcessor(io.StringIO())
    console = Recorded(processor, io.StringIO())
    start(console.theirs, "request").end()
    run = start(console.ours, "invoke_workflow w")
    start(console.theirs, "theirs", run).end()
    run.end()
    assert not processor._traces  # pyright: ignore[reportPrivateUsage]


def test_the_tree_goes_to_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    console = Recorded(ConsoleTreeProcessor(), io.StringIO())
    start(console.ours, "invoke_workflow w").end()
    captured = capsys.readouterr()
    assert "invoke_workflow w" in captured.err
    assert captured.out == ""


def test_colours_are_for_terminals_and_respect_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def printed(stream: io.StringIO) -> str:
        start(recorded(stream).ours, "invoke_workflow w").end()
        return stream.getvalue()

    assert "\x1b[1m" in printed(Terminal())
    assert "\x1b" not in printed(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in printed(Terminal())


def test_a_terminal_without_unicode_gets_question_marks() -> None:
    raw = io.BytesIO()
    console = Recorded(ConsoleTreeProcessor(io.TextIOWrapper(raw, encoding="ascii")), io.StringIO())
    run = start(console.ours, "invoke_workflow w")
    start(console.ours, "step s", run).end()
    run.end()
    assert b"??? step s" in raw.getvalue()


def test_a_broken_terminal_does_not_break_the_run() -> None:
    stream = io.StringIO()
    console = recorded(stream)
    stream.close()
    start(console.ours, "invoke_workflow w").end()


def test_a_span_without_a_context_is_ignored() -> None:
    ConsoleTreeProcessor(sys.stderr).on_end(ReadableSpan("odd"))
