"""An endpoint that takes no spans is told apart by its cause, and each cause comes with what to change."""

import os
import socket
import threading
from base64 import b64encode
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest

from spanflow.tracing.diagnosis import diagnose, explain_refusal
from spanflow.tracing.environment import Destination, Protocol, Signal, destination_of
from spanflow.tracing.wire import Finding
from tests.otlp_receiver import OtlpReceiver, free_port

CERTIFICATE = str(Path(__file__).parent.parent / "tls" / "certificate.pem")
PROTOCOLS: list[Protocol] = ["grpc", "http/protobuf"]


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return request.param


@pytest.fixture(autouse=True)
def _no_proxy_and_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@contextmanager
def listening(answer: bytes | None, asked: list[bytes] | None = None) -> Generator[str]:
    """Something that is no OTLP receiver: it says ``answer`` and hangs up, or, with None, never says a word."""
    held: list[socket.socket] = []
    heard: list[bytes] = [] if asked is None else asked
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    if answer is None:
                        held.append(connection)
                        continue
                    with connection:
                        heard.append(connection.recv(4096))
                        connection.sendall(answer)
            except OSError:  # the test is over
                pass

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


def to(endpoint: str, protocol: Protocol) -> Destination:
    """Where spans go by a base URL."""
    return destination_of("TRACES", protocol, endpoint, [])


