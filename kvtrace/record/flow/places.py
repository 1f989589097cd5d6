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
def _is_user_code(code: CodeType) -> bool:
    path = code.co_filename
    if path.startswith(_LIBRARIES):
        return False
    return not any(part in _HELPERS for part in Path(path).parts)


def place() -> tuple[str, str]:
    """("file.py:line", name of the function) of the innermost frame outside of libraries."""
    frame = sys._getframe(1)
    while frame is not None and not _is_user_code(frame.f_code):
        if frame.f_back is None:
            break
        frame = frame.f_back
    name = Path(frame.f_code.co_filename).name
    return f"{name}:{frame.f_lineno}", frame.f_code.co_qualname
