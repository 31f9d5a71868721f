"""The ``OTEL_*`` variables as `configure_tracing` reads them.

What cannot be meant is left out, as OpenTelemetry asks for, and said: no program stops for its telemetry. The
functions add what is to be said to a list of ``problems``, each with what to change.
"""

import os
from collections.abc import Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

from spanflow.tracing.diagnosis import Protocol

Signal = Literal["TRACES", "METRICS", "LOGS"]
Problems = MutableSequence[str]

PROTOCOLS: Mapping[str, Protocol] = {"grpc": "grpc", "http/protobuf": "http/protobuf"}
_GRPC_PORT = 4317  # by OTLP's convention; 4318 is HTTP
_DEFAULTS: Mapping[Protocol, str] = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}
_NOTHING_SAMPLED = ("always_off", "parentbased_always_off")
_RATIOS = ("traceidratio", "parentbased_traceidratio")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the OTLP exporter of a signal goes.

    Attributes:
        endpoint: the whole URL, for HTTP with the path of the signal.
        headers: what goes along with each request; not to be logged.
    """

    endpoint: str
    protocol: Protocol
    headers: Mapping[str, str]


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


def protocol_of(signal: Signal, endpoint: str | None, problems: Problems) -> Protocol:
    """Return the protocol of a signal: the one that is named, else gRPC for port 4317 and HTTP for any other."""
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        name = os.environ.get(variable, "").strip()
        if name in PROTOCOLS:
            return PROTOCOLS[name]
        if name:
            problems.append(f"{variable}={name!r} is not supported, and left out. Use {listed(tuple(PROTOCOLS))}.")
    return "grpc" if _port(endpoint or _endpoint_of(signal) or "") == _GRPC_PORT else "http/protobuf"


def destination_of(signal: Signal, protocol: Protocol, endpoint: str | None, problems: Problems) -> Destination:
    """Return where a signal goes: to the base URL ``endpoint``, else to what the environment says."""
    path = f"/v1/{signal.lower()}"
    base = endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or _DEFAULTS[protocol]
    own = None if endpoint else os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    if protocol == "http/protobuf" and not base.endswith(path):
        base = base.rstrip("/") + path
    return Destination(own or base, protocol, headers_of(signal, problems))


def headers_of(signal: Signal, problems: Problems) -> dict[str, str]:
    """Return the headers of a signal. A malformed one is named by its place: its value may be a secret."""
    headers: dict[str, str] = {}
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"):
        items = [item for item in os.environ.get(variable, "").split(",") if item.strip()]
        for number, item in enumerate(items, start=1):
            name, equals, value = item.partition("=")
            if not equals or not name.strip() or not item.isascii() or not item.isprintable() or '"' in item:
                problems.append(
                    f"{variable}: item {number} of {len(items)} is no header, and left out. Write name=value, with "
                    "commas in between and all but plain ASCII URL-encoded, e.g. api-key=secret,tenant=a%2Cb."
                )
            else:
                headers[unquote(name).strip().lower()] = unquote(value).strip()
        if items:
            break
    return headers


def positive(variable: str, default: int, problems: Problems) -> int:
    """Return a positive whole number."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) == 0:
        problems.append(
            f"{variable}={text!r} must be a positive whole number; {default} is used. Leave it out for that."
        )
        return default
    return int(text)


def check_sampler(problems: Problems) -> None:
    """Add a problem where the environment has nothing sampled."""
    sampler = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    argument = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    ratio_is_zero = sampler in _RATIOS and argument != "" and not argument.strip("0.")
    if sampler in _NOTHING_SAMPLED or ratio_is_zero:
        said = f"OTEL_TRACES_SAMPLER={sampler}" + (f" with OTEL_TRACES_SAMPLER_ARG={argument}" if ratio_is_zero else "")
        problems.append(f"{said}: no trace is sampled, and none is exported. Unset it, or use parentbased_always_on.")


def has_own_endpoint(signal: Signal) -> bool:
    """Tell whether the environment says where a signal goes."""
    return bool(_endpoint_of(signal))


def listed(names: Sequence[str]) -> str:
    """Return names as a list in words."""
    *first, last = (f"'{name}'" for name in names)
    return f"{', '.join(first)} or {last}"


def _endpoint_of(signal: Signal) -> str | None:
    return os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")


def _port(url: str) -> int | None:
    try:
        return urlsplit(url if "//" in url else f"//{url}").port
    except ValueError:  # the exporter will say what is wrong with it
        return None
