"""An exception as data."""

import traceback

from spanflow.events import StepError
from spanflow.tracing.spans import error_type


def failure(error: BaseException, path: str) -> StepError:
    """Describe an exception that ended the step at ``path``. The exception itself stays attached."""
    text = "".join(traceback.format_exception(error))
    return StepError(path=path, type=error_type(error), message=_message(error), traceback=text).with_exception(error)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the words of traceback.format_exception for it
        return "<exception str() failed>"
