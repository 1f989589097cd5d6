"""One attribute of a class or an object, replaced for a while and given back in any order.

Recordings overlap: one that began later may end later than another that it lies upon. An overlay
that is over but not on top stays until those upon it are over too, and must let calls pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from kvtrace.record.capture.replaced.stand_in import in_place_of

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
            original = getattr(owner, name, None) if self.under is None else self.under
            self._mine = in_place_of(original, make(self))
            _installed[id(self._mine)] = self
            _put(owner, name, self._mine)

    @classmethod
    def beneath(cls, owner: Any, name: str, under: Any, mine: Any) -> Overlay:
        """What is in place already, maybe with something upon it."""
        one = cls.__new__(cls)
        one._owner, one._name, one.under, one._mine, one.over = owner, name, under, mine, False
        _installed[id(mine)] = one
        return one

    @property
    def upon(self) -> Any:
        """What stands upon this one and calls it; None: nothing, or something of somebody else."""
        now = self._owner.__dict__.get(self._name)
        one = _installed.get(id(now))
        while one is not None and one is not self:
            one = _installed.get(id(one.under))
        return None if one is None or now is self._mine else now

    def stop(self) -> None:
        """Take it away, and those under it that are over; not what somebody else put upon it."""
        with _lock:
            self.over = True
            self._uncover()

    def _uncover(self) -> None:
        """Take away what is over, from the top."""
        owner, name = self._owner, self._name
        now = owner.__dict__.get(name)
        while (top := _installed.get(id(now))) is not None and top.over:
            del _installed[id(now)]
            now = top.under
            _put(owner, name, now)


class Overlays:
    """Functions of modules, replaced again and again, for a short while each time."""

    __slots__ = ("_make", "_placed")

    def __init__(
        self, places: Iterable[tuple[ModuleType, str]], make: Callable[[Any], Any]
    ) -> None:
        """Replace none yet.

        Args:
            places: Module and name of each.
            make: From a function, what takes its place; asked again only if that changes.
        """
        self._make = make
        self._placed: list[tuple[ModuleType, str, Any, Any]] = [
            (owner, name, None, None) for owner, name in places
        ]

    def start(self) -> None:
        """Put them in place."""
        with _lock:
            for place, (owner, name, under, mine) in enumerate(self._placed):
                now = owner.__dict__.get(name)
                if now is not under:
                    mine = None if now is None else in_place_of(now, self._make(now))
                    self._placed[place] = (owner, name, now, mine)
                if mine is not None:
                    owner.__dict__[name] = mine

    def stop(self) -> None:
        """Take them away again; what somebody else put upon one lies upon it until that ends."""
        with _lock:
            for owner, name, under, mine in self._placed:
                if mine is None:
                    continue
                if owner.__dict__.get(name) is mine and id(under) not in _installed:
                    owner.__dict__[name] = under
                else:
                    Overlay.beneath(owner, name, under, mine).stop()


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
