"""The text tree shows at a glance what happened, and says so when a trace is broken."""

from collections.abc import Mapping
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags

from spanflow.tracing.lines import human_duration
from spanflow.tracing.tree import render

TRACE = 0xABC
MS = 1_000_000


def context(span_id: int, *, trace_id: int = TRACE, remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, span_id, remote, TraceFlags(TraceFlags.SAMPLED))


def span(
    name: str,
    span_id: int,
    parent: int | SpanContext | None = None,
    *,
    start: int = 0,
    ms: int = 1,
    attributes: Mapping[str, str | int] | None = None,
    error: str | None = None,
    links: tuple[Link, ...] = (),
) -> ReadableSpan:
    return ReadableSpan(
        name,
        context=context(span_id),
        parent=context(parent) if isinstance(parent, int) else parent,
        start_time=start * MS,
        end_time=(start + ms) * MS,
        attributes=attributes,
        status=Status(StatusCode.ERROR, error) if error is not None else Status(),
        links=links,
    )


def tree(text: str) -> str:
    return dedent(text).strip("\n")


RUN = [
    span("execute_tool search", 3, 2, start=1, ms=10),
    span("step retrieve", 2, 1, start=1, ms=12),
    span("step answer", 4, 1, start=20, ms=5, attributes={"spanflow.step.attempt": 1}, error="boom"),
    span("step answer", 5, 1, start=30, ms=1170, attributes={"spanflow.step.attempt": 2}),
    span("invoke_workflow qa", 1, ms=1200, attributes={"spanflow.run.status": "success", "user.id": "u-42"}),
]


def test_a_run_is_drawn_with_durations_in_one_column() -> None:
    assert render(RUN) == tree("""
        invoke_workflow qa           1.20 s
        ├── step retrieve             12 ms
        │   └── execute_tool search   10 ms
        ├── step answer                5 ms  ERROR boom
        └── step answer              1.17 s  [attempt 2]
    """)


def test_without_times_nothing_in_the_text_varies() -> None:
    assert render(RUN, times=False) == tree("""
        invoke_workflow qa
        ├── step retrieve
        │   └── execute_tool search
        ├── step answer  ERROR boom
        └── step answer  [attempt 2]
    """)


def test_no_spans_give_no_text() -> None:
    assert render([]) == ""


def test_chosen_attributes_are_shown() -> None:
    assert render(RUN[-1:], times=False, attributes=["user.id", "absent"]) == "invoke_workflow qa  [user.id=u-42]"


def test_an_error_shows_type_and_first_line_of_its_message() -> None:
    failed = span("step a", 1, error="no such file\nmore", attributes={"error.type": "app.errors.Missing"})
    assert render([failed], times=False) == "step a  ERROR app.errors.Missing: no such file"


def test_the_type_is_not_repeated_where_the_message_begins_with_it() -> None:
    failed = span("step a", 1, error="ValueError: bad", attributes={"error.type": "ValueError"})
    assert render([failed], times=False) == "step a  ERROR ValueError: bad"


def test_position_arm_and_status_are_shown() -> None:
    spans = [
        span("invoke_workflow w", 1, attributes={"spanflow.run.status": "canceled"}),
        span("step a", 2, 1, start=1, attributes={"spanflow.foreach.index": 3}),
        span("step b", 3, 1, start=2, attributes={"spanflow.loop.iteration": 2, "spanflow.branch.arm": "left"}),
        span("foreach c", 4, 1, start=3, attributes={"spanflow.succeeded": 8, "spanflow.failed": 2}),
    ]
    assert render(spans, times=False) == tree("""
        invoke_workflow w  [canceled]
        ├── step a[3]
        ├── step b#2  [arm left]
        └── foreach c  [2 failed]
    """)


def test_a_failed_run_is_not_called_failed_twice() -> None:
    failed = span("invoke_workflow w", 1, error="x", attributes={"spanflow.run.status": "failed"})
    assert render([failed], times=False) == "invoke_workflow w  ERROR x"


def test_siblings_that_start_together_are_sorted_by_name_and_index() -> None:
    items = [span("step i", 10 + i, 1, attributes={"spanflow.foreach.index": i}) for i in (10, 2, 1)]
    spans = [*items, span("step b", 3, 1), span("step a", 2, 1), span("root", 1)]
    assert [line.split()[-1] for line in render(spans, times=False).splitlines()] == [
        "root",
        "a",
        "b",
        "i[1]",
        "i[2]",
        "i[10]",
    ]


def test_orphans_are_shown_below_the_parent_they_miss() -> None:
    spans = [span("root", 1), span("a", 2, 99), span("b", 3, 99), span("c", 4, context(98, remote=True))]
    assert render(spans, times=False) == tree("""
        root
        (missing parent)
        ├── a
        └── b
        (remote parent)
        └── c
    """)
    assert "(missing parent 0000000000000063)" in render(spans)


