"""How deep a model is: drafts may be made by the first layers of the same model, set by its owner.

Its configuration may say so, or its lists of layers are others for a while.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from kvtrace.configs import setting

_COUNT = "num_hidden_layers"


class Depth:
    """Looks at the layers of one model."""

    def __init__(self, model: nn.Module) -> None:
        """As it is now, before its first forward."""
        self._config = getattr(model, "config", None)
        self._lists = [
            (module, name, child)
            for module in model.modules()
            for name, child in module.named_children()
            if isinstance(child, nn.ModuleList | nn.Sequential | nn.ModuleDict) and len(child) > 1
        ]
        self._said = setting(self._config, _COUNT)
        self._first = self._now()

    @property
    def is_whole(self) -> bool:
        """Whether all layers are there that there were first."""
        return self._now() == self._first

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, layers are those that were there first, and as many as was said first."""
        now = [(module, name, getattr(module, name, None)) for module, name, _ in self._lists]
        said = setting(self._config, _COUNT)
        try:
            _put(self._lists, now)
            self._say(self._said, said)
            yield
        finally:
            _put(now, self._lists)
            self._say(said, self._said)

    def _say(self, layers: object, otherwise: object) -> None:
        if layers != otherwise:
            setattr(self._config, _COUNT, layers)

    def _now(self) -> object:
        lists = [getattr(module, name, None) for module, name, _ in self._lists]
        sizes = [len(one) if isinstance(one, nn.Module) else 0 for one in lists]  # type: ignore[arg-type]
        return setting(self._config, _COUNT), sizes


_Lists = Sequence[tuple[nn.Module, str, object]]


def _put(lists: _Lists, others: _Lists) -> None:
    """Lists in their places, where there are others."""
    for (module, name, one), (*_, other) in zip(lists, others, strict=True):
        if one is not other:
            setattr(module, name, one)
