"""Where in the model's own code something is calculated."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from types import CodeType

import torch

_OURS = str(Path(__file__).parent)
_LIBRARIES = (str(Path(torch.__file__).parent), _OURS)
_HELPERS = ("einops", "opt_einsum", "contextlib.py", "functools.py")


@lru_cache(maxsize=4096)
def _user_file(code: CodeType) -> str | None:
    """Name of the file of user code; None for a library's."""
    path = Path(code.co_filename)
    if code.co_filename.startswith(_LIBRARIES) or any(part in _HELPERS for part in path.parts):
        return None
    return path.name


def place() -> tuple[str, str]:
    """("file.py:line", name of the function) of the innermost frame outside of libraries."""
    frame = sys._getframe(1)
    while (name := _user_file(frame.f_code)) is None and frame.f_back is not None:
        frame = frame.f_back
    return f"{name}:{frame.f_lineno}", frame.f_code.co_qualname
