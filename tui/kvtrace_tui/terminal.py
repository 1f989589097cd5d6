"""The terminal around the app: what it can write, and leaving it in order whatever happens."""

from __future__ import annotations

import asyncio
import codecs
import io
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_LEAVING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
EXIT_CODES = {number: 128 + number for number in _LEAVING}

_ASCII = str.maketrans({
    "▀": "#", "▁": "_", "▂": "_", "▃": "=", "▄": "=", "▅": "#", "▆": "#", "▇": "#", "█": "#",
    "▏": "|", "▎": "|", "▍": "|", "▌": "|", "▋": "#", "▊": "#", "▉": "#", "░": ".", "▒": "+",
    "▓": "%", "│": "|", "─": "-", "◆": "*", "●": "*", "■": "#", "▲": "^", "✗": "x", "✓": "v",
    "‖": "=", "…": "~", "·": ".", "⏎": "$", "⇥": ">", "−": "-", "×": "x", "→": ">", "←": "<",
    "↑": "^", "↓": "v", "∅": "0", "±": "~", "⟨": "<", "⟩": ">", "▸": ">", "▶": ">", "◀": "<",
    "Δ": "d", "’": "'", "–": "-", "\u202f": " ",
})  # fmt: skip
_HANDLER = "kvtrace-ascii"


def _closest(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that the terminal's encoding lacks: one cell for one."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end].translate(_ASCII)
    return "".join(c if c.isascii() else "?" for c in part), error.end


@contextmanager
def writable() -> Iterator[None]:
    """Let the stream that is drawn on take any character, in any locale."""
    codecs.register_error(_HANDLER, _closest)
    stream = sys.__stdout__
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    errors = stream.errors or "strict"
    stream.reconfigure(errors=_HANDLER)
    try:
        yield
    finally:
        stream.reconfigure(errors=errors)


def hung_up() -> bool:
    """Whether the terminal that keys come from is gone, also where no signal said so."""
    if not hasattr(select, "poll"):
        return False
    poller = select.poll()
    poller.register(0, 0)  # what is asked for is nothing: a hang-up is told all the same
    # not POLLNVAL: some systems answer it for every terminal
    return any(told & (select.POLLHUP | select.POLLERR) for _, told in poller.poll(0))


def on_signals(leave: Callable[[int], None]) -> None:
    """Within the running loop: signals that end a program leave the app with their exit code."""
    loop = asyncio.get_running_loop()
    for number, code in EXIT_CODES.items():
        with suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(number, leave, code)
