"""Between two steps of the decode loop: what the user orders.

A pause waits after the forward and before its token is chosen, so that the step can be looked at
and another token chosen. The step is then already in the file when its token becomes known; its
successor, or a note, says which one it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvtrace.files.notes import append_note
from kvtrace.live.messages import Paused, Said
from kvtrace.live.orders import Orders
from kvtrace.live.voice import Voice
from kvtrace.trace import Note

if TYPE_CHECKING:
    from kvtrace.record import Recording


class Turn:
    """Implements `kvtrace.record.decode.Control` for a recording that somebody watches."""

    def __init__(self, recording: Recording, orders: Orders, voice: Voice, vocab_size: int) -> None:
        self._recording = recording
        self._orders = orders
        self._voice = voice
        self._vocab_size = vocab_size
        self._shown = self._last_token = -1
        self._number = -1

    def proceed(self) -> bool:
        """Whether the next step may begin: not after a stop, and not once writing has failed."""
        recorder = self._recording.recorder
        failed = recorder is not None and recorder.failure is not None
        return not (self._orders.stopped or failed)

    def take_token(self) -> int | None:
        """Wait while paused; the token the user chose, if the model has it."""
        recorder = self._recording.recorder
        if recorder is not None and recorder.last is not None:
            self._number = recorder.last.number
        while True:
            self._orders.await_turn(self._show_step)
            token = self._orders.take_token()
            if token is None or 0 <= token < (self._vocab_size or token + 1):
                return token
            self._voice.say(
                Said(f"token {token} was chosen, but ids go from 0 to {self._vocab_size - 1}")
            )

    def chosen(self, token: int) -> None:
        """The token to go on with."""
        self._last_token = token
        self._recording.choose(token)

    def note_last_token(self, path: Path) -> None:
        """After the end: the last step's token, if that step was written before it was chosen."""
        if self._shown == self._number >= 0:
            append_note(path, Note("chosen", str(self._last_token), step=self._number))

    def _show_step(self) -> None:
        """The step that waits for its token goes into the file, to be looked at."""
        recorder = self._recording.recorder
        if recorder is not None:
            recorder.flush()
        self._shown = self._number
        self._voice.say(Paused(self._number))
