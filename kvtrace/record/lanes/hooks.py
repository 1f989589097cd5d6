"""Hooks that come or go while a model is recorded: a lane computed later runs with other ones."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from kvtrace.record.whose import LIBRARIES, package_of


class Hooks:
    """Hooks that people registered on a model.

    Attributes:
        before: Steps before this one ran with other hooks than there are now; 0: none did.
        since: Steps from this one on ran with other hooks than the first did; 0: none did.
    """

    def __init__(self, model: nn.Module) -> None:
        """As they are now."""
        self.before = self.since = 0
        self._model = model
        self._known = self._all()

    def look(self, step: int) -> None:
        """Look again, before a step."""
        known, self._known = self._known, self._all()
        if known != self._known:
            self.before, self.since = step, self.since or step

    def _all(self) -> list[int]:
        return [hook for module in self._model.modules() for hook in _of(module)]


def _of(module: nn.Module) -> Iterator[int]:
    """Identities of hooks that people registered."""
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        theirs = getattr(hook, "func", hook)
        if package_of(theirs) not in LIBRARIES:  # else it belongs to the model, or to watching it
            yield id(hook)
