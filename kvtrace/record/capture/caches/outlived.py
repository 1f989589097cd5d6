"""Rows of caches that are no more, of which another cache may be made.

Whoever keeps plain tuples between steps makes a new cache object of them in every forward, and the
one before is gone by then. Whoever splits a batch, or takes a prefix from a file, copies the rows,
and those that were copied are gone too: of few caches, if they are small, they are kept here.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Mapping

from torch import Tensor

from kvtrace.record.version import version

CACHES = 16
"""The last caches whose rows are kept."""

MOST_BYTES = 64 * 2**20
"""As long as all of them need no more."""

Rows = tuple[int, "weakref.ref[Tensor]", "weakref.ref[Tensor]", int, int]
"""A layer's index, its keys and its values, and the versions of both."""


class Outlived:
    """Rows that somebody else holds, and a few that nobody does.

    Caches die whenever the garbage collector runs: within anything that is done here, too.
    """

    __slots__ = ("_adding", "_caches", "_kept", "_more")

    def __init__(self) -> None:
        self._caches: dict[int, list[Rows]] = {}
        self._kept: dict[int, list[Tensor]] = {}
        self._more: deque[tuple[int, list[Rows]]] = deque()
        self._adding = False

    def add(self, serial: int, held: Mapping[int, tuple[object, object, int, int]]) -> None:
        """A cache died.

        Args:
            serial: Its number.
            held: Keys and values of each of its layers, and the versions of both.
        """
        rows = [
            (index, weakref.ref(keys), weakref.ref(values), key_version, value_version)
            for index, (keys, values, key_version, value_version) in held.items()
            if isinstance(keys, Tensor) and isinstance(values, Tensor) and keys.dim() == 4
        ]
        self._more.append((serial, rows))
        if self._adding:
            return
        self._adding = True
        try:
            while self._more:
                self._take(*self._more.popleft())
        finally:
            self._adding = False

    def _take(self, serial: int, rows: list[Rows]) -> None:
        self._caches[serial] = rows
        self._keep(serial)
        gone = [old for old, rows in self._caches.items() if not any(map(_alive, rows))]
        for old in gone:
            del self._caches[old]

    def _keep(self, serial: int) -> None:
        """Keep the rows of a cache, and let go those of older ones."""
        both = [ref() for rows in self._caches[serial] for ref in rows[1:3]]
        self._kept[serial] = [one for one in both if one is not None]
        sizes = [sum(one.nbytes for one in rows) for rows in self._kept.values()]
        while len(sizes) > CACHES or sum(sizes) > MOST_BYTES:
            del self._kept[next(iter(self._kept))], sizes[0]

    def serials(self) -> set[int]:
        """Numbers of the caches."""
        return set(self._caches)

    def live(self) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """(serial, layer, keys, values) of everything that is still there, unchanged."""
        for serial in list(self._caches):
            for index, key_rows, value_rows, *versions in self._caches.get(serial, ()):
                keys, values = key_rows(), value_rows()
                if keys is None or values is None:
                    continue
                if [version(keys), version(values)] == versions:
                    yield serial, index, keys, values


def _alive(rows: Rows) -> bool:
    return rows[1]() is not None
