"""Hear what the OTLP exporters log instead of having it printed, and judge by it what became of a batch.

Their ``export`` only says that it failed; which status the receiver gave, and whether trying again makes sense, is in
their log alone. A line in words that are not known here is printed as ever.
"""

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

LONGEST_PAUSE = 30.0  # s that a receiver may ask to be left alone


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a batch: taken, to be tried again after ``pause`` seconds, to be split, or refused for good.

    ``words`` are the exporter's own for what is wrong with the connection.
    """

    kind: Literal["sent", "later", "unanswered", "too_large", "refused"]
    pause: float = 0.0
    words: str = ""


_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.util.re",  # malformed headers, which are named without their values when tracing is configured
)
_RETRY = "Transient error"
_KNOWN = (
    _RETRY,
    "Failed to export",
    "Failed to encode",
    "Failed to read file",  # a certificate, which the diagnosis names
    "Dropping",
    "Shutdown in progress",
    "Exporter already shutdown",
    "OTLP client already shutdown",
    "Header format invalid",
)


class _Hearing(threading.local):
    records: list[logging.LogRecord] | None = None
    on_retry: Callable[[], None] | None = None


_heard = _Hearing()


class _Ear(logging.Filter):
    """Takes the lines that are translated here from the log, while an exporter of ours runs on the same thread."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _heard.records is None:
            return True
        if not str(record.msg).startswith(_KNOWN):
            line = record.getMessage()
            new = line not in _passed
            _passed.add(line)
            return new  # an exporter is made more than once, and would say it each time
        _heard.records.append(record)
        if str(record.msg).startswith(_RETRY) and _heard.on_retry is not None:
            _heard.on_retry()
        return False


_ear = _Ear()
_passed: set[str] = set()


@contextmanager
def hearing(on_retry: Callable[[], None] | None = None) -> Generator[list[logging.LogRecord]]:
    """Hear what exporters log on this thread, instead of having it printed; ``on_retry`` when one wants to wait."""
    for name in _LOGGERS:
        filters = logging.getLogger(name).filters
        if _ear not in filters:
            filters.insert(0, _ear)  # before the SDK's own, which lets the same line pass only once
    before = _heard.records, _heard.on_retry
    _heard.records, _heard.on_retry = [], on_retry
    try:
        yield _heard.records
    finally:
        _heard.records, _heard.on_retry = before


_PHRASES = {each.phrase: each.value for each in HTTPStatus}
_REFUSING = frozenset(
    ["UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"]
)


def judge(heard: Sequence[logging.LogRecord], seconds: float) -> tuple[Verdict, str]:
    """Return the verdict on a batch that was not taken, and what the receiver said, as far as it said anything."""
    pause, status, details, words, retried = 0.0, "", "", "", False
    for record in heard:
        arguments: list[Any] = list(record.args) if isinstance(record.args, tuple) else []
        message = str(record.msg)
        retried = retried or message.startswith(_RETRY)
        if message.startswith(("Failed to encode", "Dropping")):
            return Verdict("too_large"), record.getMessage()
        for each in arguments:
            if type(each).__name__ == "StatusCode":
                status, details = each.name, str(arguments[-1])
            elif isinstance(each, int) and 300 <= each < 600:
                status, details = str(each), str(arguments[-1])
            elif isinstance(each, float) and message.startswith(_RETRY):
                pause = min(each, LONGEST_PAUSE)
        if message.startswith(_RETRY) and arguments and isinstance(arguments[0], Exception):
            words = str(arguments[0])
        elif message.startswith(_RETRY) and arguments and arguments[0] in _PHRASES:
            status, details = str(_PHRASES[arguments[0]]), arguments[0]
    said = f"{status} {details}".strip() if status.isdecimal() or not status else f"{status}: {details}"
    if status == "413" or (status == "RESOURCE_EXHAUSTED" and "larger than max" in details):
        return Verdict("too_large"), said
    if status in _REFUSING or (status.isdecimal() and not retried):
        return Verdict("refused"), said
    if status == "DEADLINE_EXCEEDED" or (not status and not retried and seconds > 1):
        return Verdict("unanswered"), ""
    return Verdict("later", pause, words), said
