"""What ``import spanflow`` gives: its names, their documentation, and what it costs."""

import doctest
import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from types import ModuleType
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import spanflow

NAMES = [
    "DefinitionError",
    "Err",
    "Event",
    "EventTimeout",
    "InvalidInput",
    "InvalidOutput",
    "LoopLimit",
    "MemoryStore",
    "NoBranchMatched",
    "NotRecorded",
    "NotSuspended",
    "Ok",
    "OutsideRun",
    "Redacted",
    "Retry",
    "Run",
    "RunCanceled",
    "RunConflict",
    "RunFailed",
    "RunInterrupted",
    "RunNotFound",
    "RunState",
    "RunStream",
    "RunSuspended",
    "RunUnsuccessful",
    "Runtime",
    "SQLiteStore",
    "SpanflowError",
    "Step",
    "StepContext",
    "StepError",
    "StepNotCompleted",
    "StepResult",
    "StepTimeout",
    "StoreError",
    "Tool",
    "ToolResult",
    "TraceContextFilter",
    "TracingContext",
    "TracingOptions",
    "UnknownEvent",
    "Workflow",
    "WorkflowResult",
    "configure_tracing",
    "step",
    "tool",
]

SHOWN_BY_EXAMPLE = [
    "Ok",
    "Retry",
    "Run",
    "RunStream",
    "Runtime",
    "SQLiteStore",
    "StepContext",
    "ToolResult",
    "Workflow",
    "WorkflowResult",
    "step",
    "tool",
]

# Heavy, or of an extra: imported by what needs them, once it is asked for.
NOT_IMPORTED = [
    "google.protobuf",
    "grpc",
    "opentelemetry.exporter",
    "opentelemetry.proto",
    "opentelemetry.sdk",
    "psycopg",
    "pytest",
    "requests",
    "rich",
    "sqlite3",
    "typer",
]


def members(union: Any) -> list[type[BaseModel]]:
    """The models in an annotated union."""
    return list(get_args(get_args(union)[0]))


def modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(spanflow.__path__, "spanflow.")
    return [spanflow, *(import_module(each.name) for each in found)]


def test_the_public_names_are_these() -> None:
    assert spanflow.__all__ == NAMES


def test_the_public_names_are_there_and_sorted() -> None:
    missing = [name for name in spanflow.__all__ if not hasattr(spanflow, name)]

    assert missing == []
    assert spanflow.__all__ == sorted(spanflow.__all__)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Event"])
def test_every_public_name_says_what_it_is_for(name: str) -> None:
    value = getattr(spanflow, name)

    own = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__

    assert own
    assert not own.startswith(f"{name}("), "a dataclass without a docstring gets its signature for one"


def test_every_event_says_what_it_is_for() -> None:
    events = members(spanflow.Event)

    undocumented = [event.__name__ for event in events if not vars(event).get("__doc__")]

    assert len(events) == 13
    assert undocumented == []


@pytest.mark.parametrize("name", SHOWN_BY_EXAMPLE)
def test_what_users_write_with_is_shown_by_an_example(name: str) -> None:
    documentation = inspect.getdoc(getattr(spanflow, name)) or ""

    assert "Example:\n    >>> " in documentation


def test_examples_in_docstrings_do_what_they_say() -> None:
    results = {
        module.__name__: doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.REPORT_ONLY_FIRST_FAILURE)
        for module in modules()
    }

    assert [name for name, result in results.items() if result.failed] == []
    assert sum(result.attempted for result in results.values()) > len(SHOWN_BY_EXAMPLE)


def test_importing_spanflow_imports_no_sdk_exporter_or_extra() -> None:
    code = "import sys; import spanflow; print(*sys.modules, sep='\\n')"

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    imported = output.split()
    heavy = [name for name in imported if any(f"{name}.".startswith(f"{each}.") for each in NOT_IMPORTED)]
    assert "spanflow.workflow" in imported
    assert heavy == []


def test_importing_any_module_of_the_core_imports_no_extra() -> None:
    edges = ("spanflow.__main__", "spanflow.cli", "spanflow.stores.postgres", "spanflow.testing")
    names = [module.__name__ for module in modules() if not module.__name__.startswith(edges)]
    code = f"import sys\nfor name in {names!r}: __import__(name)\nprint(*sys.modules, sep='\\n')"

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    imported = output.split()
    extras = ("psycopg", "pytest", "rich", "typer")
    assert set(names) <= set(imported)
    assert [name for name in imported if name.partition(".")[0] in extras] == []
