"""What the program logs, as OpenTelemetry has it: with trace, span, run and step. The SDK exports it."""

import logging
import traceback
from collections.abc import Callable
from typing import Any

from opentelemetry import context as context_api
from opentelemetry._logs import LoggerProvider, LogRecord, SeverityNumber
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY  # pyright: ignore[reportPrivateUsage]  # as its SDK does

from spanflow.redaction import REDACTED, is_secret_key
from spanflow.tracing import names
from spanflow.tracing.current import running_step
from spanflow.tracing.metadata import clean
from spanflow.tracing.spans import error_type, text_of

_OWN = "opentelemetry"  # its loggers tell of exports that fail; exporting that would not help
_STANDARD = {*vars(logging.LogRecord("", 0, "", 0, "", None, None)), "message", "asctime", "taskName"}
_SEVERITIES = (
    (logging.CRITICAL, SeverityNumber.FATAL, "FATAL"),
    (logging.ERROR, SeverityNumber.ERROR, "ERROR"),
    (logging.WARNING, SeverityNumber.WARN, "WARN"),
    (logging.INFO, SeverityNumber.INFO, "INFO"),
    (logging.DEBUG, SeverityNumber.DEBUG, "DEBUG"),
)


class LogExport(logging.Handler):
    """Gives what reaches the root logger to a logger provider of the SDK. Made by ``configure_tracing(logs=True)``."""

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        last_resort = logging.lastResort
        if logging.getLogger().handlers == [self] and last_resort is not None and record.levelno >= last_resort.level:
            last_resort.handle(record)  # what Python prints where nobody has set up logging, it still does
        if record.name.partition(".")[0] == _OWN or context_api.get_value(_SUPPRESS_INSTRUMENTATION_KEY):
            return  # an export logs, too; that must not be exported in turn
        try:
            self._provider.get_logger(record.name).emit(_record_of(record))
        except Exception:  # telemetry never breaks what it tells of
            self.handleError(record)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        flush: Callable[[int], bool] | None = getattr(self._provider, "force_flush", None)
        return flush is None or flush(timeout_millis)

    def shutdown(self) -> None:
        """Take no more records, and export those that were taken."""
        logging.getLogger().removeHandler(self)
        shutdown: Callable[[], object] | None = getattr(self._provider, "shutdown", None)
        if shutdown is not None:
            shutdown()


def _record_of(record: logging.LogRecord) -> LogRecord:
    number, text = next(
        ((number, text) for level, number, text in _SEVERITIES if record.levelno >= level),
        (SeverityNumber.TRACE, "TRACE"),
    )
    return LogRecord(
        timestamp=int(record.created * 1e9),
        severity_number=number,
        severity_text=text,
        body=clean(record.getMessage()),
        attributes=_attributes(record),
    )


def _attributes(record: logging.LogRecord) -> dict[str, Any]:
    """Return what else there is to say, by the names of OpenTelemetry's conventions for code and exceptions."""
    attributes: dict[str, Any] = {
        key: _plain(key, value) for key, value in vars(record).items() if key not in _STANDARD
    }
    attributes |= {
        "code.file.path": record.pathname,
        "code.function.name": record.funcName,
        "code.line.number": record.lineno,
    }
    step = running_step.get()
    if step is not None:
        attributes |= {names.RUN_ID: step.run_id, names.STEP_ID: step.step_id, names.STEP_PATH: step.path}
    if record.exc_info is not None and record.exc_info[1] is not None:
        error = record.exc_info[1]
        attributes |= {
            "exception.type": error_type(error),
            "exception.message": clean(text_of(error)),
            "exception.stacktrace": clean("".join(traceback.format_exception(error))),
        }
    return attributes


def _plain(key: str, value: object) -> str | bool | int | float:
    """Return what a caller gave as ``extra`` in a type that an attribute may have."""
    if is_secret_key(key):
        return REDACTED
    return value if isinstance(value, (bool, int, float)) else clean(str(value))
