"""What is in the journal is out of the process: no span is lost that the journal says is over."""

from collections.abc import Sequence

from spanflow import MemoryStore
from spanflow.entries import Entry, RunIds
from spanflow.events import StepFinish
from spanflow.journal import Journal
from spanflow.state import RunState


class Witness(MemoryStore):
    """Notes the last event of each append."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[int] = []

    async def append(self, run_id: str, entries: Sequence[Entry], *, expected_seq: int) -> None:
        self.stored.append(entries[-1].seq)


async def test_what_ends_while_earlier_spans_are_exported_is_stored_only_when_its_own_is_out() -> None:
    store, out = Witness(), list[int]()
    journal = Journal(store, RunState(), RunIds("r", None), lambda: None)

    def end_a_step() -> None:
        payload = {"id": "s", "attempt": 1, "duration": 0.0}
        journal.record(StepFinish, payload, "s", 1, 0)

    async def export() -> None:
        """Export the spans of all that has ended by now, while another step ends."""
        ended = journal.state.seq
        if ended == 1:
            end_a_step()
        out.append(ended)

    journal.settle_before_append(export)
    end_a_step()
    await journal.flush()
    assert store.stored == [2]
    assert out == [1, 2]
