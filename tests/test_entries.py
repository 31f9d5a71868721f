"""A line of the journal becomes an event of its own."""

from spanflow.entries import Entry, RunIds
from spanflow.events import Event, Start

IDS = RunIds("run", "a" * 32)


def start_of_a_resumed_stretch(seq: int) -> Event:
    """Return a start that names no metadata, as those of resumed stretches do not."""
    return Entry(Start, {"workflow_id": "w"}, IDS, seq, 1, None, "").event


def test_what_a_reader_does_to_one_event_shows_in_no_other() -> None:
    first, second = start_of_a_resumed_stretch(1), start_of_a_resumed_stretch(2)
    assert isinstance(first, Start)
    assert isinstance(second, Start)
    first.payload.metadata["mine"] = True
    assert second.payload.metadata == {}
