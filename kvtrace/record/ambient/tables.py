"""The tables that token ids are looked up in, and the models whose methods look them up."""

from __future__ import annotations

from types import FrameType

import torch
from torch import Tensor, nn

from kvtrace.record.ambient.called import callers, theirs
from kvtrace.record.driving.ways.roles import signature_of
from kvtrace.record.processes.local import address
from kvtrace.record.whose import of_frameworks

_PARAMETERS = nn.ParameterList, nn.ParameterDict

FRAMES = 12
"""Callers that are looked at for the module whose method is running."""


def place_of(table: Tensor) -> int:
    """What tells one table from another; 0 where it has no memory of its own."""
    return table.data_ptr() if address(table) else 0


def ids_of(model: nn.Module) -> str:
    """What a model's own forward calls its ids; a name of ours where it takes none."""
    found = signature_of(model).ids
    return "tokens" if found is None or "embed" in found.name else found.name


def table_of(module: nn.Module) -> Tensor | None:
    """The table of a module that looks ids up and does nothing more; None: it may do more.

    Such are an embedding, of torch or people's own, and what people put around one: a scale,
    positions, a norm, dropout.
    """
    tables: list[Tensor] = [x.weight for x in module.modules() if isinstance(x, nn.Embedding)]
    tables = tables or _own_tables(module)
    if not tables or any(map(holds_unlisted, module.modules())):
        return None
    theirs = {id(one) for one in tables}
    others = [one for one in module.parameters() if id(one) not in theirs]
    # what attends has matrices; learned positions are a table of one text
    beyond = any(sum(size > 1 for size in one.shape) > 1 and one.dim() != 3 for one in others)
    beyond = beyond or any(map(_is_quantised, module.modules()))
    return None if beyond else max(tables, key=len)


def _own_tables(module: nn.Module) -> list[Tensor]:
    """What a module that calls itself an embedding, and has no parts but parameters, looks up in.

    One that reads tokens off rows as well may have another matrix of that size for it.
    """
    parts = all(type(one) in _PARAMETERS for one in module.children())
    matrices: list[Tensor] = [one for one in module.parameters() if one.dim() == 2]
    alike = len({frozenset(one.shape) for one in matrices}) == 1
    named = "embed" in type(module).__name__.lower()
    return matrices if parts and named and alike else []


def holds_unlisted(module: nn.Module) -> bool:
    """Whether it keeps modules in a plain list, where torch does not know of them."""
    kept = (one for one in vars(module).values() if isinstance(one, list | tuple))
    return any(isinstance(part, nn.Module) for one in kept for part in one)


def _is_quantised(module: nn.Module) -> bool:
    """Whether it keeps a matrix that is no parameter: packed away, or in whole numbers."""
    kept = (one for one in module.buffers(recurse=False) if one.dim() == 2)
    small = (one.dtype in (torch.int8, torch.uint8) and min(one.shape) > 1 for one in kept)
    return callable(getattr(module, "weight", None)) or any(small)


def owner_of(module: nn.Module) -> nn.Module | None:
    """The model that somebody's code is running, told by a module of it that it calls.

    The outermost module with a method running that holds it, else the largest that a function
    which runs has at hand; None: no such.
    """
    found = None
    frames = list(callers(FRAMES))
    for frame in frames:
        own = self_of(frame)
        if isinstance(own, nn.Module) and own is not module and _holds(own, module):
            found = own
    if found is not None:
        return found
    at_hand = [
        one
        for frame in theirs(frames)
        for one in frame.f_locals.values()
        if isinstance(one, nn.Module) and one is not module and _holds(one, module)
        if not of_frameworks(type(one))
    ]
    return max(at_hand, key=lambda one: sum(1 for _ in one.modules()), default=None)


def runs_within(model: nn.Module) -> bool:
    """Whether a method of a model, or of a part of it, is running."""
    owns = [self_of(frame) for frame in callers(FRAMES)]
    return any(isinstance(one, nn.Module) and _holds(model, one) for one in owns)


def _holds(module: nn.Module, part: nn.Module) -> bool:
    return any(one is part for one in module.modules())


def self_of(frame: FrameType) -> object:
    """The object whose method is running, whatever the method calls it; None: no method."""
    code = frame.f_code
    own = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    named = code.co_argcount and code.co_varnames[0] == "self"
    return own if named or hasattr(type(own), code.co_name) else frame.f_locals.get("self")
