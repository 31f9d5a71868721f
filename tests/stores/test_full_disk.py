"""A disk that is full: the run says so, and goes on from where it stood once there is room."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from spanflow import Runtime, SQLiteStore
from tests.stores import filling

ROOT = Path(__file__).parents[2]


def fill(path: Path) -> str:
    """Return what the run's own process said of it."""
    line = [sys.executable, "-m", "tests.stores.filling", str(path)]
    return subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=200, check=True).stdout


async def test_a_run_that_finds_the_disk_full_fails_clearly_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    said = fill(path)
    assert said.startswith(f"StoreError: {path} cannot be read or written")
    assert "the file itself stays sound" in said
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    async with Runtime(SQLiteStore(path), workflows=[filling.growing]) as runtime:
        run = await runtime.get_run("r-1")
        result = await run.wait()
    assert result.unwrap() == filling.STEPS
    assert max(step.attempt for step in result.steps.values()) == 2  # the one that could not be stored
