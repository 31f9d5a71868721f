"""Go back in a run that has ended: it ends again as it did, and nothing before the point is done again."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id

from spanflow.events import Start
from tests.properties.driving import Story
from tests.properties.events import as_json

MOST = 4  # points of each run


def points_of(story: Story) -> Sequence[str]:
    """Return some of the points to which going back makes no difference, spread over the run.

    That is none where parts of the run raced: one ended it, and others were stopped by that. Who is ahead is another
    matter where only some of them begin again.
    """
    result = story.result
    if result.status != "success" or any(each.status in ("bailed", "canceled") for each in result.steps.values()):
        return ()
    paths = list(result.steps)
    return paths[:: max(1, len(paths) // MOST)][:MOST]


def it_ends_again_as_it_did(story: Story) -> None:
    for point, journey in story.journeys.items():
        result = journey.results[-1]
        assert (result.status, as_json(result.result)) == ("success", as_json(story.result.result)), point
        assert as_json(result.state) == as_json(story.result.state), point
        assert result.steps.keys() == story.result.steps.keys(), point


def what_is_taken_over_is_not_done_again(story: Story) -> None:
    for point, journey in story.journeys.items():
        first, *rest = journey.recorded
        assert isinstance(first, Start)
        own = [event for event in rest if event.trace_id == first.trace_id]
        taken = [event for event in rest if event.trace_id != first.trace_id]
        assert rest == [*taken, *own]
        assert point in {event.path for event in own}
        done = {event.path for event in taken if event.type == "step-start"}
        assert not done & journey.executed, point
        assert not done & {event.path for event in own if event.type == "step-start"}, point
        known = {(e.type, e.path, e.timestamp, e.span_id) for e in story.recorded}
        assert {(e.type, e.path, e.timestamp, e.span_id) for e in taken} <= known


def each_trace_is_whole(story: Story) -> None:
    """Each journey is a trace with one root, that is linked to the first, and no orphan."""
    trace_ids = [story.recorded[0].trace_id, *(each.recorded[0].trace_id for each in story.journeys.values())]
    assert len(set(trace_ids)) == len(trace_ids)
    for trace_id in trace_ids:
        spans = [span for span in story.spans if format_trace_id(context_of(span).trace_id) == trace_id]
        ids = [context_of(span).span_id for span in spans]
        assert len(set(ids)) == len(ids)
        (root,) = [span for span in spans if span.parent is None]
        assert all(span.parent is None or span.parent.span_id in ids for span in spans)
        linked = [format_span_id(link.context.span_id) for link in root.links]
        assert linked == ([] if trace_id == trace_ids[0] else [story.recorded[0].span_id])


def context_of(span: ReadableSpan) -> SpanContext:
    assert span.context is not None
    return span.context
