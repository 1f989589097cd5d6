"""What modules keep as attributes, put back after a pass: some keep a recurrent state there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Inside, a pass may give modules other tensors; afterwards they have those of before.

    Tensors that are changed in place are not looked at: a state is made anew at every step.
    """
    before = [(one, _kept(vars(one)), _kept(one._buffers)) for one in model.modules()]
    try:
        yield
    finally:
        for module, plain, buffers in before:
            _put_back(vars(module), plain)
            _put_back(module._buffers, buffers)


def _kept(entries: dict[str, object] | dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: one for name, one in entries.items() if one is None or isinstance(one, Tensor)}


def _put_back(
    entries: dict[str, object] | dict[str, Tensor | None], before: dict[str, Tensor | None]
) -> None:
    for name, one in before.items():
        if entries.get(name) is not one:
            entries[name] = one
