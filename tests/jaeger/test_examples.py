"""What the examples run is found in Jaeger by what a person knows of it, and looks there as it did in the terminal."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.durable import test_example as durable
from tests.jaeger.programs import Collector, Jaeger, eventually
from tests.jaeger.ran import FAILING, SERVER, SUCCEEDING
from tests.jaeger.search import Search
from tests.test_examples import EXAMPLES, PROMISES, run
from tests.tracing_contract.processes import in_process

SCRIPT = """
from spanflow import configure_tracing
from tests.jaeger.ran import run_examples

with configure_tracing():
    show(**asyncio.run(run_examples()))
"""
SERVICES = {
    "approval.py": "refunds",
    "containers.py": "shop",
    "quickstart.py": "quickstart",
    "streaming_tool.py": "checksum",
}


@dataclass(frozen=True, slots=True)
class Ran:
    """The examples' traces, all of one service: ids by example."""

    service: str
    succeeded: Mapping[str, str]
    failed: Mapping[str, str]


@pytest.fixture(scope="module")
def ran(collector: Collector, search: Search, badger: Jaeger) -> Ran:
    service = f"examples-{uuid4().hex[:8]}"
    facts = in_process(SCRIPT, OTEL_SERVICE_NAME=service, **collector.environment).facts
    ran = Ran(service, facts["succeeded"], facts["failed"])
    everything = {*ran.succeeded.values(), *ran.failed.values()}
    for kept in (search, Search(badger.url)):
        eventually(lambda kept=kept: kept.find(service) == everything, what="all traces are there")
    return ran


@pytest.fixture(params=["memory", "badger"])
def kept(request: pytest.FixtureRequest, search: Search, badger: Jaeger) -> Search:
    """A Jaeger that keeps its traces there."""
    return search if request.param == "memory" else Search(badger.url)


def test_every_example_is_looked_for() -> None:
    assert {path.name for path in EXAMPLES.rglob("*.py")} == {*SUCCEEDING, SERVER}


@pytest.mark.parametrize(
    "wanted",
    [
        {"user.id": "u-42"},
        {"session.id": "s-7"},
        {"feature_flag.style": "plain"},
        {"user.id": "u-42", "session.id": "s-7", "feature_flag.style": "plain"},
    ],
    ids=lambda wanted: "+".join(wanted),
)
def test_every_run_is_found_by_who_it_was_for(ran: Ran, kept: Search, wanted: Mapping[str, str]) -> None:
    assert kept.find(ran.service, wanted) == {*ran.succeeded.values(), *ran.failed.values()}


def test_a_run_is_found_by_a_key_of_nested_metadata(ran: Ran, kept: Search) -> None:
    found = kept.find(ran.service, {"customer.tier": "gold"})
    assert found == {*ran.succeeded.values(), *ran.failed.values()} - {ran.succeeded[SERVER]}


@pytest.mark.parametrize("wanted", [{"user.id": "u-43"}, {"session.id": "s"}, {"user.id": "u-42", "session.id": "s-8"}])
def test_nothing_is_found_by_what_no_run_has(ran: Ran, kept: Search, wanted: Mapping[str, str]) -> None:
    assert kept.find(ran.service, wanted) == set()


def test_failed_runs_are_found_by_their_error_type(ran: Ran, kept: Search) -> None:
    assert kept.find(ran.service, {"error.type": "LookupError"}) == {ran.failed["containers.py"]}
    assert kept.find(ran.service, {"error.type": "FileNotFoundError"}) == {ran.failed["streaming_tool.py"]}


def test_just_the_failed_runs_are_found_by_error_true(ran: Ran, badger: Jaeger) -> None:
    # Not in memory: that storage of Jaeger 2.13 takes the text "true" of a search for false (mended in later ones).
    assert ran.failed.keys() == FAILING.keys()
    assert Search(badger.url).find(ran.service, {"error": "true"}) == set(ran.failed.values())


