"""The terminal as Textual knows it, made to last: odd bytes end nothing, nor does its own end."""

from __future__ import annotations

import os
import selectors
import signal
import sys
from codecs import getincrementaldecoder
from typing import IO, Any, cast

from textual._xterm_parser import XTermParser
from textual.app import App
from textual.drivers.linux_driver import LinuxDriver

from kvtrace_tui.terminal import EXIT_CODES

_READ_BYTES = 4096
_READ_S = 0.1


class SteadyOutput:
    """The stream of a terminal that may be gone: from then on what is written goes nowhere.

    The thread that writes would end at an error, and leaving the app would wait for it for ever.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write, or not."""
        try:
            self._stream.write(text)
        except OSError:
            self._let_go()

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            self._stream.flush()
        except OSError:
            self._let_go()

    def fileno(self) -> int:
        """Of the stream."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Of the stream."""
        return self._stream.isatty()

    def _let_go(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # what is still buffered can be flushed to it
        os.close(nowhere)


class SteadyDriver(LinuxDriver):
    """Goes on after input that Textual has no name for, and ends where the terminal is gone.

    Textual's own thread ends at bytes that are no UTF-8 and at codes that are no character: a
    terminal set to Latin-1 sends the ones, a paste the others.
    """

    def __init__(
        self,
        app: App[object],
        *,
        debug: bool = False,
        mouse: bool = True,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Args: as Textual gives them."""
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        # Textual draws on stderr, which people send to a file or nowhere
        self._file = cast(Any, SteadyOutput(cast(IO[str], sys.__stdout__)))

    def run_input_thread(self) -> None:
        """Hear the terminal until told to stop, or until it is gone."""
        decode = getincrementaldecoder("utf-8")("replace").decode
        parser = XTermParser(self._debug)
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                text = ""
                if selector.select(_READ_S):
                    raw = self._read()
                    if not raw:
                        self._app.call_later(self._app.exit, EXIT_CODES[signal.SIGHUP])
                        return
                    text = decode(raw)
                for character in text:
                    parser = self._hear(parser, character)
                for message in parser.tick():
                    self.process_message(message)

    def _read(self) -> bytes:
        """What was typed; nothing: the terminal is gone."""
        try:
            return os.read(self.fileno, _READ_BYTES)
        except OSError:
            return b""

    def _hear(self, parser: XTermParser, character: str) -> XTermParser:
        """One more character; the parser that goes on, a new one where this one can't."""
        try:
            for message in parser.feed(character):
                self.process_message(message)
        except (ArithmeticError, LookupError, RuntimeError, ValueError):
            return XTermParser(self._debug)
        return parser
