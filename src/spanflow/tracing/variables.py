"""Leave out what cannot be meant in the ``OTEL_*`` variables, and say so once, before the SDK reads them.

Left to itself the SDK raises for one such value when a provider is made, for another with the first batch, prints a
traceback for a third, and never gets a batch through with a fourth; with gRPC in other ways than with HTTP.
OpenTelemetry asks for a warning and the default instead. So the value is taken out of the environment of this process,
where whoever reads the variable finds it unset.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points

from spanflow.tracing.environment import (
    COMPRESSIONS,
    PROTOCOLS,
    RATIO_SAMPLERS,
    SAMPLERS,
    Problems,
    is_header,
    listed,
)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a variable may hold: ``read`` returns a value as the SDK wants it written, None if it cannot be meant."""

    read: Callable[[str], str | None]
    expected: str
    default: str


@dataclass(frozen=True, slots=True)
class _Items:
    """What each item of a comma-separated variable must be, and how to write it."""

    fits: Callable[[str], bool]
    is_called: str
    advice: str
    is_secret: bool = False


def leave_out_malformed(problems: Problems) -> None:
    """Take malformed values out of ``os.environ``, and add a problem for each; empty ones go without a word."""
    for variable in [name for name in os.environ if name.startswith("OTEL_")]:
        if not os.environ[variable].strip() and not variable.endswith("_LIMIT"):  # there the SDK takes it for no limit
            del os.environ[variable]  # elsewhere it is not always as good as unset, which OpenTelemetry has it
    for variable, rule in _RULES.items():
        _keep_meant(variable, rule, problems)
    if os.environ.get("OTEL_TRACES_SAMPLER") in RATIO_SAMPLERS:
        _keep_meant("OTEL_TRACES_SAMPLER_ARG", _RATIO, problems)
        os.environ.setdefault("OTEL_TRACES_SAMPLER_ARG", "1.0")  # without it the SDK keeps all as well, and grumbles
    for variable, items in _LISTS.items():
        _keep_fitting(variable, items, problems)


def leave_out_unknown_providers(problems: Problems) -> None:
    """Do the same for the names of providers: the API raises for one that is not installed, whoever asks it first."""
    for variable, group in _PROVIDERS.items():
        name = os.environ.get(variable)
        if name is not None and name not in entry_points(group=group).names:
            del os.environ[variable]
            problems.append(
                f"{variable}={name!r} names no provider that is installed here, and is left out. {_INSTALL}"
            )


def _keep_meant(variable: str, rule: _Rule, problems: Problems) -> None:
    text = os.environ.get(variable, "").strip()
    value = rule.read(text) if text else None
    if value is not None:
        os.environ[variable] = value
    elif text:
        del os.environ[variable]
        general = os.environ.get(_OF_A_SIGNAL.sub("OTEL_EXPORTER_OTLP_", variable))
        problems.append(f"{variable}={text!r} must be {rule.expected}; {general or rule.default} is used.")


def _keep_fitting(variable: str, items: _Items, problems: Problems) -> None:
    given = [item for item in os.environ.get(variable, "").split(",") if item.strip()]
    fitting = [item for item in given if items.fits(item)]
    for number, item in enumerate(given, start=1):
        if item not in fitting:
            shown = "" if items.is_secret else f", {item.strip()!r},"
            place = f"item {number} of {len(given)}{shown}"
            problems.append(f"{variable}: {place} is no {items.is_called}, and left out. {items.advice}")
    if fitting:
        os.environ[variable] = ",".join(fitting)
    else:
        os.environ.pop(variable, None)


# ---------------------------------------------------------------- what may be meant


def _number(text: str) -> str | None:
    try:
        return text if 0 < float(text) <= _LONGEST else None
    except ValueError:
        return None


def _ratio(text: str) -> str | None:
    try:
        return text if 0 <= float(text) <= 1 else None
    except ValueError:
        return None


def _whole(text: str) -> str | None:
    return text if re.fullmatch(r"0*[1-9][0-9]{0,8}", text) else None


def _limit(text: str) -> str | None:
    return text if re.fullmatch(r"[0-9]{1,9}", text) else None


def _one_of(*names: str) -> Callable[[str], str | None]:
    return lambda text: text.lower() if text.lower() in names else None


def _named(group: str, *others: str) -> Callable[[str], bool]:
    """Take what a package that is installed offers under this name."""
    return lambda item: item.strip() in {*entry_points(group=group).names, *others}


_SIGNALS = ("", "TRACES_", "METRICS_", "LOGS_")
_OF_A_SIGNAL = re.compile(r"^OTEL_EXPORTER_OTLP_(TRACES|METRICS|LOGS)_")
_RATIO = _Rule(_ratio, "a number from 0 to 1", "1 (all)")
_SEVERAL = "a whole number above 0, of nine digits at most"
_LONGEST = 1e9  # s, or ms: no timer takes much more
_FLAG = _Rule(_one_of("true", "false"), "'true' or 'false'", "false")

