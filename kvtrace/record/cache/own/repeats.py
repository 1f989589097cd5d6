"""Whether a forward repeats the one before: handed the same tokens, and the same unchanged cache.

As a loop does that measures a step again and again. All its rows are then known, its own too.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from kvtrace.record.nested import tensors_in
from kvtrace.record.version import version

KEPT = re.compile(r"past|cache|kv|state|mems|memory")
"""What arguments are called that hold what earlier steps left."""

_DEEPEST = 3
"""Containers in containers; one may hold itself."""


class Repeats:
    """Remembers what the forward before was handed; holds nothing of it."""

    __slots__ = ("_handed", "_version")

    def __init__(self) -> None:
        self._handed: weakref.ref[Tensor] | None = None
        self._version = -1

    def same(
        self, arguments: Mapping[str, object], tokens: Tensor | None, before: Tensor | None
    ) -> bool:
        """Whether this forward is handed what the last one was; asked once for each.

        Args:
            arguments: Its own.
            tokens: Ids in.
            before: Those of the last forward.
        """
        kept = (value for name, value in arguments.items() if KEPT.search(name))
        now = next((one for value in kept for one in tensors_in(value, _DEEPEST)), None)
        last, then = self._handed, self._version
        self._handed = None if now is None else weakref.ref(now)
        self._version = -1 if now is None else version(now)
        if now is None or last is None or last() is not now or then != self._version or then < 0:
            return False
        return tokens is not None and before is not None and torch.equal(tokens, before)
