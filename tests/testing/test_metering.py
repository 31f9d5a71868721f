"""Metrics: what instruments measured during one test, and not before."""

import pytest
from opentelemetry import metrics as api

from spanflow import Workflow, step
from spanflow.testing import Metrics, Traces, capture_metrics

meter = api.get_meter("app")
orders = meter.create_counter("app.orders", unit="{order}")
size = meter.create_histogram("app.size", unit="By")
level = meter.create_up_down_counter("app.level")


@step
async def increment(value: int) -> int:
    return value + 1


async def count(value: int = 1) -> None:
    await (await Workflow("numbers", input=int).then(increment).create_run()).start(value)


def test_values_are_added_up_by_name_and_attributes(metrics: Metrics) -> None:
    orders.add(2, {"shop": "a"})
    orders.add(3, {"shop": "a"})
    orders.add(7, {"shop": "b"})
    assert metrics.one("app.orders", {"shop": "a"}).sum == 5
    assert metrics.one("app.orders", {"shop": "b"}).sum == 7
    assert [each.sum for each in metrics.find("app.*", {"shop": ...})] == [5, 7]
    assert metrics.one("app.orders", {"shop": "b"}).unit == "{order}"


def test_what_was_read_before_is_kept_and_does_not_change(metrics: Metrics) -> None:
    size.record(100)
    before = metrics.one("app.size")
    size.record(23)
    after = metrics.one("app.size")
    assert (before.count, before.sum) == (1, 100)
    assert (after.count, after.sum) == (2, 123)


def test_what_goes_up_and_down_is_summed_to_its_change(metrics: Metrics) -> None:
    level.add(5)
    level.add(-3)
    assert metrics.one("app.level").sum == 2


def test_each_block_begins_with_nothing() -> None:
    with capture_metrics():
        orders.add(1, {"shop": "c"})
    orders.add(1, {"shop": "c"})
    with capture_metrics() as measured:
        assert measured.find() == ()
        orders.add(1, {"shop": "c"})
        assert measured.one("app.orders").sum == 1


def test_what_is_not_there_is_an_error_that_lists_what_is(metrics: Metrics) -> None:
    with pytest.raises(AssertionError, match=r"'app.size' with \{'a': 1\}, found 0 in\n\(nothing measured\)"):
        metrics.one("app.size", {"a": 1})
    orders.add(1, {"shop": "a"})
    orders.add(1, {"shop": "b"})
    with pytest.raises(AssertionError, match=r"(?s)'app.orders', found 2 in.*app.orders.*'shop': 'a'.*'shop': 'b'"):
        metrics.one("app.orders")


async def test_durations_of_a_run_point_to_their_spans(metrics: Metrics, traces: Traces) -> None:
    await count()
    await count()
    measured = metrics.one("spanflow.step.duration", {"spanflow.step.id": "increment"})
    assert (measured.count, measured.unit) == (2, "s")
    spans = {(span.context.trace_id, span.context.span_id) for span in traces.find("step increment") if span.context}
    assert measured.exemplars
    assert {(each.trace_id, each.span_id) for each in measured.exemplars} <= spans
    assert metrics.one("gen_ai.invoke_workflow.duration").count == 2
    assert metrics.one("spanflow.runs.active").sum == 0
