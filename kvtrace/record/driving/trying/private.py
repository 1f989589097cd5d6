"""Trying a model out without leaving anything behind: copies of it, and their globals restored.

A copy has its own buffers, attributes and hooks; parameters are shared, so it costs no weights.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from kvtrace.record.capture.replaced.compiled import eagerly
from kvtrace.record.chance import own_chance
from kvtrace.record.lanes.as_it_was.outside import Outside, Space
from kvtrace.record.lanes.as_it_was.private import Copier
from kvtrace.record.lanes.as_it_was.tensors import Tensors
from kvtrace.record.whose import of_frameworks

_PACKED = (torch.uint8, torch.int8)
_TENSOR_BYTES = 1 << 26


def private_copy(model: nn.Module) -> nn.Module:
    """A model that shares the parameters and nothing else that can change.

    Raises:
        TypeError: Something in it can't be copied.
    """
    # packed weights are the size of the model, and no cache is an integer of one byte
    copier = Copier(Tensors(model.parameters(), constant=lambda one: one.dtype in _PACKED))
    made: nn.Module = copier.of(model)
    if copier.odd:
        raise TypeError(f"{copier.odd[0]} is shared by copies")
    return made


@contextmanager
def nothing_left(model: nn.Module, script: types.ModuleType | None) -> Iterator[None]:
    """Afterwards names and containers of the user's file, and defaults, hold what they held.

    Random numbers go on as if nothing had been drawn. What else their code does (files, prints)
    can't be undone.

    Args:
        model: Classes of its modules are looked at.
        script: The user's module.
    """
    outside = _shared(model, script)
    try:
        with eagerly(), torch.no_grad(), own_chance(model):
            yield  # nothing is worth compiling for a trial
    finally:
        outside.put_back()


def _shared(model: nn.Module, script: types.ModuleType | None) -> Outside:
    """What calls share: globals, class attributes, and defaults of the functions among them."""
    owners = dict.fromkeys(type(module) for module in model.modules())
    theirs = [one for one in owners if not of_frameworks(one)]
    spaces: list[Space] = [*theirs, *([] if script is None else [vars(script)])]
    held = [dict(one if isinstance(one, dict) else vars(one)) for one in spaces]
    values = (value for each in held for value in each.values())
    functions = [one for one in values if isinstance(one, types.FunctionType)]
    defaults = [(one.__defaults__ or (), one.__kwdefaults__ or {}) for one in functions]
    return Outside(zip(spaces, held, strict=True), defaults, most_bytes=_TENSOR_BYTES)
