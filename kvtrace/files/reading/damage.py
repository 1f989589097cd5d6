"""What can't be read of a file, each said once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvtrace.errors import TraceError
from kvtrace.trace import Damage

_MOST = 1000


class DamageList:
    """Damage in the order it was met. A bad tail is kept apart: it may still be written."""

    __slots__ = ("_found", "tail")

    def __init__(self) -> None:
        self._found: dict[str, Damage] = {}
        self.tail: Damage | None = None

    def add(self, text: str, offset: int) -> None:
        """Note damage, unless it is known."""
        if len(self._found) < _MOST:
            self._found.setdefault(text, Damage(text, offset))
        else:
            more = f"more than {_MOST} parts of the file can't be read"
            self._found.setdefault(more, Damage(more, offset))

    @contextmanager
    def noting(self, text: str, offset: int) -> Iterator[None]:
        """Damage that reading within meets is noted on its way out."""
        try:
            yield
        except TraceError:
            self.add(text, offset)
            raise

    def all(self) -> list[Damage]:
        """All of it."""
        return [*self._found.values(), *([self.tail] if self.tail else [])]
