"""Whether there is a terminal to draw on, and making its input ours again after a piped prompt."""

from __future__ import annotations

import os
import sys


def can_draw() -> bool:
    """Whether a screen can be shown: a real terminal at both ends, one that can move its cursor."""
    if os.environ.get("TERM", "") in ("", "dumb"):
        return False
    return _is_terminal(0) and _is_terminal(1)


def take_input_back() -> None:
    """Keys come from the terminal itself, if there is one, once the prompt came from a pipe."""
    if _is_terminal(0):
        return
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
    except OSError:
        return
    os.dup2(terminal, 0)
    os.close(terminal)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def fill_closed_streams() -> None:
    """Give closed standard streams something to write to, so that nothing else takes their place.

    A program started with `2>&-` would otherwise open its first file as descriptor 2.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - lives as long as we do
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
