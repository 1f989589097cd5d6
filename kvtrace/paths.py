"""Whether a word names something on the disk, and how people call it.

What no path can be, such as a long prompt, names nothing: `Path` calls that an error, `os.path`
does not.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from traceback import FrameSummary

NOTEBOOK = (
    "a notebook; make a script of it with `jupyter nbconvert --to script {0}`, or put "
    '`with kvtrace.record("run.kvt"):` around a cell\'s code'
)
"""What to do with a notebook of this name."""

OURS = Path(__file__).resolve().parent
"""Where this package is."""


def is_folder(path: Path) -> bool:
    """Whether it is a directory."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: Path) -> bool:
    """Whether it is a regular file."""
    return os.path.isfile(path)  # noqa: PTH113


def leads_nowhere(path: Path) -> bool:
    """Whether it is a symbolic link to nothing: to a file that is gone, or round in a circle."""
    return os.path.islink(path) and not os.path.exists(path)  # noqa: PTH110, PTH114


def shown(path: Path, here: Path | None = None) -> str:
    """As people type it: from the working directory on, or from home on, or whole.

    Args:
        path: Absolute where `here` is given.
        here: The directory they type it in; where this process is now, unless it went elsewhere.
    """
    whole = path.absolute()
    for base, said in ((Path.cwd() if here is None else here, ""), (home("~"), "~/")):
        if whole.is_relative_to(base):
            return f"{said}{whole.relative_to(base)}"
    return str(whole)


def line_of(frame: FrameSummary) -> str:
    """`model.py:12`: the file and line of a call, as its author calls them."""
    return f"{Path(frame.filename).name}:{frame.lineno}"


def home(word: str) -> Path:
    """The path a word means, `~` and `~name` replaced where such a home is known."""
    return Path(os.path.expanduser(word))  # noqa: PTH111 - Path's own raises where it is not
