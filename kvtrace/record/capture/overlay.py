"""One attribute of a class or an object, replaced for a while and given back in any order.

Recordings overlap: one that began later may end later than another that it lies upon. An overlay
that is over but not on top stays until those upon it are over too, and must let calls pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_lock = threading.RLock()
_installed: dict[int, Overlay] = {}
"""By identity of what was put in place; the overlay keeps that alive."""


class Overlay:
    """What stands in an attribute's place.

    Attributes:
        over: It was stopped: calls that still reach it go straight to what is under it.
        under: What it replaced; None if the owner had no attribute of its own there.
    """

    __slots__ = ("_mine", "_name", "_owner", "over", "under")

    def __init__(self, owner: Any, name: str, make: Callable[[Overlay], Any]) -> None:
        """Put it in place.

        Args:
            owner: A class, or an object whose own attribute is meant.
            name: The attribute.
            make: From the overlay, what is put there.
        """
        self._owner, self._name, self.over = owner, name, False
        with _lock:
            self.under: Any = owner.__dict__.get(name)
            self._mine = make(self)
            _installed[id(self._mine)] = self
            _put(owner, name, self._mine)

    def stop(self) -> None:
        """Take it away, and those under it that are over; not what somebody else put upon it."""
        with _lock:
            self.over = True
            owner, name = self._owner, self._name
            now = owner.__dict__.get(name)
            while (top := _installed.get(id(now))) is not None and top.over:
                del _installed[id(now)]
                now = top.under
                _put(owner, name, now)


def _put(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, type):
        if value is None:
            delattr(owner, name)
        else:
            setattr(owner, name, value)
    elif value is None:
        del owner.__dict__[name]
    else:
        owner.__dict__[name] = value
