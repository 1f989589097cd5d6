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

Kept = dict[Any, Any] | list[Any] | set[Any] | Tensor

_PACKED = (torch.uint8, torch.int8)
_PACKED_BYTES = 1 << 20
_TENSOR_BYTES = 1 << 26
_MANY = 10_000
"""Entries of a table of words or numbers, not of a cache: left alone."""

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def private_copy(model: nn.Module) -> nn.Module:
    """A model that shares the parameters and nothing else that can change.

    Raises:
        Exception: Something in it can't be copied.
    """
    memo = _shared(model)
    with torch.no_grad():
        made = copy.deepcopy(model, memo)
        _rebind_hooks(made, memo)
    return made


def _shared(model: nn.Module) -> dict[int, object]:
    """What copies share: parameters, weights packed into buffers, and results of a graph."""
    memo: dict[int, object] = {id(one): one for one in model.parameters()}
    for buffer in model.buffers():
        # packed weights are the size of the model, and no cache is an integer of one byte
        if buffer.dtype in _PACKED and buffer.nbytes > _PACKED_BYTES:
            memo[id(buffer)] = buffer
    for module in model.modules():
        for value in vars(module).values():
            for tensor in _tensors(value, 3):
                if tensor.requires_grad and not tensor.is_leaf:  # has no deepcopy
                    memo[id(tensor)] = tensor.detach().clone()
    return memo


def _tensors(value: object, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one, depth - 1)


def _rebind_hooks(model: nn.Module, memo: dict[int, object]) -> None:
    """Hooks close over the original's caches and modules: give them the copy's."""
    for module in model.modules():
        for name in _HOOKS:
            hooks: dict[int, object] = getattr(module, name, None) or {}
            for key, hook in list(hooks.items()):
                hooks[key] = _rebound(hook, memo)


def _rebound(hook: object, memo: dict[int, object]) -> object:
    """A function over copies of what it closed over."""
    if not isinstance(hook, types.FunctionType) or not hook.__closure__:
        return hook
    cells = []
    for cell in hook.__closure__:
        try:
            cells.append(types.CellType(copy.deepcopy(cell.cell_contents, memo)))
        except Exception:  # what can't be copied stays shared
            cells.append(cell)
    made = types.FunctionType(
        hook.__code__, hook.__globals__, hook.__name__, hook.__defaults__, tuple(cells)
    )
    made.__kwdefaults__ = hook.__kwdefaults__
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
        with eager, torch.no_grad(), torch.random.fork_rng(devices=_devices(model)):
            yield
    finally:
        for held, before in kept.values():
            _refill(held, before)


def _devices(model: nn.Module) -> list[torch.device]:
    return list({one.device for one in model.parameters() if one.device.type == "cuda"})


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
