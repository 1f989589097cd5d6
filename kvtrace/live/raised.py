"""An exception that a program raised, as Python would show it if nobody watched."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
import types

from kvtrace.paths import OURS

_RUNPY = (runpy.__file__, "<frozen runpy>")
_ASKS = "handle_torch_function"
"""The function of torch that calls a mode."""


def show(error: BaseException) -> None:
    """Show an exception on stderr, without the frames of kvtrace.

    Args:
        error: That the program raised; its traceback is cut.
    """
    _trim(error, set())
    sys.excepthook(type(error), error, error.__traceback__)


def _trim(error: BaseException | None, seen: set[int]) -> None:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    kept = None
    for one in reversed(_theirs(error.__traceback__)):
        kept = types.TracebackType(kept, one.tb_frame, one.tb_lasti, one.tb_lineno)
    error.__traceback__ = kept
    _trim(error.__cause__, seen)
    _trim(error.__context__, seen)


def _theirs(trace: types.TracebackType | None) -> list[types.TracebackType]:
    """The frames that there were without us."""
    frames: list[types.TracebackType] = []
    asked = False
    while trace is not None:
        code = trace.tb_frame.f_code
        if _is_ours(code.co_filename):
            if frames and frames[-1].tb_frame.f_code.co_name == _ASKS:
                frames.pop()
                asked = True
        else:
            if asked and frames and frames[-1].tb_frame.f_code is code:
                frames.pop()  # a function of torch that asked our mode, and is called by it
            frames.append(trace)
            asked = False
        trace = trace.tb_next
    return frames


def _is_ours(file: str) -> bool:
    return file.startswith(f"{OURS}{os.sep}") or file in _RUNPY


def is_runpys(error: BaseException) -> bool:
    """Whether Python itself raised it, where it looks for a module to run."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_filename in _RUNPY
