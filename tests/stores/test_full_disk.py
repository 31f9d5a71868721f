"""A disk that is full: the run says so, and goes on from where it stood once there is room."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from spanflow import Runtime, SQLiteStore
from tests.stores import filling

ROOT = Path(__file__).parents[2]


async def test_a_run_that_finds_the_disk_full_fails_clearly_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    line = [sys.executable, "-m", "tests.stores.filling", str(path)]
    child = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert child.stdout.startswith("StoreError: "), child.stderr
    assert f"{path} cannot be read or written" in child.stdout
    assert "the file itself stays sound" in child.stdout
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    async with Runtime(SQLiteStore(path), workflows=[filling.growing]) as runtime:
        run = await runtime.get_run("r-1")
        result = await run.wait()
    assert result.unwrap() == filling.STEPS
    assert max(step.attempt for step in result.steps.values()) == 2  # the one that could not be stored
