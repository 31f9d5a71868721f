"""What tests of contexts share."""

import gc
import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_failed_detach(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing in a test may log, on `opentelemetry.context` least of all."""
    caplog.set_level(logging.WARNING)
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.get_records("call") if record.name != "asyncio"] == []
