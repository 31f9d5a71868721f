"""What commands print: with colours and lines on a terminal, plain text in a pipe, JSON where asked for."""

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic_core import to_json
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from spanflow.tracing.lines import printable

OK = 0
FAILED = 1
REFUSED = 2
WAITS = 3
INTERRUPTED = 130
"""Exit codes. 1: the run failed or was canceled, or something was found; 2: bad usage, input or store; 3: a run that
was resumed or followed waits for an answer."""

_ANY_WIDTH = 10_000
_STYLES = {"success": "green", "failed": "red", "running": "cyan", "suspended": "yellow", "canceled": "magenta"}

_MARKS = {"ok": "green", "WRONG": "bold red", "note": "cyan"}


@cache
def is_rich() -> bool:
    """Tell whether the output may have colours; ``NO_COLOR`` and ``FORCE_COLOR`` have their usual meaning."""
    console = Console()
    return console.is_terminal and not console.no_color and not console.is_dumb_terminal


def write(text: str = "") -> None:
    """Print text as it is."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding))


def tell(text: str) -> None:
    """Print a remark that is no part of the result."""
    encoding = sys.stderr.encoding or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding), file=sys.stderr, flush=True)


def write_json(value: Any) -> None:
    """Print one JSON document."""
    write(to_json(value, indent=2, inf_nan_mode="strings", fallback=str).decode())


def write_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table, without lines around its cells; columns named in ``right`` are aligned to the right."""
    if is_rich():
        _write_rich(heads, rows, right)
        return
    lines = [heads, *([printable(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        cells = (
            cell.rjust(width) if head in right else cell.ljust(width)
            for head, cell, width in zip(heads, line, widths, strict=True)
        )
        write("  ".join(cells).rstrip())


def painted(status: str) -> str:
    """Return a status in its colour, where the output has colours."""
    return _styled(status, _STYLES.get(status, ""))


def marked(mark: str) -> str:
    """Return the mark of a check, as wide as the widest, in its colour."""
    return _styled(f"{mark:<5}", _MARKS.get(mark, ""))


def _styled(text: str, style: str) -> str:
    if not style or not is_rich():
        return text
    console = Console()
    with console.capture() as captured:
        console.print(Text(text, style=style), end="")
    return captured.get()


def _write_rich(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, justify="right" if head in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell), style=_STYLES.get(cell, "")) for cell in row))
    wide = Measurement.get(Console(width=_ANY_WIDTH), Console(width=_ANY_WIDTH).options, table).maximum
    Console(width=max(wide, Console().width)).print(table, crop=False)  # an id that is cut is of no use
