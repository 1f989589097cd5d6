"""Whether the weights of a model were changed: a lane computed later would be another model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from kvtrace.record.version import version

_SAMPLE = 64
"""Bytes of each weight that are looked at: what changes through `.data` changes all of them."""


class Weights:
    """Counts changes in place, as an optimizer makes them, and knows weights that are others."""

    def __init__(self, model: nn.Module) -> None:
        """As they are now."""
        self._model = model
        self._weights = list(model.parameters())
        self._versions = self._count()
        self._which = self._identities()

    def changed(self, *, whole: bool = True) -> bool:
        """Whether any was changed since last asked.

        Args:
            whole: Look, too, for other weights in their places or other numbers in them, and at
                which adapters are in use.
        """
        before, self._versions = self._versions, self._count()
        counted, which = before != self._versions, self._which
        if whole or counted:
            self._which = self._identities()
        return counted or which != self._which

    def _count(self) -> int:
        return sum(version(one) for one in self._weights)

    def _identities(self) -> list[object]:
        """Of the weights that stay where they are, and what modules say of adapters."""
        there = [one for one in self._model.parameters() if not one.is_meta]
        found: list[object] = [(id(one), one.dtype) for one in there]
        for module in self._model.modules():
            said = (value for name, value in vars(module).items() if "adapter" in name)
            found += (repr(value) for value in said if isinstance(value, bool | str | list))
        return [*found, *_samples(there)]


def _samples(weights: Sequence[nn.Parameter]) -> Iterator[object]:
    """Sums of some bytes of each plain weight, from each device at once."""
    sums: dict[torch.device, list[Tensor]] = {}
    for one in weights:
        if type(one) is nn.Parameter and one.is_contiguous() and one.numel():
            raw = one.detach().view(-1).view(torch.uint8)
            # an odd stride looks at each byte of a number in turn
            stride = raw.numel() // _SAMPLE | 1
            sums.setdefault(one.device, []).append(raw[::stride].sum())
    for each in sums.values():
        yield torch.stack(each).tolist()
