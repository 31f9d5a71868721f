"""The ``OTEL_*`` variables as `configure_tracing` reads them, once `variables` has left out what cannot be meant.

The functions add what is to be said to a list of ``problems``, each with what to change: no program stops for its
telemetry.
"""

import os
import re
from collections.abc import Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

Protocol = Literal["grpc", "http/protobuf"]
Signal = Literal["TRACES", "METRICS", "LOGS"]
Problems = MutableSequence[str]

PROTOCOLS: Mapping[str, Protocol] = {"grpc": "grpc", "http/protobuf": "http/protobuf"}
_GRPC_PORT = 4317  # by OTLP's convention; 4318 is HTTP
_DEFAULTS: Mapping[Protocol, str] = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}
_NOTHING_SAMPLED = ("always_off", "parentbased_always_off")
RATIO_SAMPLERS = ("traceidratio", "parentbased_traceidratio")
SAMPLERS = ("always_on", "always_off", "parentbased_always_on", "parentbased_always_off", *RATIO_SAMPLERS)
COMPRESSIONS = ("none", "gzip", "deflate")
_HEADER_NAME = re.compile(r"[A-Za-z0-9_.-]+(?<!-bin)", re.IGNORECASE)  # gRPC has bytes in those that end like this
_OWN_HEADERS = ("connection", "content-encoding", "content-length", "content-type", "host", "transfer-encoding")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the OTLP exporter of a signal goes, and how.

    Attributes:
        endpoint: the whole URL, for HTTP with the path: requests go to it as it stands.
        headers: what goes along with each request; not to be logged.
        compression: of requests: ``none``, ``gzip`` or, by HTTP, ``deflate``.
    """

    signal: Signal
    endpoint: str
    protocol: Protocol
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    compression: str = "none"

    @property
    def shown(self) -> str:
        """The endpoint as it may be logged: without the user and the password that it may have."""
        return re.sub(r"//[^/]*@", "//", self.endpoint)

    @property
    def has_no_path(self) -> bool:
        """Whether OTLP over HTTP goes to the root of a server, where hardly a receiver takes it."""
        return self.protocol == "http/protobuf" and not self.endpoint.partition("://")[2].partition("/")[2]


def is_disabled() -> bool:
    """Tell whether ``OTEL_SDK_DISABLED`` is true."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def exporter_names(signal: Signal, known: Sequence[str], problems: Problems) -> Sequence[str] | None:
    """Return which exporters ``OTEL_<signal>_EXPORTER`` names, of those ``known``; None where it names none."""
    variable = f"OTEL_{signal}_EXPORTER"
    named = [name.strip().lower() for name in os.environ.get(variable, "").split(",") if name.strip()]
    for name in named:
        if name not in known:
            problems.append(
                f"{variable}={os.environ[variable]!r}: {name!r} is not known here, and nothing is exported by it. Use "
                f"{listed(known)}, or set a provider with that exporter before configure_tracing() is called."
            )
    return [name for name in named if name in known] if named else None


def variable_for(signal: Signal, name: str) -> str:
    """Return which variable has the say for a signal: its own, or the one for all of them."""
    own = f"OTEL_EXPORTER_OTLP_{signal}_{name}"
    return own if os.environ.get(own) else f"OTEL_EXPORTER_OTLP_{name}"


def setting(signal: Signal, name: str) -> str:
    """Return what the environment says for a signal; empty where it says nothing."""
    return os.environ.get(variable_for(signal, name), "").strip()


def protocol_of(signal: Signal, endpoint: str | None) -> Protocol:
    """Return the protocol of a signal: the one that is named, else gRPC for port 4317 and HTTP for any other."""
    named = PROTOCOLS.get(setting(signal, "PROTOCOL"))
    return named or ("grpc" if _port(endpoint or setting(signal, "ENDPOINT")) == _GRPC_PORT else "http/protobuf")


def destination_of(signal: Signal, protocol: Protocol, endpoint: str | None, problems: Problems) -> Destination:
    """Return where a signal goes: to the base URL ``endpoint``, else to what the environment says."""
    path = f"/v1/{signal.lower()}"
    base = endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or _DEFAULTS[protocol]
    own = None if endpoint else os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    if protocol == "http/protobuf" and not base.endswith(path):
        base = base.rstrip("/") + path
    url = own or base
    insecure = setting(signal, "INSECURE")
    if protocol == "grpc" and insecure and "://" not in url:  # the one place where that variable has a say
        url = f"{'http' if insecure == 'true' else 'https'}://{url}"
    return Destination(signal, url, protocol, _headers_of(signal), _compression_of(signal, protocol, problems))


def is_header(item: str) -> bool:
    """Tell whether an item of ``OTEL_EXPORTER_OTLP_HEADERS`` can be sent, by either protocol."""
    name, equals, value = item.partition("=")
    value = unquote(value)
    sendable = value.isascii() and value.isprintable() and '"' not in item
    return (
        bool(equals and _HEADER_NAME.fullmatch(name.strip())) and sendable and name.strip().lower() not in _OWN_HEADERS
    )


def _headers_of(signal: Signal) -> dict[str, str]:
    items = [item.partition("=") for item in setting(signal, "HEADERS").split(",") if is_header(item)]
    return {name.strip().lower(): unquote(value).strip() for name, _, value in items}


def _compression_of(signal: Signal, protocol: Protocol, problems: Problems) -> str:
    named = setting(signal, "COMPRESSION")
    if protocol == "grpc" and named == "deflate":
        problems.append(f"{variable_for(signal, 'COMPRESSION')}=deflate is not for gRPC; none is used. Write gzip.")
        return "none"
    return named if named in COMPRESSIONS else "none"


def whole(variable: str, default: int) -> int:
    """Return a whole number."""
    return int(os.environ.get(variable) or default)


def check_sampler(problems: Problems) -> None:
    """Add a problem where the environment has nothing sampled."""
    sampler = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    argument = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    ratio_is_zero = sampler in RATIO_SAMPLERS and argument != "" and float(argument) == 0
    if sampler in _NOTHING_SAMPLED or ratio_is_zero:
        said = f"OTEL_TRACES_SAMPLER={sampler}" + (f" with OTEL_TRACES_SAMPLER_ARG={argument}" if ratio_is_zero else "")
        problems.append(f"{said}: no trace is sampled, and none is exported. Unset it, or use parentbased_always_on.")


def has_own_endpoint(signal: Signal) -> bool:
    """Tell whether the environment says where a signal goes."""
    return bool(setting(signal, "ENDPOINT"))


def listed(names: Sequence[str]) -> str:
    """Return names as a list in words."""
    *first, last = (f"'{name}'" for name in names)
    return f"{', '.join(first)} or {last}"


def _port(url: str) -> int | None:
    try:
        return urlsplit(url if "//" in url else f"//{url}").port
    except ValueError:  # the exporter will say what is wrong with it
        return None
