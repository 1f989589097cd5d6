"""What code keeps outside of what it is given: globals, attributes of classes, what those hold.

Code that is called again must find there what it found the first time, and leave there what the
program has now.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from operator import is_
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kvtrace.record.lanes.as_it_was.code import classes_of, functions_of, names_in
from kvtrace.record.version import version

_DEPTH = 4
_MANY = 10_000
"""Entries of a table of words or numbers, not of a cache: left alone."""

_MOST = 1_000_000
"""Values that are looked at on each level."""

_COUNT_BYTES = 1 << 12
"""A tensor up to this size may be a count or a place, which a call reads before it writes it."""

_PLAIN = frozenset((int, float, bool, str, bytes, type(None)))
_NEVER = (type, FunctionType, ModuleType, nn.Module)

Space = dict[str, Any] | type
"""Where names stand for values: the globals of a file, or a class."""


class _Written(NamedTuple):
    """A tensor as it was.

    Attributes:
        tensor: It.
        version: How often it had been changed.
        content: What it held; None: that is nothing a call goes on with.
    """

    tensor: Tensor
    version: int
    content: Tensor | None


class Outside:
    """What some names stand for, as it is now."""

    def __init__(
        self,
        spaces: Iterable[tuple[Space, Iterable[str]]],
        roots: Iterable[Any] = (),
        *,
        most_bytes: int = _COUNT_BYTES,
    ):
        """Look at it.

        Args:
            spaces: Where to look, and which names there.
            roots: What else may hold something, under no name.
            most_bytes: Of a tensor whose numbers are kept.
        """
        self._most_bytes = most_bytes
        self._spaces = [(space, tuple(names)) for space, names in spaces]
        self._roots = list(roots)
        self._files = {_file(space) for space, _ in self._spaces}
        self._names = [
            (space, name, held[name])
            for space, names in self._spaces
            for held in [_held(space)]
            for name in names
            if name in held and not name.startswith("__") and not _is_code(held[name])
        ]
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, _Written] = {}
        level = [*(value for *_, value in self._names), *self._roots]
        for _ in range(_DEPTH):  # level by level: what is deep down is the least likely a cache
            inside = chain.from_iterable(map(self._look, level))
            level = [one for one in islice(inside, _MOST) if type(one) not in _PLAIN]

    @classmethod
    def of_file(cls, space: dict[str, Any]) -> Outside:
        """All globals of one file."""
        return cls([(space, list(space))])

    @classmethod
    def of_model(cls, model: nn.Module) -> Outside:
        """What the code of a model reads by a name, or has as default."""
        functions = functions_of(model)
        spaces: dict[int, tuple[Space, dict[str, None]]] = {}
        roots: list[Any] = []
        for one in functions:
            names = dict.fromkeys(names_in(one.__code__))
            space = one.__globals__
            spaces.setdefault(id(space), (space, {}))[1].update(names)
            cells = (cell.cell_contents for cell in one.__closure__ or () if _is_set(cell))
            roots += one.__defaults__ or (), one.__kwdefaults__ or {}, list(cells)
        kinds = [(kind, list(vars(kind))) for kind in classes_of(model)]
        return cls([*spaces.values(), *kinds], roots)

    @property
    def changed(self) -> bool:
        """Whether it is not what it was: a name, a container or a tensor."""
        held = ((_held(space), name, value) for space, name, value in self._names)
        return (
            any(space.get(name) is not value for space, name, value in held)
            or any(not _alike(one, before) for one, before in self._containers.values())
            or bool(self._written())
        )

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Inside, names and containers hold what they held; afterwards, what they hold now.

        Tensors that were written to since are as they are now afterwards, too.
        """
        now = Outside(self._spaces, self._roots)
        kept = [(one.tensor, one.tensor.detach().clone()) for one in self._written()]
        try:
            self.put_back()
            yield
        finally:
            now._names_back()
            with torch.no_grad():
                for tensor, content in kept:
                    tensor.copy_(content)

    def put_back(self) -> None:
        """Names and containers hold what they held, and so do tensors, as far as that is known."""
        self._names_back()
        with torch.no_grad():
            for one in self._written():
                if one.content is not None:
                    one.tensor.copy_(one.content)

    def _written(self) -> list[_Written]:
        """Tensors that were written to since."""
        return [one for one in self._tensors.values() if version(one.tensor) != one.version]

    def _names_back(self) -> None:
        for space, name, value in self._names:
            if _held(space).get(name) is not value:
                if isinstance(space, dict):
                    space[name] = value
                else:
                    setattr(space, name, value)
        for held, before in self._containers.values():
            if _alike(held, before):
                continue
            if isinstance(held, list):
                held[:] = before
            else:
                held.clear()
                held.update(before)

    def _look(self, value: Any) -> list[Any]:
        """Note a tensor, or a shallow copy of a container; what is in it."""
        if id(value) in self._containers or id(value) in self._tensors:
            return []
        if isinstance(value, Tensor):
            small = type(value) is Tensor and value.nbytes <= self._most_bytes
            content = value.detach().clone() if small else None
            self._tensors[id(value)] = _Written(value, version(value), content)
            return []
        if type(value).__module__ in self._files and hasattr(value, "__dict__"):
            value = vars(value)  # an object of a class of the file
        if type(value) is tuple:
            return list(value)
        if type(value) not in (dict, list, set) or len(value) > _MANY:
            return []
        self._containers[id(value)] = (value, copy.copy(value))
        return list(value.values()) if isinstance(value, dict) else list(value)


def _held(space: Space) -> Mapping[str, Any]:
    return space if isinstance(space, dict) else vars(space)


def _file(space: Space) -> object:
    return space.get("__name__") if isinstance(space, dict) else space.__module__


def _is_code(value: object) -> bool:
    """Whether a name stands for something that runs, and holds nothing itself."""
    return isinstance(value, _NEVER) or hasattr(type(value), "__get__")


def _is_set(cell: Any) -> bool:
    """Whether a variable of an outer function has a value yet."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _alike(held: Any, before: Any) -> bool:
    """Whether a container holds the very things that it held."""
    if len(held) != len(before):
        return False
    if isinstance(held, set):
        return bool(held == before)
    if isinstance(held, dict):
        return all(name in held and held[name] is one for name, one in before.items())
    return all(map(is_, held, before))
