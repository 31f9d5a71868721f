"""What is wrong with where telemetry goes is said once, with what to change, by a program whose runs do not notice."""

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import certifi
import grpc
import pytest

from tests.otlp_receiver import OtlpReceiver, WireProtocol, free_port
from tests.tracing_contract.processes import in_process

# Long enough for the exporters to say everything they would say, over and over.
PROGRAM = """
import logging
from opentelemetry import metrics
from spanflow import Workflow, configure_tracing, step

@step
async def item(value: int) -> int:
    logging.getLogger("shop").info("checked")
    return value + 1

async def main():
    logging.getLogger("shop").setLevel(logging.INFO)
    workflow = Workflow("one", input=int).then(item)
    for _ in range(4):
        result = await (await workflow.create_run()).start(1)
        setup.flush(0.7)
    return result

with configure_tracing() as setup:
    result = asyncio.run(main())
    show(status=result.status, result=result.result)
"""
PROTOCOLS: list[WireProtocol] = ["grpc", "http/protobuf"]


@dataclass(frozen=True, slots=True)
class Said:
    causes: list[str]
    lost: list[str]


def said_by(environment: dict[str, str]) -> Said:
    """Return the lines that name a cause, and those that count; there are no others."""
    ended = in_process(PROGRAM, **environment)
    assert ended.facts == {"status": "success", "result": 2}
    lines = ended.stderr.splitlines()
    causes = [line for line in lines if "do not get through to" in line]
    lost = [line for line in lines if "spans were dropped" in line]
    assert len(causes) + len(lost) == len(lines), ended.stderr
    return Said(causes, lost)


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> WireProtocol:
    return request.param


def test_an_endpoint_where_nothing_listens_is_said_once(protocol: WireProtocol) -> None:
    place = f"127.0.0.1:{free_port()}"
    said = said_by({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{place}", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
    (line,) = said.causes
    assert line.startswith(f"Spans do not get through to http://{place}")
    assert f"nothing listens on {place}. Start a Collector or Jaeger there, or set OTEL_EXPORTER_OTLP_ENDPOINT" in line
    assert said.lost == ["8 of 8 spans were dropped: 8 were left when tracing was shut down."]


def test_a_password_in_an_endpoint_is_never_said(protocol: WireProtocol) -> None:
    endpoint = f"http://me:geheim@127.0.0.1:{free_port()}"
    said = said_by({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
    (line,) = said.causes
    assert "geheim" not in line


def test_a_host_that_does_not_exist_is_said_once(protocol: WireProtocol) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.invalid:4000", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    (line,) = said_by(endpoint).causes
    assert "no host is called 'collector.invalid'" in line


@pytest.mark.parametrize("endpoint", ["localhost:4000", "http:/localhost:4000", "http://localhost:port"])
def test_an_endpoint_that_is_no_url_is_said_once(protocol: WireProtocol, endpoint: str) -> None:
    (line,) = said_by({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}).causes
    assert f"the endpoint '{endpoint}" in line
    assert "Write it as 'http://localhost:" in line


@pytest.mark.parametrize(("speaks", "asked"), [PROTOCOLS, PROTOCOLS[::-1]])
def test_the_wrong_protocol_on_a_port_is_said_once(speaks: WireProtocol, asked: WireProtocol) -> None:
    with OtlpReceiver(speaks) as receiver:
        said = said_by({**receiver.environment, "OTEL_EXPORTER_OTLP_PROTOCOL": asked})
    (line,) = said.causes
    assert f"Set OTEL_EXPORTER_OTLP_PROTOCOL={speaks}" in line


def test_tls_to_a_plain_port_is_said_once(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        endpoint = receiver.endpoint.replace("http:", "https:")
        (line,) = said_by({**receiver.environment, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}).causes
    assert "the endpoint begins with 'https://'. Write 'http://'." in line


def test_plain_text_to_a_tls_port_is_said_once(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol, tls=True) as receiver:
        endpoint = receiver.endpoint.replace("https:", "http:")
        (line,) = said_by({**receiver.environment, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}).causes
    assert "speaks TLS, and the endpoint begins with 'http://'. Write 'https://'." in line


def test_a_certificate_that_is_not_trusted_is_said_once(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol, tls=True) as receiver:
        (line,) = said_by(receiver.environment).causes
    assert "is not trusted" in line
    assert "OTEL_EXPORTER_OTLP_CERTIFICATE" in line


def test_a_certificate_that_is_trusted_lets_everything_through(protocol: WireProtocol) -> None:
    certificate = Path(__file__).parent.parent / "tls" / "certificate.pem"
    with OtlpReceiver(protocol, tls=True) as receiver:
        trusted = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificate), "REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": ""}
        said = said_by({**receiver.environment, **trusted})
        assert receiver.count() == 8
    assert (said.causes, said.lost) == ([], [])


def test_what_only_the_exporter_knows_is_said_in_its_own_words() -> None:
    certificate = Path(__file__).parent.parent / "tls" / "certificate.pem"
    with OtlpReceiver("http/protobuf", tls=True) as receiver:
        other = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificate), "REQUESTS_CA_BUNDLE": certifi.where()}
        (line,) = said_by({**receiver.environment, **other}).causes
    assert "CERTIFICATE_VERIFY_FAILED" in line
    assert "REQUESTS_CA_BUNDLE" in line


REFUSALS = [
    ("http/protobuf", 401, "it answers 401 Unauthorized. Set its key in OTEL_EXPORTER_OTLP_HEADERS."),
    ("http/protobuf", 404, "it answers 404 Not Found. No OTLP receiver for traces is there"),
    ("http/protobuf", 503, "it answers 503 Service Unavailable. It is overloaded or not ready"),
    ("grpc", grpc.StatusCode.UNAUTHENTICATED, "it answers UNAUTHENTICATED: refused by the test. Set its key in"),
    ("grpc", grpc.StatusCode.UNIMPLEMENTED, "it answers UNIMPLEMENTED: refused by the test. No OTLP receiver"),
    ("grpc", grpc.StatusCode.UNAVAILABLE, "it answers UNAVAILABLE: refused by the test. It is overloaded"),
]


@pytest.mark.parametrize(("protocol", "status", "message"), REFUSALS)
def test_a_receiver_that_refuses_is_said_once(
    protocol: WireProtocol, status: "int | grpc.StatusCode", message: str
) -> None:
    with OtlpReceiver(protocol) as receiver:
        receiver.refuses = status
        said = said_by(receiver.environment)
    (line,) = said.causes
    assert message in line


def test_a_plugin_that_no_exporter_can_be_made_without_is_said_once() -> None:
    credentials = {"OTEL_PYTHON_EXPORTER_OTLP_GRPC_CREDENTIAL_PROVIDER": "nonsense"}
    with OtlpReceiver("grpc", tls=True) as receiver:
        (line,) = said_by({**receiver.environment, **credentials, "OTEL_METRICS_EXPORTER": "none"}).causes
    assert "no exporter can be made" in line
    assert "'nonsense' not found" in line


@pytest.mark.parametrize("file", ["CERTIFICATE", "CLIENT_CERTIFICATE"])
def test_a_certificate_file_that_is_not_there_is_said_once(protocol: WireProtocol, file: str) -> None:
    certificate = Path(__file__).parent.parent / "tls" / "certificate.pem"
    files = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificate), f"OTEL_EXPORTER_OTLP_{file}": "nowhere.pem"}
    with OtlpReceiver(protocol, tls=True) as receiver:
        said = said_by({**receiver.environment, **files, "REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": ""})
    if receiver.count():  # gRPC goes on without one of its own, which this receiver does not ask for
        assert said == Said([], [])
    else:
        (line,) = said.causes
        assert "'nowhere.pem'" in line
        assert f"Correct OTEL_EXPORTER_OTLP_{file}" in line


