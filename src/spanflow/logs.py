"""Log records that say which trace, span, run and step they belong to."""

import logging

from spanflow.context import current_step
from spanflow.tracing.spans import current_ids


class TraceContextFilter(logging.Filter):
    """Add ``trace_id``, ``span_id``, ``run_id`` and ``step_id`` to each record; ``"-"`` where there is none.

    Add it to a handler: ``handler.addFilter(TraceContextFilter())``, and use ``%(trace_id)s`` in its format.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        ids, step = current_ids(), current_step()
        record.trace_id, record.span_id = ids or ("-", "-")
        record.run_id, record.step_id = (step.run_id, step.step_id) if step is not None else ("-", "-")
        return True
