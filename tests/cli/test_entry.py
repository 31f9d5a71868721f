"""The command itself: how it is started, what it needs, what it says on a terminal."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from tests.cli.command import TRACES, Spanflow


def on_terminal(spanflow: Spanflow, *arguments: str, **variables: str) -> str:
    """What a command prints on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    environment = spanflow.environment(TERM="xterm-256color", COLUMNS="80", **variables)
    with subprocess.Popen(
        spanflow.line(*arguments), stdout=theirs, stderr=theirs, stdin=theirs, env=environment, cwd=spanflow.folder
    ):
        os.close(theirs)
        read = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # the terminal is gone with its last process
                break
            if not part:
                break
            read += part
    os.close(ours)
    return read.decode().replace("\r\n", "\n")


def test_it_is_a_script_and_a_module_with_a_version(empty: Spanflow) -> None:
    script = Path(sys.executable).parent / "spanflow"
    said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"spanflow \d+\.\d+\.\d+\S*\n", said)
    assert empty("--version").out == said


def test_help_has_examples_and_the_exit_codes_and_no_boxes(empty: Spanflow) -> None:
    whole = empty("--help")
    assert whole.code == 0
    assert "Exit codes:\n    0  done" in whole.out
    commands = re.findall(r"^  (\w+)  ", whole.out.partition("Commands:")[2], re.MULTILINE)
    assert {"runs", "show"} <= set(commands)
    for command in commands:
        said = empty(command, "--help")
        assert said.code == 0
        assert f"Examples:\n    spanflow {command}" in said.out
        assert said.out.isascii()


def test_without_a_command_it_says_what_there_is(empty: Spanflow) -> None:
    done = empty()
    assert done.code == 2
    assert "Commands:" in done.out + done.err


def test_without_its_extra_it_says_in_one_line_what_to_install(empty: Spanflow) -> None:
    code = "import runpy, sys; sys.modules[{!r}] = None; runpy.run_module('spanflow', run_name='__main__')"
    for missing in ("typer", "rich"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(missing)], capture_output=True, text=True, env=empty.environment()
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "The command spanflow needs its extra: pip install 'spanflow[cli]'\n"


def test_a_terminal_gets_colours_and_whole_ids(spanflow: Spanflow) -> None:
    listed = on_terminal(spanflow, "runs")
    assert "\x1b[32msuccess" in listed
    assert TRACES["r-1"] in listed
    shown = on_terminal(spanflow, "show", "r-2")
    assert "\x1b[31mERROR ZeroDivisionError" in shown


def test_no_color_is_heard(spanflow: Spanflow) -> None:
    assert "\x1b" not in on_terminal(spanflow, "runs", NO_COLOR="1")
    assert "\x1b" not in on_terminal(spanflow, "show", "r-2", NO_COLOR="1")
