"""Find out why telemetry does not reach an OTLP endpoint: who answers there, in which protocol, and what to change."""

import os
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

Protocol = Literal["grpc", "http/protobuf"]

_Speaks = Literal["HTTP/1.1", "HTTP/2", "TLS"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # and an empty SETTINGS frame
_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_SIGNAL_PATHS = ("/v1/traces", "/v1/metrics", "/v1/logs")
_HEAD = 8192  # bytes of an answer that are looked at
_CERTIFICATES = ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about an endpoint, in words for people.

    Attributes:
        ok: whether it takes spans.
        cause: what is the matter, or what answers; a clause with the real values and without a full stop.
        advice: what to change, in whole sentences; empty where ``ok``.
    """

    ok: bool
    cause: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.cause}. {self.advice}".rstrip() if self.advice else f"{self.cause}."


def diagnose(
    endpoint: str, protocol: Protocol, headers: Mapping[str, str] | None = None, timeout: float = 2.0
) -> Finding:
    """Connect to an OTLP endpoint as an exporter would, send it no spans at all, and say what is wrong with it.

    Blocks, for about ``timeout`` seconds a question and three questions at most; never raises.

    Args:
        endpoint: as ``OTEL_EXPORTER_OTLP_ENDPOINT`` has it, or with the path of the signal: ``http://localhost:4318``.
        protocol: what the exporter speaks there.
        headers: what it sends along, e.g. an API key. They are in no text of a finding.
        timeout: s to wait for each answer.
    """
    target = _target(endpoint, protocol)
    if isinstance(target, Finding):
        return target
    for name, value in (headers or {}).items():
        if not (name + value).isprintable() or not (name + value).isascii():
            cause = f"the header {name!r} holds a character that cannot be sent"
            return Finding(False, cause, "URL-encode it in OTEL_EXPORTER_OTLP_HEADERS.")
    try:
        found = (
            _ask_grpc(target, headers or {}, timeout) if protocol == "grpc" else _ask(target, headers or {}, timeout)
        )
    except _Found as problem:
        found = problem.finding
    except Exception as error:  # an endpoint can answer anything
        found = Finding(False, f"{target} could not be examined: {_words(error)}", "Check the address.")
    return found if found.ok else _with_proxy(target, found)


def explain_refusal(status: str, signal: str = "Spans") -> str:
    """Return what to change when a receiver refuses spans with an HTTP status or gRPC code, e.g. ``401``.

    ``signal`` is what was refused: a receiver may well take spans but neither ``Metrics`` nor ``Log records``.
    """
    if signal in _TO_SEND_NONE and status in _NOT_THERE:
        return (
            f"If traces arrive, it takes nothing else, as Jaeger: set {_TO_SEND_NONE[signal]}=none. Else correct the"
            " host, port or path of OTEL_EXPORTER_OTLP_ENDPOINT."
        )
    for statuses, advice in _REFUSALS:
        if status in statuses:
            return advice
    return "The log of the receiver says why."


_TO_SEND_NONE = {"Metrics": "OTEL_METRICS_EXPORTER", "Log records": "OTEL_LOGS_EXPORTER"}
_NOT_THERE = ("404", "405", "UNIMPLEMENTED")
_REFUSALS: Sequence[tuple[tuple[str, ...], str]] = (
    (("401", "403", "407", "UNAUTHENTICATED", "PERMISSION_DENIED"), "Set its key in OTEL_EXPORTER_OTLP_HEADERS."),
    (
        _NOT_THERE,
        "No OTLP receiver for traces is there: correct the host, port or path of OTEL_EXPORTER_OTLP_ENDPOINT.",
    ),
    (
        ("413", "TOO_LARGE"),
        "Raise its limit for the size of a message, or lower OTEL_BSP_MAX_EXPORT_BATCH_SIZE.",
    ),
    (
        ("415", "426"),
        "It wants another protocol: of 'grpc' and 'http/protobuf', set OTEL_EXPORTER_OTLP_PROTOCOL to the other.",
    ),
    (
        ("429", "502", "503", "504", "RESOURCE_EXHAUSTED", "UNAVAILABLE"),
        "It is overloaded or not ready: give it more room, or sample (OTEL_TRACES_SAMPLER).",
    ),
)


@dataclass(frozen=True, slots=True)
class _Target:
    scheme: str
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}"

    @property
    def place(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class _Found(Exception):
    """Carries a finding out of the middle of a question."""

    def __init__(self, cause: str, advice: str) -> None:
        super().__init__(cause)
        self.finding = Finding(False, cause, advice)


def _target(endpoint: str, protocol: Protocol) -> _Target | Finding:
    port = 4317 if protocol == "grpc" else 4318
    example = f"Write it as 'http://localhost:{port}' (plain text) or 'https://collector.example:{port}' (TLS)."
    try:
        parts = urlsplit(endpoint)
        given = parts.port
    except ValueError as error:
        return Finding(False, f"the endpoint {endpoint!r} is no URL: {error}", example)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return Finding(
            False, f"the endpoint {endpoint!r} does not begin with 'http://' or 'https://' and a host", example
        )
    path = parts.path if parts.path.endswith(_SIGNAL_PATHS) else parts.path.rstrip("/") + _SIGNAL_PATHS[0]
    return _Target(parts.scheme, parts.hostname, given or (443 if parts.scheme == "https" else 80), path)


# ---------------------------------------------------------------- the two protocols


def _ask(target: _Target, headers: Mapping[str, str], timeout: float) -> Finding:
    """Post a request without spans, as OTLP over HTTP."""
    lines = [f"POST {target.path} HTTP/1.1", f"Host: {target.place}", "Content-Type: application/x-protobuf"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join([*lines, "Content-Length: 0", "Connection: close", "", ""]).encode()
    answer = _exchange(target, request, "http/1.1", timeout)
    speaks = _language(answer) or _other_language(target, timeout)
    if speaks == "HTTP/1.1":
        status, _, rest = answer.removeprefix(b"HTTP/1.").partition(b" ")[2].decode("latin-1").partition(" ")
        reason = rest.partition("\r\n")[0].strip()
        return _judged(target, status[:3], reason, answer)
    if speaks == "HTTP/2":
        raise _Found(
            f"{target.place} speaks gRPC, and the exporter OTLP over HTTP",
            "Set OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or use the receiver's port for HTTP (mostly 4318).",
        )
    raise _mismatch(target, speaks, answer)


def _judged(target: _Target, status: str, reason: str, answer: bytes) -> Finding:
    said = f"{status} {reason}".strip()
    if status.startswith("2"):
        return Finding(True, f"{target}{target.path} takes spans by OTLP over HTTP")
    if status.startswith("3"):
        location = next((line for line in answer.split(b"\r\n") if line.lower().startswith(b"location:")), b"")
        to = location.partition(b":")[2].strip().decode("latin-1")
        return Finding(False, f"{target}{target.path} answers {said}, to {to!r}", "Write that address instead.")
    return Finding(False, f"{target}{target.path} answers {said}", explain_refusal(status))


def _ask_grpc(target: _Target, headers: Mapping[str, str], timeout: float) -> Finding:
    """Say hello as HTTP/2 does, and where that is understood, call the service without spans."""
    answer = _exchange(target, _PREFACE, "h2", timeout)
    speaks = _language(answer) or _other_language(target, timeout)
    if speaks == "HTTP/2":
        return _call(target, headers, timeout)
    if speaks == "HTTP/1.1":
        raise _Found(
            f"{target.place} speaks HTTP/1.1, and the exporter gRPC",
            "Set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or use the receiver's port for gRPC (mostly 4317).",
        )
    raise _mismatch(target, speaks, answer)


def _call(target: _Target, headers: Mapping[str, str], timeout: float) -> Finding:
    grpc: Any = import_module("grpc")  # heavy, and there: the exporter needs it
    if target.scheme == "https":
        certificate = _certificate()
        roots = None if certificate is None else Path(certificate).read_bytes()
        channel = grpc.secure_channel(target.place, grpc.ssl_channel_credentials(roots))
    else:
        channel = grpc.insecure_channel(target.place)
    metadata = [(name.lower(), value) for name, value in headers.items()]
    try:
        channel.unary_unary(_EXPORT)(b"", timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        found: Any = error
        code = str(found.code().name)
        return Finding(False, f"{target} answers {code}: {found.details()}", explain_refusal(code))
    finally:
        channel.close()
    return Finding(True, f"{target} takes spans by OTLP over gRPC")


def _mismatch(target: _Target, speaks: _Speaks | None, answer: bytes) -> _Found:
    if speaks == "TLS" and target.scheme == "http":
        return _Found(f"{target.place} speaks TLS, and the endpoint begins with 'http://'", "Write 'https://'.")
    said = f"with {answer[:20]!r}" if answer else "nothing that can be read"
    return _Found(
        f"{target.place} answers {said}: no OTLP receiver listens there",
        "Correct the host or port of OTEL_EXPORTER_OTLP_ENDPOINT.",
    )


# ---------------------------------------------------------------- the wire


def _exchange(target: _Target, request: bytes, alpn: str, timeout: float) -> bytes:
    """Send a request and return the beginning of what comes back; empty where the peer just hangs up."""
    with _connection(target, timeout) as plain:
        if target.scheme == "http":
            return _answer(plain, request, timeout)
        try:
            with _trusting(alpn).wrap_socket(plain, server_hostname=target.host) as secured:
                return _answer(secured, request, timeout)
        except ssl.SSLCertVerificationError as error:
            raise _Found(
                f"the TLS certificate of {target.place} is not trusted: {error.verify_message}",
                "Give the file of the authority that signed it in OTEL_EXPORTER_OTLP_CERTIFICATE.",
            ) from None
        except (ssl.SSLError, ConnectionError, TimeoutError) as error:
            raise _without_tls(target, error, timeout) from None


def _without_tls(target: _Target, error: Exception, timeout: float) -> _Found:
    """Say why a TLS handshake failed: mostly since the port is a plain one."""
    speaks = _greeted(target, timeout, secured=False)
    if speaks in ("HTTP/1.1", "HTTP/2"):
        return _Found(
            f"{target.place} speaks plain {speaks}, and the endpoint begins with 'https://'", "Write 'http://'."
        )
    return _Found(f"no TLS with {target.place}: {_words(error)}", "Check that the port is the receiver's, and its TLS.")


def _other_language(target: _Target, timeout: float) -> _Speaks | None:
    """Tell what a port speaks that did not answer as expected: the other protocol, or TLS."""
    found = _greeted(target, timeout, secured=target.scheme == "https")
    return "TLS" if found is None and target.scheme == "http" and _shakes_hands(target, timeout) else found


def _greeted(target: _Target, timeout: float, *, secured: bool) -> _Speaks | None:
    """Say hello in both languages."""
    for hello in (_PREFACE, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"):
        with _connection(target, timeout) as plain:
            if secured:
                with _trusting(None).wrap_socket(plain, server_hostname=target.host) as connection:
                    found = _language(_answer(connection, hello, timeout))
            else:
                found = _language(_answer(plain, hello, timeout))
        if found is not None:
            return found
    return None


def _shakes_hands(target: _Target, timeout: float) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only asked whether it is TLS; nothing is sent
    try:
        with _connection(target, timeout) as plain, context.wrap_socket(plain, server_hostname=target.host):
            return True
    except (OSError, ValueError):
        return False


def _connection(target: _Target, timeout: float) -> socket.socket:
    try:
        return socket.create_connection((target.host, target.port), timeout)
    except socket.gaierror as error:
        raise _Found(
            f"no host is called {target.host!r} here: {error.strerror}",
            "Correct the host of OTEL_EXPORTER_OTLP_ENDPOINT.",
        ) from None
    except ConnectionRefusedError:
        raise _Found(
            f"nothing listens on {target.place}",
            "Start a Collector or Jaeger there, or set OTEL_EXPORTER_OTLP_ENDPOINT to where yours is"
            " (OTEL_TRACES_EXPORTER=none sends nothing).",
        ) from None
    except TimeoutError:
        raise _Found(
            f"{target.place} does not answer within {timeout:g} s",
            "Check the address, and whether a firewall is in between.",
        ) from None
    except OSError as error:
        raise _Found(
            f"{target.place} cannot be reached: {_words(error)}", "Check the address and the network."
        ) from None


def _answer(connection: socket.socket, request: bytes, timeout: float) -> bytes:
    """Return the head of an answer: enough to know the protocol and the status."""
    received = b""
    until = time.monotonic() + timeout
    try:
        connection.sendall(request)
        while len(received) < _HEAD and b"\r\n\r\n" not in received and (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            chunk = connection.recv(_HEAD)
            if not chunk:
                break
            received += chunk
            if _language(received) in ("HTTP/2", "TLS"):
                break
    except (ConnectionError, TimeoutError, ssl.SSLError):  # it hangs up on what it does not understand
        pass
    return received


def _language(answer: bytes) -> _Speaks | None:
    if answer.startswith(b"HTTP/1."):
        return "HTTP/1.1"
    if len(answer) >= 9 and answer[3] in (4, 7) and answer[5:9] == b"\x00\x00\x00\x00":  # SETTINGS or GOAWAY
        return "HTTP/2"
    return "TLS" if answer[:2] == b"\x15\x03" else None


def _trusting(alpn: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=_certificate())
    except OSError as error:
        raise _Found(
            f"the certificate file {_certificate()!r} cannot be read: {_words(error)}",
            "Correct OTEL_EXPORTER_OTLP_CERTIFICATE.",
        ) from None
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context


def _certificate() -> str | None:
    return next((os.environ[name] for name in _CERTIFICATES if os.environ.get(name)), None)


def _with_proxy(target: _Target, found: Finding) -> Finding:
    """Say that a proxy is in between, which this module goes around and exporters go through."""
    variable = f"{target.scheme}_proxy"
    proxy = os.environ.get(variable) or os.environ.get(variable.upper())
    if not proxy or target.host in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(","):
        return found
    return Finding(False, found.cause, f"{found.advice} Mind {variable}: exporters go through that proxy.")


def _words(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
