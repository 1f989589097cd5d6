"""Whether the weights of a model were changed: a lane computed later would be another model's."""

from __future__ import annotations

from torch import nn

from kvtrace.record.version import version


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
            whole: Look, too, for other weights in their places, and at which adapters are in use.
        """
        before, self._versions = self._versions, self._count()
        which, self._which = self._which, self._identities() if whole else self._which
        return before != self._versions or which != self._which

    def _count(self) -> int:
        return sum(version(one) for one in self._weights)

    def _identities(self) -> list[object]:
        """Of the weights that stay where they are, and what modules say of adapters."""
        found: list[object] = [id(one) for one in self._model.parameters() if not one.is_meta]
        for module in self._model.modules():
            said = (value for name, value in vars(module).items() if "adapter" in name)
            found += (repr(value) for value in said if isinstance(value, bool | str | list))
        return found