SIGNALS = [("TRACES", "Spans"), ("METRICS", "Metrics"), ("LOGS", "Log records")]


@pytest.mark.parametrize("set_up", ["", "import logging; logging.basicConfig()\n"], ids=["no logging", "logging"])
@pytest.mark.parametrize(("signal", "words"), SIGNALS)
def test_each_signal_that_does_not_get_through_is_said_once_where_logs_are_exported(
    protocol: WireProtocol, signal: str, words: str, set_up: str
) -> None:
    place = f"127.0.0.1:{free_port()}"
    with OtlpReceiver(protocol) as receiver:
        path = "" if protocol == "grpc" else f"/v1/{signal.lower()}"
        variables = {**receiver.environment, f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT": f"http://{place}{path}"}
        ended = in_process(set_up + PROGRAM.replace("configure_tracing()", "configure_tracing(logs=True)"), **variables)
    assert ended.facts == {"status": "success", "result": 2}
    lines = [line.removeprefix("WARNING:spanflow:") for line in ended.stderr.splitlines() if "INFO:shop" not in line]
    (cause,) = [line for line in lines if "do not get through to" in line]
    assert cause.startswith(f"{words} do not get through to http://{place}{path}: nothing listens on {place}. Start a")
    assert f"OTEL_{signal}_EXPORTER=none sends nothing" in cause
    assert len(lines) == (2 if signal == "TRACES" else 1), ended.stderr  # spans that are lost are counted


@pytest.mark.parametrize(("signal", "words"), SIGNALS[1:])
def test_a_signal_that_a_receiver_refuses_is_said_once_with_how_to_send_none(signal: str, words: str) -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        variables = {**receiver.environment, f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT": f"{receiver.endpoint}/v9"}
        ended = in_process(PROGRAM.replace("configure_tracing()", "configure_tracing(logs=True)"), **variables)
        assert receiver.count() == 8
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"{words} do not get through to {receiver.endpoint}/v9: it answers 404 Not Found.")
    assert f"set OTEL_{signal}_EXPORTER=none" in line


class Page(BaseHTTPRequestHandler):
    """What is for people answers whatever it is asked, and whatever it is sent."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html>")

    def log_message(self, format: str, *args: object) -> None:
        """Keep test output quiet."""


def test_a_web_page_that_answers_with_success_is_said_once_and_what_it_was_sent_is_counted() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        said = said_by({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}"})
        server.shutdown()
    (line,) = said.causes
    assert "it answers with a web page. That is for people, as Jaeger's on port 16686: set OTEL_EXPORTER_OTLP_" in line
    assert sum(int(each.partition(" ")[0]) for each in said.lost) == 8


def test_lines_of_another_exporter_are_not_silenced() -> None:
    port = free_port()
    ended = in_process(
        f"""
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from spanflow import configure_tracing

        with configure_tracing() as setup:
            theirs = OTLPSpanExporter("http://127.0.0.1:{port}/theirs", timeout=0.5)
            setup.provider.add_span_processor(SimpleSpanProcessor(theirs))
            trace.get_tracer("mine").start_span("span").end()
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
    )
    assert "Failed to export spans batch" in ended.stderr
    assert ended.stderr.count("do not get through") == 1
