"""Find out why telemetry does not reach an OTLP endpoint: who answers there, in which protocol, and what to change."""

import os
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from spanflow.tracing.environment import Destination, Signal, setting
from spanflow.tracing.wire import (
    PREFACE,
    Finding,
    Found,
    Speaks,
    Target,
    connect,
    exchange,
    language,
    other_language,
    present_certificate,
    words,
)

_SERVICES: Mapping[Signal, str] = {
    "TRACES": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "METRICS": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "LOGS": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
_WHAT: Mapping[Signal, str] = {"TRACES": "spans", "METRICS": "metrics", "LOGS": "log records"}


def diagnose(to: Destination, timeout: float = 2.0) -> Finding:
    """Connect to an OTLP endpoint as an exporter would, send it nothing at all, and say what is wrong with it.

    Blocks for about ``timeout`` seconds a question, and four questions at most; never raises. The headers of the
    destination go along, and are in no text of a finding.
    """
    proxy: tuple[str, str] | None = None
    try:
        target = _target(to)
        proxy = _proxy(to, target, timeout)
        found = _ask_grpc(to, target, timeout) if to.protocol == "grpc" else _ask(to, target, timeout)
    except Found as problem:
        found = problem.finding
    except Exception as error:  # an endpoint can answer anything
        found = Finding(False, f"{to.shown} could not be examined: {words(error)}", "Check the address.")
    if proxy is None:
        return found
    variable, place = proxy
    if found.ok:
        return replace(found, cause=f"{found.cause}, asked directly: exporters go through {place} ({variable})")
    return replace(found, advice=f"{found.advice} Mind {variable}: exporters go through that proxy.")


def explain_refusal(status: str, to: Destination) -> str:
    """Return what to change when a receiver refuses what is sent with an HTTP status or gRPC code, e.g. ``401``.

    `A_PAGE` stands for a success that is none.
    """
    if status in _NOT_THERE and to.has_no_path:
        return f"Write {to.shown.rstrip('/')}/v1/{to.signal.lower()}: the variable of a signal is used as it stands."
    if status in _NOT_THERE and to.signal != "TRACES":  # a receiver may well take spans and nothing else
        return (
            f"If traces arrive, it takes nothing else, as Jaeger: set OTEL_{to.signal}_EXPORTER=none. Else correct the"
            " host, port or path of OTEL_EXPORTER_OTLP_ENDPOINT."
        )
    for statuses, advice in _REFUSALS:
        if status in statuses:
            return advice
    return "The log of the receiver says why."


A_PAGE = "with a web page"
_NOT_THERE = ("404", "405", "UNIMPLEMENTED")
_REFUSALS: Sequence[tuple[tuple[str, ...], str]] = (
    (("401", "403", "407", "UNAUTHENTICATED", "PERMISSION_DENIED"), "Set its key in OTEL_EXPORTER_OTLP_HEADERS."),
    (
        _NOT_THERE,
        "No OTLP receiver for traces is there: correct the host, port or path of OTEL_EXPORTER_OTLP_ENDPOINT, or give"
        " the Collector there a pipeline for traces.",
    ),
    (
        (A_PAGE,),
        "That is for people, as Jaeger's on port 16686: set OTEL_EXPORTER_OTLP_ENDPOINT to the port of the receiver,"
        " mostly 4318 (HTTP) or 4317 (gRPC).",
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


def _target(to: Destination) -> Target:
    port = 4317 if to.protocol == "grpc" else 4318
    example = f"Write it as 'http://localhost:{port}' (plain text) or 'https://collector.example:{port}' (TLS)."
    try:
        parts = urlsplit(to.endpoint)
        given = parts.port
    except ValueError as error:
        raise Found(f"the endpoint {to.shown!r} is no URL: {error}", example) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Found(f"the endpoint {to.shown!r} does not begin with 'http://' or 'https://' and a host", example)
    if to.protocol == "grpc" and parts.username is not None:
        key = "Set a header authorization in OTEL_EXPORTER_OTLP_HEADERS instead, as the receiver wants it."
        raise Found("the endpoint holds a user, which is not for gRPC", key)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(to.signal, parts.scheme, parts.hostname, given or (443 if parts.scheme == "https" else 80), path)


def _proxy(to: Destination, target: Target, timeout: float) -> tuple[str, str] | None:
    """Return the variable that puts a proxy in between, and its place; raise `Found` where it cannot be reached.

    Nothing is asked through it: where it is, and that exporters go through it, explains most.
    """
    by_grpc = to.protocol == "grpc"
    names = ("grpc_proxy", "https_proxy", "http_proxy") if by_grpc else (f"{target.scheme}_proxy", "all_proxy")
    known = names if by_grpc else [each for name in names for each in (name, name.upper())]
    variable = next((name for name in known if os.environ.get(name)), None)
    if variable is None:
        return None
    requests: Any = import_module("requests.utils")  # there, since the exporter by HTTP needs it
    if by_grpc and "://" not in os.environ[variable]:
        return None  # gRPC says that it cannot read that, and goes without
    exempt = next((os.environ[name] for name in ("no_grpc_proxy", "no_proxy") if os.environ.get(name)), "")
    if requests.should_bypass_proxies(str(target), no_proxy=exempt if by_grpc else None):  # None: by requests' own ways
        return None
    address = os.environ[variable]
    parts = urlsplit(address if "://" in address else f"http://{address}")
    place = parts.netloc.rpartition("@")[2]  # without a password
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        connect(Target(to.signal, "http", parts.hostname or address, port), timeout).close()
    except (Found, ValueError) as error:
        cause = f"exporters go through the proxy {place!r} ({variable}), and that cannot be reached: {error}"
        raise Found(cause, f"Correct {variable}, or add {target.host} to no_proxy.") from None
    return variable, place


# ---------------------------------------------------------------- the two protocols


def _ask(to: Destination, target: Target, timeout: float) -> Finding:
    """Post a request with nothing in it, as OTLP over HTTP."""
    present_certificate(ssl.create_default_context(), to.signal)  # an exporter by HTTP looks at it without TLS, too
    lines = [f"POST {target.path} HTTP/1.1", f"Host: {target.place}", "Content-Type: application/x-protobuf"]
    lines += [f"{name}: {value}" for name, value in (_login(to) | dict(to.headers)).items()]
    request = "\r\n".join([*lines, "Content-Length: 0", "Connection: close", "", ""]).encode()
    answer = exchange(target, request, "http/1.1", timeout)
    speaks = language(answer) or other_language(target, timeout)
    if speaks == "HTTP/1.1":
        status, _, rest = answer.removeprefix(b"HTTP/1.").partition(b" ")[2].decode("latin-1").partition(" ")
        return _judged(to, status[:3], rest.partition("\r\n")[0].strip(), answer)
    if speaks == "HTTP/2":
        raise Found(
            f"{target.place} speaks gRPC, and the exporter OTLP over HTTP",
            "Set OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or use the receiver's port for HTTP (mostly 4318).",
        )
    raise _mismatch(target, speaks, answer)


def _judged(to: Destination, status: str, reason: str, answer: bytes) -> Finding:
    said = f"{status} {reason}".strip()
    if status.startswith("2") and "html" in _header(answer, "content-type"):
        return Finding(False, f"{to.shown} answers {A_PAGE}", explain_refusal(A_PAGE, to))
    if status.startswith("2"):
        return Finding(True, f"{to.shown} takes {_WHAT[to.signal]} by OTLP over HTTP")
    if status.startswith("3"):
        there = _header(answer, "location")
        return Finding(False, f"{to.shown} answers {said}, to {there!r}", "Write that address instead.")
    return Finding(False, f"{to.shown} answers {said}", explain_refusal(status, to))


def _login(to: Destination) -> dict[str, str]:
    """Return the header that an exporter makes of a user in the endpoint."""
    parts = urlsplit(to.endpoint)
    if parts.username is None:
        return {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"authorization": f"Basic {b64encode(login.encode()).decode()}"}


def _header(answer: bytes, name: str) -> str:
    lines = (line.partition(":") for line in answer.decode("latin-1").split("\r\n"))
    return next((value.strip() for given, _, value in lines if given.lower() == name), "")


def _ask_grpc(to: Destination, target: Target, timeout: float) -> Finding:
    """Say hello as HTTP/2 does, and where that is understood, call the service with nothing."""
    answer = exchange(target, PREFACE, "h2", timeout)
    speaks = language(answer) or other_language(target, timeout)
    if speaks == "HTTP/2":
        return _call(to, target, timeout)
    if speaks == "HTTP/1.1":
        raise Found(
            f"{target.place} speaks HTTP/1.1, and the exporter gRPC",
            "Set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or use the receiver's port for gRPC (mostly 4317).",
        )
    raise _mismatch(target, speaks, answer)


def _call(to: Destination, target: Target, timeout: float) -> Finding:
    grpc: Any = import_module("grpc")  # heavy, and there: the exporter needs it
    if target.scheme == "https":
        files = [setting(to.signal, name) for name in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")]
        read = [Path(file).read_bytes() if file else None for file in files]
        channel = grpc.secure_channel(target.place, grpc.ssl_channel_credentials(*read))
    else:
        channel = grpc.insecure_channel(target.place)
    try:
        channel.unary_unary(_SERVICES[to.signal])(b"", timeout=timeout, metadata=[*to.headers.items()])
    except grpc.RpcError as error:
        found: Any = error
        code = str(found.code().name)
        return Finding(False, f"{target} answers {code}: {found.details()}", explain_refusal(code, to))
    finally:
        channel.close()
    return Finding(True, f"{target} takes {_WHAT[to.signal]} by OTLP over gRPC")


def _mismatch(target: Target, speaks: Speaks | None, answer: bytes) -> Found:
    if speaks == "TLS" and target.scheme == "http":
        return Found(f"{target.place} speaks TLS, and the endpoint begins with 'http://'", "Write 'https://'.")
    said = f"with {answer[:20]!r}" if answer else "nothing that can be read"
    return Found(
        f"{target.place} answers {said}: no OTLP receiver listens there",
        "Correct the host or port of OTEL_EXPORTER_OTLP_ENDPOINT.",
    )
