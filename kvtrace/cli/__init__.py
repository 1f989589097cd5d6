"""The command line: one file per verb; what a verb needs is imported when it runs."""

from __future__ import annotations

import gc
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is returned."""
    # nothing that is loaded until its verb runs becomes garbage
    gc.disable()
    try:
        from kvtrace.cli import entry

        return entry.main(argv)
    finally:
        gc.enable()
