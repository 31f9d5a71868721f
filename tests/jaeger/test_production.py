"""The configuration for production: secrets out, the right traces whole, every run counted, nothing lost."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.given import given
from tests.jaeger.programs import BUILD, ROOT, Collector, Jaeger, eventually, validated
from tests.jaeger.search import Search, fetch
from tests.tracing_contract.processes import in_process

PRODUCTION = "collector-config.production.yaml"
Start: TypeAlias = Callable[..., Collector]
ALL = {"SAMPLING_PERCENTAGE": "100", "DECISION_WAIT": "200ms"}


@pytest.fixture
def start(jaeger: Jaeger, tmp_path: Path) -> Iterator[Start]:
    """Starts a Collector with that configuration, with these variables; figures of spans come at once."""
    with ExitStack() as stack:

        def start(to: Jaeger = jaeger, **variables: str) -> Collector:
            at_once: dict[str, Any] = {"connectors": {"spanmetrics": {"metrics_flush_interval": "100ms"}}}
            collector = Collector(tmp_path, PRODUCTION, to.otlp, changes=at_once, **variables)
            return stack.enter_context(collector)

        yield start


@pytest.mark.parametrize("configuration", ["collector-config.yaml", PRODUCTION])
def test_the_collector_finds_no_fault_in_a_configuration(configuration: str) -> None:
    done = validated(given(Collector.variable, BUILD), ROOT / configuration)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_collector_finds_a_fault_where_there_is_one(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text((ROOT / PRODUCTION).read_text().replace("tail_sampling:", "head_sampling:"))
    done = validated(given(Collector.variable, BUILD), broken)
    assert done.returncode == 1
    assert "head_sampling" in done.stderr


# ---------------------------------------------------------------- sampling

RUNS = """
from spanflow import configure_tracing
from tests.jaeger.working import run_all

with configure_tracing():
    show(**asyncio.run(run_all(slow=1.5, waits=4)))
"""
FAILED = """\
invoke_workflow failing  ERROR PermissionError: not today
├── step work
│   └── execute_tool look_up
└── step refuse  ERROR PermissionError: not today"""
SLOW = """\
invoke_workflow fast
├── run.started
├── step work
│   └── execute_tool look_up
└── step settle
    └── execute_tool look_up"""
ASKING = """\
invoke_workflow asking
├── run.started
├── step work
│   └── execute_tool look_up
├── step ask  [suspended]
├── wait ask
├── step ask  [attempt 2]
└── step settle
    └── execute_tool look_up"""


def test_errors_slow_runs_and_those_that_wait_are_kept_whole_the_rest_is_dropped_and_all_are_counted(
    start: Start, search: Search, service: str
) -> None:
    collector = start(SAMPLING_PERCENTAGE="0", DECISION_WAIT="2s", SLOW_MS="1000")
    facts = in_process(RUNS, OTEL_SERVICE_NAME=service, **collector.environment).facts
    ((failed,), (slow,), (asking,)) = facts["failed"], facts["slow"], facts["asking"]
    for trace_id, tree in ((failed, FAILED), (slow, SLOW), (asking, ASKING)):
        eventually(lambda trace_id=trace_id, tree=tree: search.trace(trace_id, raw=True).tree() == tree, what=tree)
        assert search.trace(trace_id).problems() == []
    assert search.find(service) == {failed, slow, asking}  # decided later than the fast ones, and those are not there
    eventually(lambda: calls(collector, service) == {"fast": 4, "failing": 1, "asking": 1})


def calls(collector: Collector, service: str) -> dict[str, int]:
    """Return how many runs the figures of the Collector have, by workflow."""
    pattern = re.compile(r"^spans_calls_total\{(.*)\} (\d+)", re.MULTILINE)
    found: dict[str, int] = {}
    for labels, count in pattern.findall(collector.exposition()):
        if f'service_name="{service}"' in labels and (name := re.search(r'span_name="invoke_workflow (\w+)"', labels)):
            found[name[1]] = found.get(name[1], 0) + int(count)
    return found


def test_a_share_of_the_rest_is_kept(start: Start, search: Search, service: str) -> None:
    collector = start(**ALL)
    facts = in_process(RUNS.replace("1.5, waits=4", "0, waits=0"), OTEL_SERVICE_NAME=service, **collector.environment)
    everything = {trace_id for ids in facts.facts.values() for trace_id in ids}
    assert len(everything) == 6
    eventually(lambda: search.find(service) == everything)


# ---------------------------------------------------------------- redaction

SECRETS = {  # by key
    "password": "hunter-a1",
    "db.password": "hunter-a2",
    "api_key": "hunter-a3",
    "openai.apiKey": "hunter-a4",
    "x-api-key": "hunter-a5",
    "authorization": "hunter-a6",
    "http.request.header.authorization": "hunter-a7",
    "http.request.header.cookie": "hunter-a8",
    "set-cookie": "hunter-a9",
    "access_token": "hunter-b1",
    "refreshToken": "hunter-b2",
    "id_token": "hunter-b3",
    "token": "hunter-b4",
    "x-auth-token": "hunter-b5",
    "client_secret": "hunter-b6",
    "aws.secret.access.key": "hunter-b7",
    "private_key": "hunter-b8",
    "credentials": "hunter-b9",
    "passphrase": "hunter-c1",
    "user.pwd": "hunter-c2",
    "auth": "hunter-c3",
    "session_tokens": "hunter-c4",
    "pin.secret": 48151623,
}
QUOTED = {  # by value, whatever the key
    "note.1": "key sk-proj-hunterd1hunterd1hunterd1 was refused",
    "note.2": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJodW50ZXIifQ.hunter-d2-signature",
    "note.3": "Bearer hunter-d3-hunter",
    "note.4": "paid with 4111 1111 1111 1111",
    "note.5": "postgresql://me:hunter-d5@db/runs",
    "note.6": '{"password": "hunter-d6", "user": "ada"}',
    "note.7": "url?api_key=hunter-d7&x=1",
    "note.8": "ghp_hunterd8hunterd8hunterd8hunterd8",
    "note.9": "AKIAHUNTERD9HUNTERD9",
    "note.10": ["fine", "password=hunter-e1"],
}
FINE = {
    "gen_ai.usage.input_tokens": 1234,
    "gen_ai.usage.output_tokens": 56,
    "gen_ai.usage.cache_read.input_tokens": 7,
    "gen_ai.request.max_tokens": 4096,
    "gen_ai.token.type": "input",
    "token_count": 12,
    "session.id": "s-7",
    "user.id": "u-42",
    "author": "ada",
    "keyboard": "qwerty",
    "feature_flag.ranker": "v2",
    "started": 1795385737123456789,
    "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
    "captured": '{"password":"[redacted]","user":"ada"}',
    "text": "How do I reset my password? The session token expired.",
}
LEAKING = """
from opentelemetry import metrics, trace
from spanflow import TracingOptions, Workflow, configure_tracing, step

