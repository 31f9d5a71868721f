"""What the environment gives to tests: services and programs that a bare machine does not have."""

import os

import pytest


def given(variable: str, what: str) -> str:
    """Return the value of a variable. Without it, a test is skipped; where all must run, it fails."""
    value = os.environ.get(variable)
    if value is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{variable} is not set, and the checks must not go without it: {what}")
        pytest.skip(f"{variable} is not set: {what}")
    return value
