"""What tells training from generation: a loss that is computed, a gradient that is asked for.

And other weights that are loaded: what was computed before would be another model's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kvtrace.record.capture.replaced.overlay import Overlay

_LOSSES = ("cross_entropy", "nll_loss")


class Evidence:
    """`with Evidence(on_loss, on_backward, on_load):` is told of them, before they run.

    Attributes:
        losses: Losses computed so far.
    """

    def __init__(
        self,
        on_loss: Callable[[], None],
        on_backward: Callable[[], None],
        on_load: Callable[[nn.Module], None],
    ) -> None:
        """Nothing is replaced before `with`.

        Args:
            on_loss: A loss is about to be computed.
            on_backward: A gradient is.
            on_load: A module is about to be given other weights.
        """
        self.losses = 0
        self._tell = {"loss": on_loss, "backward": on_backward}
        self._on_load = on_load
        self._overlays: list[Overlay] = []

    def __enter__(self) -> Evidence:
        for name in _LOSSES:
            self._replace(F, name, lambda *_: self._loss())
        self._replace(torch.autograd, "backward", lambda *_: self._tell["backward"]())
        self._replace(nn.Module, "load_state_dict", lambda module, *_: self._on_load(module))
        return self

    def __exit__(self, *_: object) -> None:
        while self._overlays:
            self._overlays.pop().stop()

    def _loss(self) -> None:
        self.losses += 1
        self._tell["loss"]()

    def _replace(self, owner: Any, name: str, tell: Callable[..., None]) -> None:
        def make(overlay: Overlay) -> Any:
            original = overlay.under

            def told(*args: Any, **kwargs: Any) -> Any:
                if not overlay.over and not torch.compiler.is_compiling():
                    tell(*args)
                return original(*args, **kwargs)

            return told

        self._overlays.append(Overlay(owner, name, make))
