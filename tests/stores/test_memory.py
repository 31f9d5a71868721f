"""A long journal in memory is packed behind its latest events, and reads as if it were not."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from spanflow import MemoryStore, StepContext, Workflow, step
from spanflow.entries import Entry, RunIds
from spanflow.events import Start, StepFinish, StepResultEvent, StepStart
from spanflow.stores.packing import Block
from spanflow.testing import Traces
from tests.contract.support import recorded
from tests.stores.support import numbered, record, start


def told(entry: Entry) -> tuple[object, ...]:
    return tuple(getattr(entry, name) for name in Entry.__slots__)


class Opaque:
    """What only memory can hold."""


values = st.one_of(st.none(), st.integers(), st.text(), st.builds(Opaque), st.dictionaries(st.text(), st.integers()))
payloads = st.dictionaries(st.sampled_from(["id", "input", "output", "error", "attempt"]), values)
entries = st.builds(
    Entry,
    kind=st.sampled_from([StepStart, StepResultEvent, StepFinish]),
    payload=payloads,
    run=st.sampled_from([RunIds("r", "1" * 32), RunIds("r", "2" * 32, elsewhere=True), RunIds("r", None)]),
    seq=st.just(0),
    timestamp=st.integers(0, 2**62),
    span_id=st.none() | st.integers(1, 2**64 - 1),
    path=st.text(),
    changes=st.none() | payloads,
)


@given(st.lists(entries, min_size=1), st.integers(1, 10**6))
def test_a_block_gives_back_what_it_was_made_of(given: list[Entry], first: int) -> None:
    for seq, entry in enumerate(given, first):
        entry.seq = seq
    assert [told(entry) for entry in Block(given).entries()] == [told(entry) for entry in given]


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8), st.randoms())
async def test_any_page_of_a_long_journal_is_what_was_appended(sizes: list[int], random: Random) -> None:
    store, stored = MemoryStore(), 0
    journal = numbered(start(), *[(StepStart, f"a[{n}]", {"id": "a"}) for n in range(sum(sizes) - 1)])
    for size in sizes:
        batch = journal[stored : stored + size]
        await (store.append("r1", batch, expected_seq=stored) if stored else store.create(record(), batch))
        stored += size
        for _ in range(5):
            after, limit = random.randint(0, stored + 1), random.choice([1, 255, 256, 257, 1000, stored])
            page = await store.read("r1", after=after, limit=limit)
            assert [told(entry) for entry in page] == [told(entry) for entry in journal[:stored][after : after + limit]]


async def test_a_wide_run_can_be_read_from_its_start_when_it_is_over(traces: Traces) -> None:
    @step
    async def mark(number: int, ctx: StepContext) -> Opaque:
        ctx.set_state(last=number)
        return made.setdefault(number, Opaque())

    made: dict[int, Opaque] = {}
    run = await Workflow("wide", input=list[int]).foreach(mark).create_run()
    result = await run.start(list(range(2000)))
    events = await recorded(run)
    assert [event.seq for event in events] == list(range(1, 3 * 2000 + 6))
    assert isinstance(events[0], Start)
    outputs = [event.payload.output for event in events if isinstance(event, StepResultEvent)][:-1]
    assert all(output is made[number] for number, output in enumerate(outputs))
    changed = [event.changes.state[""]["last"] for event in events if event.changes is not None]
    assert changed == list(range(2000))
    assert len(result.unwrap()) == 2000
    traces.assert_complete()
