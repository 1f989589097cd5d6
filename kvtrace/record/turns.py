"""One thread at a time: a model that several threads call is followed in one of them."""

from __future__ import annotations

from threading import Thread, current_thread


class Turns:
    """Whose calls are followed. Threads that take turns are; once two overlapped, one stays.

    Attributes:
        overlapped: Calls of another thread were left out.
    """

    def __init__(self) -> None:
        """Nobody's yet."""
        self.overlapped = False
        self._running: Thread | None = None
        self._bound: Thread | None = None

    def begin(self) -> bool:
        """A call begins in this thread; whether it is followed."""
        mine, running = current_thread(), self._running
        if running is not None and running is not mine:
            self._bound = running
        bound = self._bound
        if bound is not None and bound is not mine and bound.is_alive():
            self.overlapped = True
            return False
        self._running = mine
        return True

    def end(self) -> None:
        """The call that was followed is over."""
        self._running = None
