"""Layers of a model that run outside of its calls, where its calls are the steps: that is said.

A method beside `forward` that fills the cache for the prompt, say. A look-up of ids alone is none:
rows of it may be what the model is called with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from kvtrace.record.capture.symbolic import is_symbolic

SAYS = (
    "layers of the model ran on tokens outside of its calls: those are no steps here, what they "
    "left in a cache is not known; `with kvtrace.record('run.kvt'):`, without the model, records it"
)


class LeftOut:
    """Listens to the tables of a model, and to its layers from a look-up outside of a call on.

    Attributes:
        says: Is told of it, once.
    """

    def __init__(
        self,
        tables: Sequence[nn.Module],
        layers: Sequence[nn.Module],
        outside: Callable[[], bool],
        says: Callable[[str], None],
    ) -> None:
        """Listen.

        Args:
            tables: Modules that look ids up.
            layers: Those that may attend.
            outside: Says whether no call of the model runs, nor anything of ours.
            says: Is told of it, once.
        """
        self._layers, self._outside, self.says = layers, outside, says
        self._at_tables = [one.register_forward_pre_hook(self._looked_up) for one in tables]
        self._at_layers: list[RemovableHandle] = []

    def stop(self) -> None:
        """Listen no more."""
        _remove(self._at_tables)
        _remove(self._at_layers)

    def _looked_up(self, *_: Any) -> None:
        if is_symbolic():
            return
        _remove(self._at_layers)
        if self._outside():
            hook = self._ran
            self._at_layers = [one.register_forward_pre_hook(hook) for one in self._layers]

    def _ran(self, *_: Any) -> None:
        if is_symbolic():
            return
        if self._outside():
            self.stop()
            self.says(SAYS)
        else:
            _remove(self._at_layers)


def _remove(hooks: list[RemovableHandle]) -> None:
    while hooks:
        hooks.pop().remove()
