"""The command `spanflow`: runs of a store, their trees and events, and what keeps a trace from showing up."""

import sys

_EXTRA = ("typer", "rich")

try:
    from spanflow.cli.app import main as main
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] not in _EXTRA:
        raise

    def main() -> None:
        """Say what is missing."""
        print("The command spanflow needs its extra: pip install 'spanflow[cli]'", file=sys.stderr)
        sys.exit(1)
