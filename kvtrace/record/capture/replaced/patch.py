"""Replacing methods of classes for a while: counted, so that watchers nest, and undone exactly."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from kvtrace.record.capture.replaced.arriving import finished, when_there
from kvtrace.record.capture.replaced.stand_in import StandIn, as_written, in_place_of

Method = Callable[..., Any]
Make = Callable[[Any], object]
"""From what is there, a method, a property or a function, what stands in its place."""


class Patches:
    """A set of replaced methods, in force while anybody holds it."""

    def __init__(self, install: Callable[[Patches], None], needs: str = "builtins") -> None:
        """Nothing is replaced before somebody holds it.

        Args:
            install: Called by the first holder, or as soon as there is what it needs; calls
                `replace`.
            needs: The module whose classes it replaces methods of, which is not imported for that.
        """
        self._install = install
        self._needs = needs
        self._stop_waiting: Callable[[], None] = lambda: None
        self._lock = threading.RLock()
        self._holders = 0
        self._undo: list[tuple[type | ModuleType, str, object]] = []
        self._replaced: set[tuple[type | ModuleType, str]] = set()
        self._alone: list[tuple[weakref.ref[Any], str]] = []

    def hold(self) -> None:
        """Put the methods in place, if nobody did."""
        finished(self._needs)
        with self._lock:
            self._holders += 1
            if self._holders > 1:
                return
            try:
                self._stop_waiting = when_there(self._needs, self._arrived)
            except BaseException:
                self.release()
                raise

    def _arrived(self) -> None:
        """There is what it needs."""
        with self._lock:
            if self._holders:
                self._install(self)

    def release(self) -> None:
        """Put the originals back, if nobody else holds it."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
            self._stop_waiting()
            while self._undo:
                owner, name, own = self._undo.pop()
                if own is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, own)
            self._replaced.clear()
            while self._alone:
                found, name = self._alone.pop()
                own = vars(found()).get(name) if found() is not None else None
                if isinstance(own, StandIn):
                    vars(found())[name] = as_written(own)

    def replace(self, owner: type | ModuleType, name: str, make: Make) -> None:
        """Replace a method of a class, or a function of a module, by what `make` makes of it.

        Once per owner and name.
        """
        with self._lock:
            if (owner, name) in self._replaced or not hasattr(owner, name):
                return
            self._replaced.add((owner, name))
            self._undo.append((owner, name, owner.__dict__.get(name)))
            original = getattr(owner, name)
            setattr(owner, name, in_place_of(original, make(original)))

    def replace_on(self, holder: object, name: str, make: Make) -> None:
        """Replace what one object has of its own under a name; the object may die meanwhile.

        What a copy of such an object brought along is put back with the others.
        """
        with self._lock:
            original = vars(holder)[name]
            if any(one() is holder and other == name for one, other in self._alone):
                return
            self._alone.append((weakref.ref(holder), name))
            vars(holder)[name] = in_place_of(original, make(as_written(original)))
