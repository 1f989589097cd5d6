"""The memory of a model's parameters: what lies in it is a parameter or a view of one."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor, nn

from kvtrace.record.processes.local import address, here


class Owned:
    """Memory of parameters, by where it starts.

    A parameter may be given other memory, as a head that is normalised once does
    (`weight.data = ...`). What it had is free then, and the next activation may lie there.
    """

    def __init__(self) -> None:
        self._owners: dict[int, weakref.ref[nn.Parameter]] = {}

    def add(self, parameters: Iterable[nn.Parameter]) -> None:
        """Those of one more model."""
        for one in parameters:
            if one.device.type != "meta" and one.numel():
                self._owners[address(here(one))] = weakref.ref(one)

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in the memory of a parameter."""
        place = address(tensor)
        found = self._owners.get(place) if place else None
        if found is None:
            return False
        owner = found()
        if owner is not None and address(here(owner)) == place:
            return True
        del self._owners[place]
        if owner is not None:
            self.add((owner,))
        return False