def test_a_receiver_is_found_to_take_spans_and_gets_none(protocol: Protocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        finding = diagnose(to(receiver.endpoint, protocol))
    assert finding.ok
    assert finding.advice == ""
    assert receiver.requests == 1, "one question"
    assert receiver.spans() == []


def test_a_receiver_behind_tls_is_found_to_take_spans(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", CERTIFICATE)
    with OtlpReceiver(protocol, tls=True) as receiver:
        assert diagnose(to(receiver.endpoint, protocol)).ok


def test_a_certificate_of_an_unknown_authority_is_named(protocol: Protocol) -> None:
    with OtlpReceiver(protocol, tls=True) as receiver:
        finding = diagnose(to(receiver.endpoint, protocol))
    assert "is not trusted: self-signed certificate" in finding.cause
    assert "OTEL_EXPORTER_OTLP_CERTIFICATE" in finding.advice


def test_a_certificate_file_that_is_not_there_is_named(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "nowhere.pem")
    with OtlpReceiver(protocol, tls=True) as receiver:
        assert "'nowhere.pem' cannot be read: No such file" in diagnose(to(receiver.endpoint, protocol)).cause


def test_a_port_where_nothing_listens_is_named(protocol: Protocol) -> None:
    port = free_port()
    finding = diagnose(to(f"http://127.0.0.1:{port}", protocol))
    assert not finding.ok
    assert finding.cause == f"nothing listens on 127.0.0.1:{port}"
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in finding.advice


def test_a_host_that_does_not_exist_is_named() -> None:
    assert (
        "no host is called 'collector.invalid'" in diagnose(to("http://collector.invalid:4318", "http/protobuf")).cause
    )


@pytest.mark.parametrize(
    "endpoint", ["localhost:4318", "ftp://localhost", "http://", "http://localhost:none", "http://[::1"]
)
def test_an_endpoint_that_is_no_url_is_named_with_one_that_is(endpoint: str, protocol: Protocol) -> None:
    finding = diagnose(Destination("TRACES", endpoint, protocol))
    assert repr(endpoint) in finding.cause
    assert f"'http://localhost:{4317 if protocol == 'grpc' else 4318}'" in finding.advice


@pytest.mark.parametrize(("speaks", "asked"), [PROTOCOLS, PROTOCOLS[::-1]])
@pytest.mark.parametrize("tls", [False, True])
def test_the_wrong_protocol_on_a_port_is_named_with_the_right_one(
    speaks: Protocol, asked: Protocol, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", CERTIFICATE)
    with OtlpReceiver(speaks, tls=tls) as receiver:
        finding = diagnose(to(receiver.endpoint, asked))
    assert not finding.ok
    if not (tls and speaks == "grpc"):  # gRPC hangs up on a handshake that does not offer HTTP/2
        assert f"OTEL_EXPORTER_OTLP_PROTOCOL={speaks}" in finding.advice


def test_tls_to_a_plain_port_is_named_with_the_scheme_to_write(protocol: Protocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        finding = diagnose(to(receiver.endpoint.replace("http:", "https:"), protocol))
    assert "the endpoint begins with 'https://'" in finding.cause
    assert finding.advice == "Write 'http://'."


def test_plain_text_to_a_tls_port_is_named_with_the_scheme_to_write(protocol: Protocol) -> None:
    with OtlpReceiver(protocol, tls=True) as receiver:
        finding = diagnose(to(receiver.endpoint.replace("https:", "http:"), protocol))
    assert "speaks TLS, and the endpoint begins with 'http://'" in finding.cause
    assert finding.advice == "Write 'https://'."


def test_a_wrong_path_is_named() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        finding = diagnose(to(f"{receiver.endpoint}/api", "http/protobuf"))
        assert diagnose(Destination("TRACES", f"{receiver.endpoint}/v1/traces", "http/protobuf")).ok
    assert finding.cause.endswith("/api/v1/traces answers 404 Not Found")
    assert "path of OTEL_EXPORTER_OTLP_ENDPOINT" in finding.advice


@pytest.mark.parametrize(
    ("protocol", "status", "said", "advice"),
    [
        ("http/protobuf", 401, "401 Unauthorized", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("http/protobuf", 503, "503 Service Unavailable", "overloaded"),
        ("http/protobuf", 400, "400 Bad Request", "log of the receiver"),
        ("grpc", grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED: refused", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("grpc", grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED: refused", "overloaded"),
    ],
)
def test_a_receiver_that_refuses_is_named_with_its_status(
    protocol: Protocol, status: "int | grpc.StatusCode", said: str, advice: str
) -> None:
    with OtlpReceiver(protocol) as receiver:
        receiver.refuses = status
        finding = diagnose(to(receiver.endpoint, protocol))
    assert f"answers {said}" in finding.cause
    assert advice in finding.advice


def test_a_redirection_is_named_with_its_place() -> None:
    with listening(b"HTTP/1.1 308 Moved\r\nLocation: https://elsewhere/v1/traces\r\n\r\n") as endpoint:
        finding = diagnose(to(endpoint, "http/protobuf"))
    assert "answers 308 Moved, to 'https://elsewhere/v1/traces'" in finding.cause


def test_a_password_in_an_endpoint_is_sent_as_the_exporter_sends_it_and_never_said() -> None:
    asked: list[bytes] = []
    with listening(b"HTTP/1.1 403 Forbidden\r\n\r\n", asked) as endpoint:
        finding = diagnose(to(endpoint.replace("//", "//me:ge%3Aheim@"), "http/protobuf"))
    assert f"\r\nauthorization: Basic {b64encode(b'me:ge:heim').decode()}\r\n".encode() in asked[0]
    assert finding.cause == f"{endpoint}/v1/traces answers 403 Forbidden"


def test_a_password_in_an_endpoint_for_grpc_is_not_to_be_sent_and_never_said() -> None:
    with OtlpReceiver("grpc") as receiver:
        finding = diagnose(to(receiver.endpoint.replace("//", "//me:geheim@"), "grpc"))
    assert finding.cause == "the endpoint holds a user, which is not for gRPC"
    assert "OTEL_EXPORTER_OTLP_HEADERS" in finding.advice


def test_a_web_page_is_no_receiver_for_all_its_success() -> None:
    with listening(b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n") as endpoint:
        finding = diagnose(to(endpoint, "http/protobuf"))
    assert finding.cause == f"{endpoint}/v1/traces answers with a web page"
    assert "as Jaeger's on port 16686" in finding.advice


def test_something_else_on_the_port_is_shown(protocol: Protocol) -> None:
    with listening(b"SSH-2.0-OpenSSH_9.2\r\n") as endpoint:
        assert "answers with b'SSH-2.0-OpenSSH" in diagnose(to(endpoint, protocol)).cause


def test_a_port_that_says_nothing_is_not_waited_for_longer_than_asked(protocol: Protocol) -> None:
    with listening(None) as endpoint:
        finding = diagnose(to(endpoint, protocol), timeout=0.05)
    assert not finding.ok
    assert "answers nothing that can be read" in finding.cause


def test_headers_are_sent_along_and_never_said() -> None:
    with listening(b"HTTP/1.1 403 Forbidden\r\n\r\n") as endpoint:
        assert "geheim" not in str(diagnose(Destination("TRACES", endpoint, "http/protobuf", {"api-key": "geheim"})))


PROXIES = [
    ("http/protobuf", "HTTP_PROXY"),
    ("http/protobuf", "http_proxy"),
    ("grpc", "http_proxy"),
    ("grpc", "grpc_proxy"),
]


@pytest.mark.parametrize(("protocol", "variable"), PROXIES)
def test_a_proxy_that_is_not_there_is_the_cause_unless_the_host_is_exempt(
    monkeypatch: pytest.MonkeyPatch, protocol: Protocol, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://user:geheim@proxy.invalid:3128")
    with OtlpReceiver(protocol) as receiver:
        finding = diagnose(to(receiver.endpoint, protocol))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert diagnose(to(receiver.endpoint, protocol)).ok
    assert finding.cause.startswith(
        f"exporters go through the proxy 'proxy.invalid:3128' ({variable}), and that cannot"
    )
    assert "no host is called 'proxy.invalid'" in finding.cause
    assert f"Correct {variable}, or add 127.0.0.1 to no_proxy" in finding.advice
    assert "geheim" not in str(finding)


def test_a_proxy_that_grpc_cannot_read_is_not_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "nonsense")
    with OtlpReceiver("grpc") as receiver:
        assert diagnose(to(receiver.endpoint, "grpc")).ok


def test_a_proxy_that_is_there_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with listening(b"HTTP/1.1 200 OK\r\n\r\n") as proxy, OtlpReceiver("http/protobuf") as receiver:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        assert diagnose(to(endpoint, "http/protobuf")).advice.endswith(
            "Mind HTTP_PROXY: exporters go through that proxy."
        )
        assert "asked directly: exporters go through" in diagnose(to(receiver.endpoint, "http/protobuf")).cause


def test_a_finding_reads_as_a_sentence_and_an_advice() -> None:
    assert str(Finding(True, "it takes spans")) == "it takes spans."
    assert str(Finding(False, "nothing listens", "Start one.")) == "nothing listens. Start one."


@pytest.mark.parametrize(("signal", "variable"), [("METRICS", "OTEL_METRICS_EXPORTER"), ("LOGS", "OTEL_LOGS_EXPORTER")])
def test_who_takes_nothing_but_spans_need_not_be_sent_anything_else(signal: Signal, variable: str) -> None:
    other, spans = (Destination(each, "http://localhost:4317", "grpc") for each in (signal, "TRACES"))
    assert f"set {variable}=none" in explain_refusal("UNIMPLEMENTED", other)
    assert f"set {variable}=none" in explain_refusal("404", other)
    assert "OTEL_EXPORTER_OTLP_HEADERS" in explain_refusal("401", other)
    assert "=none" not in explain_refusal("404", spans)


def test_a_status_without_advice_of_its_own_leads_to_the_receivers_log() -> None:
    assert (
        explain_refusal("500", Destination("TRACES", "http://localhost:4317", "grpc"))
        == "The log of the receiver says why."
    )


@pytest.mark.parametrize("signal", ["TRACES", "METRICS", "LOGS"])
def test_what_goes_to_the_root_of_a_server_is_asked_there_and_told_the_path_to_write(signal: Signal) -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        finding = diagnose(Destination(signal, f"{receiver.endpoint}/", "http/protobuf"))
    assert finding.cause == f"{receiver.endpoint}/ answers 404 Not Found"
    assert finding.advice.startswith(f"Write {receiver.endpoint}/v1/{signal.lower()}: the variable of a signal is used")


@pytest.mark.parametrize("signal", ["METRICS", "LOGS"])
def test_a_receiver_is_asked_for_the_signal_it_is_to_take(signal: Signal, protocol: Protocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        assert diagnose(destination_of(signal, protocol, receiver.endpoint, [])).ok
    assert receiver.requests == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_clients_certificate_that_is_not_there_is_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", CERTIFICATE)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "nowhere.pem")
    with OtlpReceiver("http/protobuf", tls=scheme == "https") as receiver:
        finding = diagnose(to(receiver.endpoint, "http/protobuf"))
    assert (
        "the client's certificate 'nowhere.pem', with the key 'nowhere.pem', cannot be used: No such" in finding.cause
    )
    assert "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE" in finding.advice
