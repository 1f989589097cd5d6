"""Trying a model out without leaving anything behind: copies of it, and their globals restored.

A copy has its own buffers, attributes and hooks; parameters are shared, so it costs no weights.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.chance import own_chance
from kvtrace.record.lanes.state.private import Copier

Kept = dict[Any, Any] | list[Any] | set[Any] | Tensor

_PACKED = (torch.uint8, torch.int8)
_TENSOR_BYTES = 1 << 26
_MANY = 10_000
"""Entries of a table of words or numbers, not of a cache: left alone."""


def private_copy(model: nn.Module) -> nn.Module:
    """A model that shares the parameters and nothing else that can change.

    Raises:
        TypeError: Something in it can't be copied.
    """
    # packed weights are the size of the model, and no cache is an integer of one byte
    copier = Copier(model.parameters(), constant=lambda tensor: tensor.dtype in _PACKED)
    made: nn.Module = copier.of(model)
    if copier.odd:
        raise TypeError(f"{copier.odd[0]} is shared by copies")
    return made


@contextmanager
def nothing_left(model: nn.Module, script: types.ModuleType | None) -> Iterator[None]:
    """Afterwards containers of the user's file and default arguments hold what they held.

    Random numbers go on as if nothing had been drawn. What else their code does (files, prints)
    can't be undone.

    Args:
        model: Classes of its modules are looked at.
        script: The user's module.
    """
    kept: dict[int, tuple[Kept, Kept]] = {}
    parameters = {id(one) for one in model.parameters()}
    for one in _containers(model, script):
        _keep(one, kept, parameters, 4)
    try:
        eager = torch.compiler.set_stance("force_eager")  # nothing is worth compiling for a trial
        with eager, torch.no_grad(), own_chance(model):
            yield
    finally:
        for held, before in kept.values():
            _refill(held, before)


def _containers(model: nn.Module, script: types.ModuleType | None) -> Iterator[object]:
    """Lists, dicts, sets and tensors that calls share: globals, class attributes, defaults."""
    owners = {type(module) for module in model.modules()}
    owners = {one for one in owners if not one.__module__.startswith(("torch.", "transformers."))}
    spaces = [vars(owner) for owner in owners] + ([] if script is None else [vars(script)])
    for space in spaces:
        for name, value in list(space.items()):
            if name.startswith("__"):
                continue
            yield value
            if isinstance(value, types.FunctionType):
                yield from (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())


def _keep(
    value: object, kept: dict[int, tuple[Kept, Kept]], parameters: set[int], depth: int
) -> None:
    """A shallow copy of each container on the way down: what is in them keeps its identity."""
    if id(value) in kept or id(value) in parameters or not depth:
        return
    if isinstance(value, Tensor):
        if value.device.type != "meta" and value.nbytes < _TENSOR_BYTES:
            kept[id(value)] = (value, value.detach().clone())
        return
    if not isinstance(value, dict | list | set) or len(value) > _MANY:
        return
    kept[id(value)] = (value, copy.copy(value))
    for one in list(value.values()) if isinstance(value, dict) else list(value):
        _keep(one, kept, parameters, depth - 1)


def _refill(held: Kept, before: Kept) -> None:
    if isinstance(held, Tensor) and isinstance(before, Tensor):
        if not torch.equal(held, before):
            held.copy_(before)
    elif isinstance(held, list) and isinstance(before, list):
        held[:] = before
    elif isinstance(held, dict) and isinstance(before, dict):
        held.clear()
        held.update(before)
    elif isinstance(held, set) and isinstance(before, set):
        held.clear()
        held |= before
