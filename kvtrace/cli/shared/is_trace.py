"""Whether a word of the command is a trace."""

from __future__ import annotations

from pathlib import Path

from kvtrace.paths import is_file


def is_trace(path: Path) -> bool:
    """Whether it is a file that starts like a trace, whatever its name."""
    if not is_file(path):
        return False
    from kvtrace.files.layout import MAGIC

    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