def test_spans_with_one_id_are_all_shown() -> None:
    spans = [span("root", 1), span("a", 2, 1, start=1), span("a again", 2, 1, start=2), span("leaf", 3, 2, start=3)]
    assert render(spans, times=False) == tree("""
        root
        ├── a
        │   └── leaf
        └── a again  [span id not unique]
    """)


def test_spans_that_are_their_own_ancestors_are_shown() -> None:
    assert render([span("a", 1, 2), span("b", 2, 1)], times=False) == tree("""
        (circle of parents)
        └── a
            └── b
    """)


def test_links_name_the_other_trace() -> None:
    linked = span("a", 1, links=(Link(context(7, trace_id=0xDEF)),))
    assert render([linked], times=False) == "a  → link"
    assert render([linked]) == "a  1 ms  → link 00000000000000000000000000000def"


def test_many_items_fold_into_a_count_and_failures_stay() -> None:
    def item(i: int) -> ReadableSpan:
        return span(
            "step price",
            i + 10,
            1,
            start=i,
            attributes={"spanflow.foreach.index": i},
            error="bad price" if i in (400, 700) else None,
        )

    spans = [span("foreach price", 1), *map(item, range(1000)), span("execute_tool fx", 5, 600)]
    assert render(spans, times=False) == tree("""
        foreach price
        ├── step price[0]
        ├── step price[1]
        ├── step price[2]
        ├── step price[3]
        ├── step price[4]
        ├── step price[400]  ERROR bad price
        ├── step price[700]  ERROR bad price
        └── … 993 more foreach items: 993 ok
    """)


def test_failures_fold_too_where_they_are_too_many() -> None:
    spans = [span("root", 1), *(span("step a", i, 1, start=i, error="x") for i in range(2, 202))]
    lines = render(spans, times=False).splitlines()
    assert len(lines) == 1 + 5 + 50 + 1
    assert lines[-1] == "└── … 145 more step a: 0 ok, 145 failed"


def test_a_fold_says_of_what_did_not_come_to_its_end_how_it_stands() -> None:
    stood = {**dict.fromkeys(range(60, 80), "canceled"), **dict.fromkeys(range(80, 90), "suspended"), 90: "running"}
    items = [
        span("step a", i, 1, start=i, attributes={"spanflow.step.status": stood[i]} if i in stood else {})
        for i in range(2, 102)
    ]
    lines = render([span("root", 1), *items], times=False).splitlines()
    assert lines[-1] == "└── … 95 more step a: 64 ok, 20 canceled, 10 suspended, 1 running"


def test_siblings_with_other_names_are_not_folded() -> None:
    spans = [
        span("root", 1),
        *(span("a", i, 1, start=i) for i in range(2, 10)),
        span("b", 50, 1, start=4),
        span("c", 51, 1, start=99),
    ]
    lines = render(spans, times=False, fold_above=6).splitlines()
    assert lines[-3:] == ["├── a", "├── … 3 more a: 3 ok", "└── c"]
    assert "├── b" in lines


def test_only_the_part_below_a_given_span_is_drawn() -> None:
    spans = [span("request", 1), span("run", 2, 77), span("step", 3, 2), span("other", 4)]
    assert render(spans, times=False, root=spans[1]) == tree("""
        run
        └── step
    """)


def test_colours_mark_root_durations_and_errors() -> None:
    text = render([span("run", 1), span("step", 2, 1, error="x")], color=True)
    assert "\x1b[1mrun\x1b[0m" in text
    assert "\x1b[31mERROR x\x1b[0m" in text
    assert "\x1b[2m1 ms\x1b[0m" in text
    assert "\x1b" not in render(RUN)


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in render([span("a\x1b[31m", 1, error="b\x1b[2J")])


def test_a_trace_deeper_than_the_stack_is_drawn() -> None:
    spans = [span("s", i, i - 1 if i > 1 else None) for i in range(1, 1500)]
    assert len(render(spans, times=False).splitlines()) == 1499


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12), st.integers(0, 3)), max_size=25))
def test_every_span_gets_one_line_however_broken_the_trace(edges: list[tuple[int, int, int]]) -> None:
    spans = [span(f"n{i}", own, parent or None, start=at) for i, (own, parent, at) in enumerate(edges)]
    lines = render(spans, times=False).splitlines()
    drawn = sorted(word for line in lines for word in line.split() if word.startswith("n") and word[1:].isdigit())
    assert drawn == sorted(f"n{i}" for i in range(len(edges)))


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 µs"),
        (850_000, "850 µs"),
        (999_600, "1 ms"),
        (12 * MS, "12 ms"),
        (999_600_000, "1.00 s"),
        (1_200 * MS, "1.20 s"),
        (59_999 * MS, "1 min"),
        (185_000 * MS, "3 min 5 s"),
        (3_600_000 * MS, "1 h"),
        (2 * 3_600_000 * MS + 240_000 * MS, "2 h 4 min"),
        (52 * 3_600_000 * MS, "2 d 4 h"),
        (-12 * MS, "-12 ms"),
    ],
)
def test_durations_are_written_for_people(nanoseconds: int, text: str) -> None:
    assert human_duration(nanoseconds) == text
