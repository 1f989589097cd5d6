"""Whether the weights of a model were changed: a lane computed later would be another model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kvtrace.record.version import version

_SAMPLE = 64
"""Bytes of each weight that are looked at: what changes through `.data` changes all of them."""


class Weights:
    """Counts changes in place, as an optimizer makes them, and knows weights that are others.

    Those that are lent for each call, as `functional_call` does it, are told apart by their numbers
    alone: each call may be lent new ones.
    """

    def __init__(self, model: nn.Module, own: Sequence[Tensor]) -> None:
        """As they are now, while the model is called.

        Args:
            model: It.
            own: Those that it has while nobody calls it, as far as that is known.
        """
        self._model, self._own = model, list(own)
        self._lent, self._ever = not self._has(own) or not self._are_parameters, False
        self._weights = list(model.parameters())
        self._first = [id(one) for one in self._weights]
        self._places = self._by_place() if self._lent else []
        self._versions = self._count()
        self._which = self._identities()

    def changed(self, *, whole: bool = True) -> bool:
        """Whether any was changed since last asked.

        Args:
            whole: Look, too, for other weights in their places or other numbers in them.
        """
        asked, whole = whole, whole or self._lent
        before, self._versions = self._versions, self._count()
        counted, which = before != self._versions, self._which
        if whole or counted:
            self._which = self._identities()
        found = counted or which != self._which
        self._ever = self._ever or found
        # no copy has what was lent since
        return self._ever and asked if self._lent else found

    @property
    def given_back(self) -> bool:
        """Whether all calls were lent the same, and the model has its own again."""
        # who met the model in a call, met what it was lent: its own are known by their kind
        known = self._has(self._own) or [id(one) for one in self._own] == self._first
        return self._lent and not self._ever and known and self._are_parameters

    @property
    def _are_parameters(self) -> bool:
        """Whether what it has are parameters; plain tensors are lent."""
        return all(isinstance(one, nn.Parameter) for one in self._model.parameters())

    @contextmanager
    def as_lent(self) -> Iterator[None]:
        """Inside, the model has what all its calls were lent; as it is where that is not known."""
        own = self._by_place() if self.given_back else []
        try:
            for module, name, one in self._places if own else []:
                module._parameters[name] = one
            yield
        finally:
            for module, name, one in own:
                module._parameters[name] = one

    def _by_place(self) -> list[tuple[nn.Module, str, nn.Parameter | None]]:
        modules = self._model.modules()
        return [(one, *named) for one in modules for named in one._parameters.items()]

    def _has(self, weights: Sequence[Tensor]) -> bool:
        return [id(one) for one in self._model.parameters()] == [id(one) for one in weights]

    def _count(self) -> int:
        return sum(version(one) for one in self._weights)

    def _identities(self) -> list[object]:
        """Of the weights that stay where they are."""
        there = [one for one in self._model.parameters() if not one.is_meta]
        return [*((0 if self._lent else id(one), one.dtype) for one in there), *_samples(there)]


def _samples(weights: Sequence[Tensor]) -> Iterator[object]:
    """Sums of some bytes of each plain weight, from each device at once."""
    sums: dict[torch.device, list[Tensor]] = {}
    for one in weights:
        if type(one) in (nn.Parameter, Tensor) and one.is_contiguous() and one.numel():
            raw = one.detach().view(-1).view(torch.uint8)
            # an odd stride looks at each byte of a number in turn
            stride = raw.numel() // _SAMPLE | 1
            sums.setdefault(one.device, []).append(raw[::stride].sum())
    for each in sums.values():
        yield torch.stack(each).tolist()