def test_a_run_is_found_by_its_workflow_and_id(ran: Ran, kept: Search) -> None:
    checkout = {ran.succeeded["containers.py"], ran.failed["containers.py"]}
    assert kept.find(ran.service, name="invoke_workflow checkout") == checkout
    assert kept.find(ran.service, {"gen_ai.workflow.name": "checkout"}) == checkout
    trace_id = ran.succeeded["containers.py"]
    run_id = kept.trace(trace_id).one("invoke_workflow checkout").attributes["spanflow.run.id"]
    assert kept.find(ran.service, {"spanflow.run.id": str(run_id)}) == {trace_id}


def test_every_trace_is_whole(ran: Ran, kept: Search) -> None:
    for trace_id in (*ran.succeeded.values(), *ran.failed.values()):
        trace = kept.trace(trace_id)
        assert trace.problems() == [], trace.tree(times=True)


def test_names_are_few_and_say_what_is_done(ran: Ran, search: Search) -> None:
    names = {span.name for trace_id in ran.succeeded.values() for span in search.trace(trace_id).spans}
    assert {name.split()[0] for name in names} == {
        "POST", "execute_tool", "foreach", "invoke_workflow", "run.started", "step", "wait"
    }  # fmt: skip
    assert not [name for name in names if any(character.isdigit() for character in name)]


def test_no_span_of_a_step_has_more_than_ten_attributes(ran: Ran, search: Search) -> None:
    for trace_id in ran.succeeded.values():
        for span in search.trace(trace_id).spans:
            assert len(span.attributes) <= 10, span


def test_an_error_is_red_where_it_happened_and_above_and_is_told_once(ran: Ran, search: Search) -> None:
    trace = search.trace(ran.failed["containers.py"])
    red = {span.name for span in trace.spans if not span.status.is_unset}
    assert red == {"invoke_workflow checkout", "foreach price", "step price"}
    assert [span.name for span in trace.spans if span.events] == ["step price"]
    (event,) = trace.one("step price").events
    assert (event.name, event.attributes["exception.type"]) == ("exception", "LookupError")
    assert trace.one("step price").status.description == "We have no kiwi. We have apple, pear, melon."


def test_a_run_of_a_request_hangs_below_it(ran: Ran, search: Search) -> None:
    trace = search.trace(ran.succeeded[SERVER])
    request = trace.one("POST")
    assert request.parent is None
    assert trace.one("invoke_workflow greetings").parent == request.context


@pytest.mark.parametrize("name", sorted(PROMISES))
def test_jaeger_has_the_tree_that_an_example_prints(name: str, collector: Collector, search: Search) -> None:
    done = run(name, answers=PROMISES[name].answers, **collector.environment)
    assert done.status == 0, done.errors
    eventually(lambda: done.trace_id in search.find(SERVICES[name], name=printed_root(done.tree)), what=done.tree)
    trace = search.trace(done.trace_id)
    assert trace.problems() == []
    assert trace.tree(times=True) in done.errors  # durations and all


def printed_root(tree: str) -> str:
    return tree.partition("\n")[0].strip()


def test_a_refund_started_and_approved_by_two_processes_is_one_trace(
    collector: Collector, search: Search, tmp_path: Path
) -> None:
    durable_command = durable.Command(tmp_path, collector.environment)
    started = durable_command("start", "250")
    run_id, trace_id = durable.fact("run_id", started.stdout), durable.fact("trace_id", started.stdout)
    assert durable_command("approve", run_id).returncode == 0
    eventually(lambda: len(search.trace(trace_id, raw=True).spans) == 7)
    trace = search.trace(trace_id)
    assert trace.problems() == []
    assert (
        trace.tree()
        == """\
invoke_workflow refunds
├── run.started
├── step check_account
├── step approve  [suspended]
├── wait approve
├── step approve  [attempt 2]
└── step pay"""
    )
