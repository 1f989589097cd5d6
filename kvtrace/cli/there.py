"""Whether a word of the command names something on the disk.

What no path can be, such as a long prompt, names nothing; the system calls that an error.
"""

from __future__ import annotations

from pathlib import Path


def is_folder(path: Path) -> bool:
    """Whether it is a directory."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether it is a regular file."""
    try:
        return path.is_file()
    except OSError:
        return False


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
