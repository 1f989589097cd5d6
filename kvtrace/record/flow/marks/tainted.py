"""Tensors made of parameters alone: a view or a sum of weights is as good as a weight."""

from __future__ import annotations

import weakref

from torch import Tensor, nn

from kvtrace.record.flow.marks.follow import Args, Kwargs


class Tainted:
    """Such tensors by their identity; they go when the tensor goes.

    Attributes:
        held: By the id of the tensor. Read it where speed counts.
    """

    def __init__(self) -> None:
        self.held: dict[int, weakref.ref[Tensor]] = {}

    def has(self, tensor: object) -> bool:
        """Whether a tensor is one of them."""
        if not self.held:
            return False
        held = self.held.get(id(tensor))
        return held is not None and held() is tensor

    def makes(self, args: Args, kwargs: Kwargs) -> bool:
        """Whether a function of these arguments, the first one foremost, makes one more."""
        first = args[0]
        if type(first) in (list, tuple):
            first = first[0] if first else None
        if type(first) is not nn.Parameter and not self.has(first):
            return False
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        for value in args:
            if type(value) in (list, tuple):
                tensors += [x for x in value if isinstance(x, Tensor)]
        return all(
            isinstance(x, nn.Parameter) or self.has(x) or not x.dtype.is_floating_point
            for x in tensors
        )

    def add(self, tensor: Tensor) -> None:
        """Remember one more."""
        key, held = id(tensor), self.held

        def forget(gone: weakref.ref[Tensor]) -> None:
            if held.get(key) is gone:
                del held[key]

        held[key] = weakref.ref(tensor, forget)
