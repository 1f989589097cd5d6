"""Signals as exceptions, so that every `finally` runs before the exit code says which it was."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The user, or the system, wants us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def as_exceptions() -> Iterator[None]:
    """Within it, SIGINT, SIGTERM and SIGHUP raise `Interrupted`; a second one does not wait.

    After the first, SIGINT has its default meaning again: an impatient ctrl-c ends at once.
    """

    def raise_it(number: int, _where: FrameType | None) -> None:
        for one in CAUGHT:
            signal.signal(one, signal.SIG_DFL)
        raise Interrupted(number)

    before = {one: signal.signal(one, raise_it) for one in CAUGHT}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
