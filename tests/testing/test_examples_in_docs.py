"""What the docstrings of spanflow.testing show is what happens."""

import doctest
from types import ModuleType

import pytest

import spanflow.testing
from spanflow.testing import capture, clock, metering, steps


@pytest.mark.parametrize(
    "module", [spanflow.testing, capture, clock, metering, steps], ids=lambda module: module.__name__
)
def test_the_examples_of_a_module_give_what_they_say(module: ModuleType) -> None:
    outcome = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_the_public_names_are_pinned() -> None:
    assert spanflow.testing.__all__ == [
        "Aborted",
        "Bailed",
        "FakeClock",
        "FakeStepContext",
        "Measured",
        "Metrics",
        "Suspended",
        "Traces",
        "capture_metrics",
        "capture_traces",
        "step_context",
    ]
