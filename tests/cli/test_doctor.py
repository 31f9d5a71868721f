"""`spanflow doctor`: the cause and what to change, by the exit code too."""

import re
from typing import Any

import pytest

from spanflow import SQLiteStore
from spanflow.events import Counts
from tests.cli.command import Spanflow
from tests.otlp_receiver import OtlpReceiver, WireProtocol
from tests.stores.support import created, finish

QUIET = {"SPANFLOW_STORE": "", "OTEL_TRACES_EXPORTER": "", "OTEL_SERVICE_NAME": "shop"}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_all_is_well_with_a_receiver_that_takes_the_test_span(empty: Spanflow, protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        done = empty("doctor", "--send", **QUIET, **receiver.environment)
        (span,) = receiver.spans()
    assert (done.code, done.err) == (0, "")
    assert done.lines[-1] == "All is well."
    assert f"ok     test span    was accepted: trace {span.trace_id}" in done.lines
    assert "WRONG" not in done.out
    assert span.resource["service.name"] == "shop"


def test_what_is_wrong_is_said_with_what_to_change(empty: Spanflow) -> None:
    with OtlpReceiver("grpc") as receiver:
        done = empty("doctor", "--endpoint", receiver.endpoint, "--protocol", "http/protobuf", **QUIET)
    assert (done.code, done.err) == (1, "")
    wrong = [line for line in done.lines if line.startswith("WRONG")]
    (port,) = re.findall(r":(\d+)$", receiver.endpoint)
    assert wrong == [f"WRONG  receiver     127.0.0.1:{port} speaks gRPC, and the exporter OTLP over HTTP."]
    advice = done.lines[done.lines.index(wrong[0]) + 1]
    assert advice.strip().startswith("Set OTEL_EXPORTER_OTLP_PROTOCOL=grpc")
    assert done.lines[-1] == "1 thing keeps traces from showing up as they should."


def test_json_is_one_document(empty: Spanflow) -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        found: dict[str, Any] = empty("doctor", "--send", "--json", **QUIET, **receiver.environment).json
        (span,) = receiver.spans()
        off = empty("doctor", "--json", **QUIET, **receiver.environment, OTEL_SDK_DISABLED="true")
    assert (found["ok"], found["trace_id"]) == (True, span.trace_id)
    assert {check["name"] for check in found["checks"]} >= {"sdk", "provider", "exporter", "endpoint", "receiver"}
    assert off.code == 1
    assert '"ok": false' in off.out


def test_the_provider_of_an_application_is_looked_at(empty: Spanflow) -> None:
    (empty.folder / "own.py").write_text(
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider())\n"
    )
    with OtlpReceiver("http/protobuf") as receiver:
        done = empty("doctor", "--app", "own:app", **QUIET, **receiver.environment)
    assert done.code == 1
    assert (
        "WRONG  provider     opentelemetry.sdk.trace.TracerProvider, of the application, has no span processor"
        in done.out
    )
    broken = empty("doctor", "--app", "nowhere:app", **QUIET)
    assert (broken.code, broken.out) == (2, "")


async def test_spans_that_runs_of_a_store_have_lost_are_counted(empty: Spanflow) -> None:
    store = SQLiteStore(empty.database)
    await created(store, "r-1", finish())
    with OtlpReceiver("http/protobuf") as receiver:
        variables = {**QUIET, "SPANFLOW_STORE": str(empty.database), **receiver.environment}
        well = empty("doctor", **variables)
        kind, path, payload = finish()
        await created(store, "r-2", (kind, path, {**payload, "counts": Counts(steps=1, spans=3, spans_dropped=7)}))
        lost = empty("doctor", **variables)
    await store.aclose()
    assert well.code == 0, well.out
    assert "ok     lost spans   none by the end of any of the last 1 runs in this store" in well.out
    assert lost.code == 1
    assert "WRONG  lost spans   7, in 1 of the last 2 runs: r-2." in lost.lines


@pytest.mark.parametrize("wrong", [["--protocol", "thrift"], ["--store", "nowhere.db"]])
def test_what_cannot_be_meant_is_code_2(empty: Spanflow, wrong: list[str]) -> None:
    done = empty("doctor", *wrong, **QUIET)
    assert done.code == 2
    assert "Traceback" not in done.err