_OF_EXPORTERS: Mapping[str, _Rule] = {
    "TIMEOUT": _Rule(_number, "a number of seconds above 0, up to 1e9", "10"),
    "COMPRESSION": _Rule(_one_of(*COMPRESSIONS), listed(COMPRESSIONS), "none"),
    "PROTOCOL": _Rule(_one_of(*PROTOCOLS), listed(tuple(PROTOCOLS)), "grpc for port 4317, else http/protobuf,"),
    "INSECURE": _FLAG,
}
_OF_BATCHES = {
    "MAX_QUEUE_SIZE": ("65536", "2048"),
    "MAX_EXPORT_BATCH_SIZE": ("2048", "512"),
    "SCHEDULE_DELAY": ("1000", "1000"),
    "EXPORT_TIMEOUT": ("30000", "30000"),
}
_LIMITS = (
    *("ATTRIBUTE_COUNT", "SPAN_ATTRIBUTE_COUNT", "SPAN_EVENT_COUNT", "SPAN_LINK_COUNT", "EVENT_ATTRIBUTE_COUNT"),
    *("LINK_ATTRIBUTE_COUNT", "LOGRECORD_ATTRIBUTE_COUNT"),
    *("ATTRIBUTE_VALUE_LENGTH", "SPAN_ATTRIBUTE_VALUE_LENGTH", "LOGRECORD_ATTRIBUTE_VALUE_LENGTH"),
)

_RULES: Mapping[str, _Rule] = {
    "OTEL_SDK_DISABLED": _FLAG,
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": _FLAG,
    "OTEL_TRACES_SAMPLER": _Rule(_one_of(*SAMPLERS), listed(SAMPLERS), "parentbased_always_on"),
    "OTEL_METRIC_EXPORT_INTERVAL": _Rule(_number, "a number of milliseconds above 0, up to 1e9", "60000"),
    "OTEL_METRIC_EXPORT_TIMEOUT": _Rule(_number, "a number of milliseconds above 0, up to 1e9", "30000"),
    "OTEL_METRICS_EXEMPLAR_FILTER": _Rule(
        _one_of("trace_based", "always_on", "always_off"), "'trace_based', 'always_on' or 'always_off'", "trace_based"
    ),
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": _Rule(
        _one_of("cumulative", "delta", "lowmemory"), "'cumulative', 'delta' or 'lowmemory'", "cumulative"
    ),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": _Rule(
        _one_of("explicit_bucket_histogram", "base2_exponential_bucket_histogram"),
        "'explicit_bucket_histogram' or 'base2_exponential_bucket_histogram'",
        "explicit_bucket_histogram",
    ),
    **{f"OTEL_EXPORTER_OTLP_{of}{name}": rule for of in _SIGNALS for name, rule in _OF_EXPORTERS.items()},
    **{f"OTEL_BSP_{name}": _Rule(_whole, _SEVERAL, spans) for name, (spans, _) in _OF_BATCHES.items()},
    **{f"OTEL_BLRP_{name}": _Rule(_whole, _SEVERAL, records) for name, (_, records) in _OF_BATCHES.items()},
    **{f"OTEL_{name}_LIMIT": _Rule(_limit, "a whole number from 0", "the default") for name in _LIMITS},
}

_HEADER = _Items(
    is_header,
    "header that can be sent",
    "Write name=value, with commas in between and all but plain ASCII URL-encoded, e.g. api-key=secret,tenant=a%2Cb.",
    is_secret=True,
)
_INSTALL = "Correct its name, or install the package that it comes with."
_PROVIDERS = {
    "OTEL_PYTHON_TRACER_PROVIDER": "opentelemetry_tracer_provider",
    "OTEL_PYTHON_METER_PROVIDER": "opentelemetry_meter_provider",
}
_GRPC_CODES = (
    *("CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "ABORTED"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL"),
    *("UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
_LISTS: Mapping[str, _Items] = {
    **{f"OTEL_EXPORTER_OTLP_{of}HEADERS": _HEADER for of in _SIGNALS},
    "OTEL_RESOURCE_ATTRIBUTES": _Items(
        lambda item: bool(re.match(r"\s*[^=\s][^=]*=", item)), "attribute", "Write key=value, with commas in between."
    ),
    "OTEL_PROPAGATORS": _Items(_named("opentelemetry_propagator", "none"), "propagator", _INSTALL),
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES": _Items(
        lambda item: item.strip().upper() in _GRPC_CODES, "status code of gRPC", "Write names as UNAVAILABLE."
    ),
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": _Items(
        _named("opentelemetry_resource_detector", "*"), "resource detector", _INSTALL
    ),
}
