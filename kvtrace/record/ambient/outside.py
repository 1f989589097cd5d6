"""What functions of a file keep outside of what they are given: its globals, and what those hold.

A function that is called again must find there what it found the first time, and leave there what
the program has now.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.version import version

_DEPTH = 4
_MANY = 10_000
"""Entries of a table of words or numbers, not of a cache: left alone."""

_MOST = 1_000_000
"""Values that are looked at on each level."""

_PLAIN = frozenset((int, float, bool, str, bytes, type(None)))
_NEVER = (type, FunctionType, ModuleType, nn.Module)


class Outside:
    """The globals of one file as they are now."""

    def __init__(self, space: dict[str, Any]) -> None:
        """Look at them; tensors are not copied.

        Args:
            space: The globals.
        """
        self._space = space
        self._names = {
            name: value
            for name, value in space.items()
            if not name.startswith("__") and not isinstance(value, _NEVER)
        }
        self._held: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, tuple[Tensor, int]] = {}
        level = list(self._names.values())
        for _ in range(_DEPTH):  # level by level: what is deep down is the least likely a cache
            inside = chain.from_iterable(map(self._look, level))
            level = [one for one in islice(inside, _MOST) if type(one) not in _PLAIN]

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Inside, names and containers hold what they held; afterwards, what they hold now.

        Tensors that were written to since are as they are now afterwards, too.
        """
        now = Outside(self._space)
        written = [
            (tensor, tensor.detach().clone())
            for tensor, before in self._tensors.values()
            if version(tensor) != before
        ]
        self._put_back()
        try:
            yield
        finally:
            now._put_back()
            with torch.no_grad():
                for tensor, content in written:
                    tensor.copy_(content)

    def _put_back(self) -> None:
        for name, value in self._names.items():
            if self._space.get(name) is not value:
                self._space[name] = value
        for held, before in self._held.values():
            if isinstance(held, list):
                held[:] = before
            else:
                held.clear()
                held.update(before)

    def _look(self, value: Any) -> list[Any]:
        """Note a tensor, or a shallow copy of a container; what is in it."""
        if id(value) in self._held or id(value) in self._tensors:
            return []
        if isinstance(value, Tensor):
            self._tensors[id(value)] = (value, version(value))
            return []
        if type(value).__module__ == self._space.get("__name__") and hasattr(value, "__dict__"):
            value = vars(value)  # an object of a class of the file
        if type(value) not in (dict, list, set) or len(value) > _MANY:
            return []
        self._held[id(value)] = (value, copy.copy(value))
        return list(value.values()) if isinstance(value, dict) else list(value)
