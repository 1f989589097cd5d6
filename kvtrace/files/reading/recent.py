"""The newest of what was expensive to make; older entries are made again when asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `limit` values; the one that was not asked for longest goes first."""

    __slots__ = ("_limit", "_values")

    def __init__(self, limit: int) -> None:
        self._values: OrderedDict[K, V] = OrderedDict()
        self._limit = limit

    def get_or(self, key: K, make: Callable[[], V]) -> V:
        """The value of `key`, made if it is not there; what `make` raises is not kept."""
        found = self._values.get(key)
        if found is not None:
            self._values.move_to_end(key)
            return found
        value = self._values[key] = make()
        if len(self._values) > self._limit:
            self._values.popitem(last=False)
        return value
