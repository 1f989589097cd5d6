"""What a terminal sends, whatever bytes it is: what can't be read as keys is passed over."""

from __future__ import annotations

import os
import selectors
import signal
from codecs import getincrementaldecoder

from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

from kvtrace_tui.terminal import EXIT_CODES

_READ_BYTES = 4096
_READ_S = 0.1


class SteadyDriver(LinuxDriver):
    """Goes on after input that Textual has no name for.

    Textual's own thread ends at bytes that are no UTF-8 and at codes that are no character: a
    terminal set to Latin-1 sends the ones, a paste the others.
    """

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
