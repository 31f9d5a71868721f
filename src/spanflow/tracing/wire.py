"""Connect to a port as an exporter would, and tell what it speaks; what keeps one from that, in words for people."""

import socket
import ssl
import time
from dataclasses import dataclass
from typing import Literal

from spanflow.tracing.environment import Signal, setting, variable_for

Speaks = Literal["HTTP/1.1", "HTTP/2", "TLS"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # and an empty SETTINGS frame
_HEAD = 8192  # bytes of an answer that are looked at


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about an endpoint, in words for people.

    Attributes:
        ok: whether it takes what is sent.
        cause: what is the matter, or what answers; a clause with the real values and without a full stop.
        advice: what to change, in whole sentences; empty where ``ok``.
    """

    ok: bool
    cause: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.cause}. {self.advice}".rstrip() if self.advice else f"{self.cause}."


class Found(Exception):
    """Carries a finding out of the middle of a question."""

    def __init__(self, cause: str, advice: str) -> None:
        super().__init__(cause)
        self.finding = Finding(False, cause, advice)


@dataclass(frozen=True, slots=True)
class Target:
    """A place to connect to, and the signal that is sent there: its variables say which certificates count."""

    signal: Signal
    scheme: str
    host: str
    port: int
    path: str = "/"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}"

    @property
    def place(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def exchange(target: Target, request: bytes, alpn: str, timeout: float) -> bytes:
    """Send a request and return the beginning of what comes back; empty where the peer just hangs up."""
    with connect(target, timeout) as plain:
        if target.scheme == "http":
            return _answer(plain, request, timeout)
        try:
            with _trusting(target, alpn).wrap_socket(plain, server_hostname=target.host) as secured:
                return _answer(secured, request, timeout)
        except ssl.SSLCertVerificationError as error:
            raise Found(
                f"the TLS certificate of {target.place} is not trusted: {error.verify_message}",
                "Give the file of the authority that signed it in OTEL_EXPORTER_OTLP_CERTIFICATE.",
            ) from None
        except (ssl.SSLError, ConnectionError, TimeoutError) as error:
            raise _without_tls(target, error, timeout) from None


def _without_tls(target: Target, error: Exception, timeout: float) -> Found:
    """Say why a TLS handshake failed: mostly since the port is a plain one."""
    speaks = _greeted(target, timeout, secured=False)
    if speaks in ("HTTP/1.1", "HTTP/2"):
        return Found(
            f"{target.place} speaks plain {speaks}, and the endpoint begins with 'https://'", "Write 'http://'."
        )
    return Found(f"no TLS with {target.place}: {words(error)}", "Check that the port is the receiver's, and its TLS.")


def other_language(target: Target, timeout: float) -> Speaks | None:
    """Tell what a port speaks that did not answer as expected: the other protocol, or TLS."""
    found = _greeted(target, timeout, secured=target.scheme == "https")
    return "TLS" if found is None and target.scheme == "http" and _shakes_hands(target, timeout) else found


def _greeted(target: Target, timeout: float, *, secured: bool) -> Speaks | None:
    """Say hello in both languages."""
    for hello in (PREFACE, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"):
        with connect(target, timeout) as plain:
            if secured:
                with _trusting(target, None).wrap_socket(plain, server_hostname=target.host) as connection:
                    found = language(_answer(connection, hello, timeout))
            else:
                found = language(_answer(plain, hello, timeout))
        if found is not None:
            return found
    return None


def _shakes_hands(target: Target, timeout: float) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only asked whether it is TLS; nothing is sent
    try:
        with connect(target, timeout) as plain, context.wrap_socket(plain, server_hostname=target.host):
            return True
    except (OSError, ValueError):
        return False


def connect(target: Target, timeout: float) -> socket.socket:
    """Return a connection; raise `Found` where there is none to be had."""
    try:
        return socket.create_connection((target.host, target.port), timeout)
    except (socket.gaierror, UnicodeError) as error:  # the latter: not even a name
        raise Found(
            f"no host is called {target.host!r} here: {words(error)}",
            "Correct the host of OTEL_EXPORTER_OTLP_ENDPOINT.",
        ) from None
    except ConnectionRefusedError:
        raise Found(
            f"nothing listens on {target.place}",
            "Start a Collector or Jaeger there, or set OTEL_EXPORTER_OTLP_ENDPOINT to where yours is"
            f" (OTEL_{target.signal}_EXPORTER=none sends nothing).",
        ) from None
    except TimeoutError:
        raise Found(
            f"{target.place} does not answer within {timeout:g} s",
            "Check the address, and whether a firewall is in between.",
        ) from None
    except OSError as error:
        raise Found(f"{target.place} cannot be reached: {words(error)}", "Check the address and the network.") from None


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
            if language(received) in ("HTTP/2", "TLS"):
                break
    except (ConnectionError, TimeoutError, ssl.SSLError):  # it hangs up on what it does not understand
        pass
    return received


def language(answer: bytes) -> Speaks | None:
    """Tell in which protocol somebody answers."""
    if answer.startswith(b"HTTP/1."):
        return "HTTP/1.1"
    if len(answer) >= 9 and answer[3] in (4, 7) and answer[5:9] == b"\x00\x00\x00\x00":  # SETTINGS or GOAWAY
        return "HTTP/2"
    return "TLS" if answer[:2] == b"\x15\x03" else None


def _trusting(target: Target, alpn: str | None) -> ssl.SSLContext:
    authority = setting(target.signal, "CERTIFICATE")
    try:
        context = ssl.create_default_context(cafile=authority or None)
    except OSError as error:
        raise Found(
            f"the certificate file {authority!r} cannot be read: {words(error)}",
            f"Correct {variable_for(target.signal, 'CERTIFICATE')}.",
        ) from None
    present_certificate(context, target.signal)
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context


def present_certificate(context: ssl.SSLContext, signal: Signal) -> None:
    """Have a client's certificate sent where the environment names one; raise `Found` where it cannot be used."""
    certificate, key = setting(signal, "CLIENT_CERTIFICATE"), setting(signal, "CLIENT_KEY")
    try:
        if certificate:
            context.load_cert_chain(certificate, key or None, password="")  # one that is asked for cannot be typed in
    except OSError as error:
        raise Found(
            f"the client's certificate {certificate!r}, with the key {key or certificate!r}, cannot be used: "
            f"{words(error)}",
            f"Correct {variable_for(signal, 'CLIENT_CERTIFICATE')} or {variable_for(signal, 'CLIENT_KEY')}.",
        ) from None


def words(error: BaseException) -> str:
    """Return what an exception says, or at least what it is."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
