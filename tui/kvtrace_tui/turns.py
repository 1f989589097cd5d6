"""How often threads take turns while the app runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

TURN_S = 0.0005
"""Python's own is ten times as long: so much later a picture that is drawn would be written."""


@contextmanager
def short_turns() -> Iterator[None]:
    """A thread that waits gets its turn soon: the one that hears keys, the one that writes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
