"""Whether the weights of a model were changed: a lane computed later would be another model's."""

from __future__ import annotations

from torch import nn

from kvtrace.record.lanes.snapshot import version


class Weights:
    """Counts changes in place, as an optimizer makes them."""

    def __init__(self, model: nn.Module) -> None:
        """As they are now."""
        self._weights = list(model.parameters())
        self._versions = self._count()

    def changed(self) -> bool:
        """Whether any was changed since last asked."""
        before, self._versions = self._versions, self._count()
        return before != self._versions

    def _count(self) -> int:
        return sum(version(one) for one in self._weights)
