"""An exception as data."""

import traceback

from spanflow.events import StepError
from spanflow.tracing.metadata import clean
from spanflow.tracing.spans import error_type


def failure(error: BaseException, path: str) -> StepError:
    """Describe an exception that ended the step at ``path``. The exception itself stays attached.

    What UTF-8 cannot carry is replaced: an error is never what a store refuses.
    """
    text, message = "".join(traceback.format_exception(error)), _message(error)
    told = StepError(path=path, type=error_type(error), message=clean(message), traceback=clean(text))
    return told.with_exception(error)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the words of traceback.format_exception for it
        return "<exception str() failed>"
