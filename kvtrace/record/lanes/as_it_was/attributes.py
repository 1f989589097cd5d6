"""Plain attributes of a model (a scale, a window, a flag, a table), looked at as a whole.

Of its modules, of their classes, and of objects beside them that hold nothing else, as
configurations do. What holds them is named by its path, so that it is found in a copy, too.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import getitem, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kvtrace.record.version import version

ABSENT = object()
"""Stands for an attribute that is not there."""

_ATOMS = (bool, int, float, complex, str, type(None), torch.dtype)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_MANY = 256
"""Parts of a list that are looked at: a longer one is no setting."""

_KEPT_BYTES = 1 << 16
"""Of a tensor, at most: what a larger one was before it changed in place is not known."""

_LIBRARIES = ("torch.", "builtins", "kvtrace.")
_OWN_OF_TORCH = frozenset(vars(nn.Module()))
_BESIDE = "generation_config"
"""What a forward does not ask for."""
_KERNELS = "_implementation_internal"
"""How an attribute of a configuration ends that names kernels: they change how, not what, and an
engine sets its own while it serves."""


class Place(NamedTuple):
    """An attribute, wherever a model or a copy of it has it.

    Attributes:
        module: Path of the module.
        inside: What of the module holds it: one of its attributes; empty: itself.
        name: Of the attribute.
    """

    module: str
    inside: str
    name: str

    def __str__(self) -> str:
        inside = "" if self.inside in ("_buffers", "__class__") else self.inside
        return ".".join(filter(None, (self.module, inside, self.name)))


class Kept(NamedTuple):
    """What an attribute was.

    Attributes:
        value: Itself.
        copied: A copy of a collection or a tensor; None: of what can't change in place, or is too
            large. What a configuration holds has places of its own.
        version: Of a tensor.
    """

    value: object
    copied: object = None
    version: int = 0

    @property
    def moved(self) -> bool:
        """Whether it changed in place."""
        if isinstance(self.value, Tensor):
            return version(self.value) != self.version
        return self.copied is not None and bool(self.value != self.copied)

    @property
    def known(self) -> bool:
        """Whether it is known still: a large tensor that changed in place is not."""
        return not isinstance(self.value, Tensor) or self.copied is not None or not self.moved

    @property
    def then(self) -> object:
        """As it was, for somebody to use."""
        if isinstance(self.value, Tensor):
            kept = self.value if self.copied is None else self.copied
            return kept.detach().clone() if isinstance(kept, Tensor) else kept
        return self.value if self.copied is None else copy.deepcopy(self.copied)


@dataclass(slots=True)
class Holder:
    """Something that holds attributes: a module, its buffers, its class, its configuration.

    Attributes:
        module, inside: Where it is, as in `Place`.
        contents: What it holds.
        kept: What of it is looked at, as it was at the last look.
    """

    module: str
    inside: str
    contents: Mapping[str, Any]
    kept: dict[str, Kept] = field(default_factory=dict)
    _left: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """As it is now."""
        left = self._left
        self.kept = {
            name: _kept(one)
            for name, one in self.contents.items()
            if name not in left and _is_kept(name, one)
        }

    def leave_out(self, name: str) -> None:
        """Look at an attribute no more: the model itself writes to it."""
        self._left.add(name)
        self.kept.pop(name, None)

    def look(self) -> Iterator[tuple[Place, Kept, bool]]:
        """What was written to since the last look, as it had been, and whether it is another."""
        before = self.kept
        self.refresh()
        none = Kept(ABSENT)
        for name in {**before, **self.kept}:
            was, now = before.get(name, none), self.kept.get(name, none)
            if was.value is not now.value or was.version != now.version or was.moved:
                yield Place(self.module, self.inside, name), was, not _same(was, now)


class Glance:
    """A quick look at all attributes: nearly always, none was written to."""

    def __init__(self, holders: Sequence[Holder]) -> None:
        """As they are now."""
        self._all = holders
        self.refresh()

    def refresh(self) -> None:
        """As they were last looked at one by one."""
        self._contents = [one.contents for one in self._all]
        self._sizes = list(map(len, self._contents))
        kept = [(holder.contents, *one) for holder in self._all for one in holder.kept.items()]
        self._where = [where for where, _, _ in kept]
        self._names = [name for _, name, _ in kept]
        self._values = [one.value for _, _, one in kept]
        self._change = [
            one for _, _, one in kept if one.copied is not None or isinstance(one.value, Tensor)
        ]

    @property
    def untouched(self) -> bool:
        """Whether all is as it was."""
        try:
            now = map(getitem, self._where, self._names)
            return (
                list(map(len, self._contents)) == self._sizes
                and all(map(is_, now, self._values))
                and not any(one.moved for one in self._change)
            )
        except KeyError:  # one is gone, and another has come
            return False


def holders(model: nn.Module) -> list[Holder]:
    """All there are, each once."""
    found: list[Holder] = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        found.append(Holder(path, "", vars(module)))
        if module._buffers:
            found.append(Holder(path, "_buffers", module._buffers))
        for inside, one in _beside(module):
            if id(one) not in seen:
                seen.add(id(one))
                found.append(Holder(path, inside, vars(one)))
    return found


def has(model: nn.Module, place: Place) -> bool:
    """Whether a model has what a place names."""
    try:
        holder: object = model.get_submodule(place.module)
    except AttributeError:
        return False
    return not place.inside or hasattr(holder, place.inside)


def put(model: nn.Module, place: Place, value: object) -> object:
    """Set an attribute of a model, or take it away; returns what it was.

    Args:
        model: That has all that the place names.
        place: Of the attribute.
        value: `ABSENT`: it is not there.
    """
    holder: Any = model.get_submodule(place.module)
    if place.inside:
        holder = getattr(holder, place.inside)
    if isinstance(holder, type):
        before = vars(holder).get(place.name, ABSENT)
        delattr(holder, place.name) if value is ABSENT else setattr(holder, place.name, value)
        return before
    contents = holder if isinstance(holder, dict) else vars(holder)
    before = contents.get(place.name, ABSENT)
    if value is ABSENT:
        contents.pop(place.name, None)
    else:
        contents[place.name] = value
    return before


def _beside(module: nn.Module) -> Iterator[tuple[str, object]]:
    """The class of a module, and objects that hold plain attributes only."""
    if not type(module).__module__.startswith(_LIBRARIES):
        yield "__class__", type(module)
    for name, one in vars(module).items():
        if name not in _OWN_OF_TORCH and name != _BESIDE and _is_configuration(one):
            yield name, one


def _is_configuration(one: object) -> bool:
    if isinstance(one, (type, nn.Module, Tensor)) or callable(one):
        return False
    if type(one).__module__.startswith(_LIBRARIES) or not hasattr(one, "__dict__"):
        return False
    return bool(vars(one)) and not any(isinstance(part, Tensor) for part in vars(one).values())


def _is_kept(name: str, value: object) -> bool:
    if name == "training":
        return True
    if name in _OWN_OF_TORCH or name.startswith("__") or name.endswith(_KERNELS):
        return False
    if isinstance(value, nn.Parameter):
        return False
    if isinstance(value, (*_ATOMS, Tensor, *_FUNCTIONS)) or _is_plain(value):
        return name != "forward"
    return name != _BESIDE and _is_configuration(value)


def _is_plain(value: object, deep: int = 2) -> bool:
    """Whether a collection holds plain values only, and something at all."""
    if isinstance(value, _ATOMS):
        return True
    if not deep or type(value) not in (list, tuple, set, dict) or len(value) > _MANY:  # type: ignore[arg-type]
        return False
    parts: Any = value.values() if isinstance(value, dict) else value
    return all(_is_plain(part, deep - 1) for part in parts)


def _kept(value: object) -> Kept:
    if not isinstance(value, Tensor):
        collected = not isinstance(value, _ATOMS) and _is_plain(value)
        return Kept(value, copy.deepcopy(value) if collected else None)
    # a sparse one has no bytes of its own to count
    large = value.layout is not torch.strided or value.nbytes > _KEPT_BYTES or value.is_meta
    return Kept(value, None if large else value.detach().clone(), version(value))


def _same(was: Kept, now: Kept) -> bool:
    """Whether nothing changed: another tensor with the same numbers is the same."""
    one = was.copied if was.copied is not None else was.value
    other = now.copied if now.copied is not None else now.value
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if was.value is now.value and was.version == now.version:
            return True
        alike = one.shape == other.shape and one.dtype == other.dtype
        alike = alike and one.layout == other.layout == torch.strided
        return alike and one.device == other.device and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
