"""Where in the model's own code something is calculated."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import torch

from kvtrace.record.written import file_of

_OURS = str(Path(__file__).parent.parent)
_LIBRARIES = (str(Path(torch.__file__).parent), _OURS)
_HELPERS = ("einops", "opt_einsum", "contextlib.py", "functools.py")

MOST = 4096
"""Pieces of code that are remembered."""


_files: dict[int, tuple[CodeType, str | None]] = {}
"""By the identity of code, which is kept here: its hash takes in all that it consists of."""


def _user_file(code: CodeType) -> str | None:
    """Name of the file of user code; None for a library's."""
    known = _files.get(id(code))
    if known is None:
        if len(_files) >= MOST:
            _files.clear()
        path = Path(code.co_filename)
        theirs = code.co_filename.startswith(_LIBRARIES)
        theirs = theirs or any(part in _HELPERS for part in path.parts)
        known = _files[id(code)] = (code, None if theirs else file_of(code))
    return known[1]


def place() -> tuple[str, str]:
    """("file.py:line", name of the function) of the innermost frame outside of libraries."""
    frame = sys._getframe(1)
    while (name := _user_file(frame.f_code)) is None and frame.f_back is not None:
        frame = frame.f_back
    return f"{name}:{frame.f_lineno}", frame.f_code.co_qualname


def callers(most: int) -> Iterator[tuple[str, str]]:
    """(name, name with its class) of functions outside of libraries that run, the innermost first.

    Args:
        most: Frames that are looked at.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(most):
        if frame is None:
            return
        if _user_file(frame.f_code) is not None:
            yield frame.f_code.co_name, frame.f_code.co_qualname
        frame = frame.f_back
