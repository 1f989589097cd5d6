"""Rows of caches that are no more, as long as somebody else holds them.

Whoever keeps plain tuples between steps makes a new cache object of them in every forward, and the
one before is gone by then.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

from torch import Tensor

from kvtrace.record.version import version

Rows = tuple[int, "weakref.ref[Tensor]", "weakref.ref[Tensor]", int, int]
"""A layer's index, its keys and its values, and the versions of both."""


class Outlived:
    """Holds nothing itself; a cache whose rows are gone too is forgotten."""

    __slots__ = ("_caches",)

    def __init__(self) -> None:
        self._caches: dict[int, list[Rows]] = {}

    def add(self, serial: int, held: Mapping[int, tuple[object, object, int, int]]) -> None:
        """A cache died.

        Args:
            serial: Its number.
            held: Keys and values of each of its layers, and the versions of both.
        """
        self._caches = {old: rows for old, rows in self._caches.items() if any(map(_alive, rows))}
        self._caches[serial] = [
            (index, weakref.ref(keys), weakref.ref(values), key_version, value_version)
            for index, (keys, values, key_version, value_version) in held.items()
            if isinstance(keys, Tensor) and isinstance(values, Tensor) and keys.dim() == 4
        ]

    def live(self) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """(serial, layer, keys, values) of everything that is still there, unchanged."""
        for serial, rows in self._caches.items():
            for index, key_rows, value_rows, *versions in rows:
                keys, values = key_rows(), value_rows()
                if keys is None or values is None:
                    continue
                if [version(keys), version(values)] == versions:
                    yield serial, index, keys, values


def _alive(rows: Rows) -> bool:
    return rows[1]() is not None
