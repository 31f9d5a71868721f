"""Find the user's workflows by ``--app``, for commands that execute them in this process."""

import inspect
import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from spanflow.cli.options import UsageError
from spanflow.errors import SpanflowError
from spanflow.ports import Store
from spanflow.runtime import Runtime
from spanflow.workflow import Workflow

_WANTED = "a Workflow, a list of them, or a function that is given the store and returns a Runtime"


def runtime_of(app: str | None, store: Store) -> Runtime:
    """Return a runtime on this store that knows the workflows of ``module:name`` or ``path/to/file.py:name``.

    Raises:
        SpanflowError: it cannot be imported, or is none.
    """
    if not app:
        raise UsageError(
            "Whose code? Give --app package.module:name or --app path/to/file.py:name, or set SPANFLOW_APP;"
            f" name is {_WANTED}."
        )
    module, place, name = _module_of(app)
    found: Any = getattr(module, name, None)
    if found is None:
        names = (name for name, value in vars(module).items() if isinstance(value, Workflow))
        raise UsageError(f"--app {app!r}: {place} has no {name!r}. Its workflows: {', '.join(names) or 'none'}.")
    return _runtime(app, found, store)


def import_app(app: str) -> None:
    """Import the module of ``module:name``, for what it sets up. Raises UsageError where it cannot be imported."""
    _module_of(app)


def _module_of(app: str) -> tuple[ModuleType, str, str]:
    place, _, name = app.rpartition(":")
    if not place or not name:
        raise UsageError(f"--app {app!r} was to be package.module:name or path/to/file.py:name.")
    return _imported(app, place), place, name


def _runtime(app: str, found: object, store: Store) -> Runtime:
    workflows = _workflows_in(found)
    if workflows:
        return Runtime(store, workflows=workflows)
    if not callable(found):
        raise UsageError(f"--app {app!r} is of type {type(found).__name__}: {_WANTED}, was expected.")
    try:
        inspect.signature(found).bind(store)
    except TypeError:
        raise UsageError(
            f"--app {app!r} must take the store, and nothing else:"
            " def make_runtime(store): return Runtime(store, workflows=[...])."
        ) from None
    try:
        made: object = found(store)
    except SpanflowError:
        raise
    except Exception as error:
        raise UsageError(_raised(app, "called", error)) from error
    if not isinstance(made, Runtime):
        raise UsageError(f"--app {app!r} returned a value of type {type(made).__name__}: a Runtime was expected.")
    return made


def _workflows_in(found: object) -> list[Workflow[Any, Any]]:
    """Return a workflow, or those of a list of nothing else."""
    listed: list[object] = [found]
    if isinstance(found, (list, tuple, set, frozenset)):
        listed = list(cast("Iterable[object]", found))
    workflows: list[Workflow[Any, Any]] = [each for each in listed if isinstance(each, Workflow)]
    return workflows if len(workflows) == len(listed) else []


def _imported(app: str, place: str) -> ModuleType:
    path = Path(place)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise UsageError(f"--app {app!r}: there is no file {path.absolute()}.")
    sys.path.insert(0, str(path.absolute().parent if is_file else Path.cwd()))  # as `python` itself would
    try:
        return _from_file(path) if is_file else import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise UsageError(_raised(app, "imported", error)) from error
        raise UsageError(
            f"--app {app!r}: no module named {error.name!r} is here. Run this where it can be imported, or give the"
            " file: --app path/to/file.py:name."
        ) from None
    except (Exception, SystemExit) as error:
        raise UsageError(_raised(app, "imported", error)) from error


def _from_file(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[path.stem] = module  # annotations are looked up there
    spec.loader.exec_module(module)
    return module


def _raised(app: str, when: str, error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"--app {app!r} raised when it was {when}{where}: {type(error).__name__}: {error}"