@step
async def leak(attributes: dict) -> None:
    span = trace.get_current_span()
    span.set_attributes(attributes)
    span.add_event("noted", attributes)
    metrics.get_meter("shop").create_counter("leaks").add(1, {"token": "hunter-f1", "user": "fine"})
    raise PermissionError("refused: api_key=hunter-f2, Bearer hunter-f3-hunter")

async def main():
    run = await Workflow("leaking", input=dict).then(leak).create_run()
    result = await run.start(given, tracing_options=TracingOptions(metadata={"deploy": {"api_key": "hunter-f4"}}))
    show(trace_id=result.trace_id)

given = json.loads(os.environ["GIVEN"])
with configure_tracing() as setup:
    asyncio.run(main())
"""


@pytest.fixture
def leaked(start: Start, search: Search, jaeger: Jaeger, service: str) -> tuple[Collector, str]:
    """A Collector that has passed on all this, and the id of the trace."""
    collector = start(**ALL)
    ended = in_process(
        LEAKING,
        GIVEN=json.dumps(SECRETS | QUOTED | FINE),
        OTEL_SERVICE_NAME=service,
        OTEL_RESOURCE_ATTRIBUTES="deploy.token=hunter-f5",
        **collector.environment,
    )
    trace_id = ended.facts["trace_id"]
    eventually(lambda: len(search.trace(trace_id, raw=True).spans) == 2)
    return collector, trace_id


def test_no_secret_gets_past_the_collector(leaked: tuple[Collector, str], jaeger: Jaeger) -> None:
    collector, trace_id = leaked
    arrived = fetch(f"{jaeger.url}/api/v3/traces/{trace_id}")
    assert re.findall(r"hunter\W?\w*|48151623|4111[ \d]*", arrived, re.IGNORECASE) == []
    eventually(lambda: "leaks_total" in collector.exposition())
    assert "hunter" not in collector.exposition()
    assert 'user="fine"' in collector.exposition()


def test_token_counts_session_ids_and_all_that_is_no_secret_pass(leaked: tuple[Collector, str], search: Search) -> None:
    _, trace_id = leaked
    span = search.trace(trace_id).one("step leak")
    (noted,) = [event for event in span.events if event.name == "noted"]
    for attributes in (span.attributes, noted.attributes):
        assert {key: attributes.get(key) for key in FINE} == FINE
        assert attributes["note.1"] == "key **** was refused"
        assert attributes["note.6"] == '{"****", "user": "ada"}'
        assert all(attributes[key] == "****" for key in SECRETS)
    assert span.status.description is not None
    assert span.status.description.startswith("refused: ****")
    assert "status.message" not in span.attributes


# ---------------------------------------------------------------- the queue on disk


def test_what_was_taken_while_jaeger_was_down_outlives_the_collector_and_arrives(
    start: Start, service: str, tmp_path: Path
) -> None:
    (tmp_path / "jaeger").mkdir()
    late = Jaeger(tmp_path / "jaeger")
    collector = start(late, **ALL)
    facts = in_process(RUNS.replace("1.5, waits=4", "0, waits=0"), OTEL_SERVICE_NAME=service, **collector.environment)
    everything = {trace_id for ids in facts.facts.values() for trace_id in ids}
    eventually(lambda: "Exporting failed. Will retry" in collector.log)
    collector.kill()
    collector.start()
    with late:
        search = Search(late.url)
        eventually(lambda: search.find(service) == everything)
        for trace_id in everything:
            assert search.trace(trace_id).problems() == []


def test_a_collector_that_is_stopped_judges_what_it_holds_and_keeps_it(
    start: Start, service: str, tmp_path: Path
) -> None:
    (tmp_path / "jaeger").mkdir()
    late = Jaeger(tmp_path / "jaeger")
    collector = start(late, SAMPLING_PERCENTAGE="100", DECISION_WAIT="600s")
    facts = in_process(RUNS.replace("1.5, waits=4", "0, waits=0"), OTEL_SERVICE_NAME=service, **collector.environment)
    everything = {trace_id for ids in facts.facts.values() for trace_id in ids}
    collector.stop()
    collector.start()
    with late:
        eventually(lambda: Search(late.url).find(service) == everything)
