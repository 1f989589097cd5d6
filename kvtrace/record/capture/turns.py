"""One thread at a time: a model that several threads call is followed in one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Thread, current_thread

PATIENCE_S = 60.0
"""How long a call in another thread is waited for before it is left alone."""


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
        self._over = False
        self._changed = Condition()

    @property
    def says(self) -> tuple[str, ...]:
        """What was not recorded, as a sentence."""
        other = "calls in other threads while one was running were not recorded"
        return (other,) if self.overlapped else ()

    def begin(self) -> bool:
        """A call begins in this thread; whether it is followed."""
        with self._changed:
            if self._over:
                return False
            mine, running = current_thread(), self._running
            if running is not None and running is not mine:
                self._bound = running
            bound = self._bound
            if bound is not None and bound is not mine and bound.is_alive():
                self.overlapped = True
                return False
            self._running = mine
            return True

    def are_others(self) -> bool:
        """Whether a call that begins in this thread now would be left out."""
        with self._changed:
            mine, bound, running = current_thread(), self._bound, self._running
            taken = bound is not None and bound is not mine and bound.is_alive()
            return taken or (running is not None and running is not mine)

    def end(self) -> None:
        """The call that was followed is over."""
        with self._changed:
            self._running = None
            if self._over:  # nobody waits before
                self._changed.notify_all()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """The call that was followed is over once everybody was told of it, in here."""
        try:
            yield
        finally:
            self.end()

    def bind(self) -> None:
        """Only calls of this thread are followed."""
        self._bound = current_thread()

    def close(self) -> None:
        """No call is followed any more; one that another thread is in is waited for."""
        with self._changed:
            self._over = True
            self._changed.wait_for(self._alone, timeout=PATIENCE_S)

    def _alone(self) -> bool:
        running = self._running
        return running is None or running is current_thread() or not running.is_alive()
