"""Which modules that look like attention run at all: in the model's forwards, or ahead of them.

`generate` has images and sounds encoded before it calls the model: that is nobody's step. So is
what another model does between two of its calls, as one that says several codes for each position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.utils.hooks import RemovableHandle

from kvtrace.record.capture.running import passes


@dataclass(slots=True)
class Ran:
    """Paths of modules that ran.

    Attributes:
        within: In a forward that was watched.
        ahead: While none was running, before the first.
        between: While none was running, after another.
    """

    within: set[str] = field(default_factory=set)
    ahead: set[str] = field(default_factory=set)
    between: set[str] = field(default_factory=set)

    @property
    def only_ahead(self) -> list[str]:
        """Those that ran beside forwards, and never in one, in their order."""
        return sorted((self.ahead | self.between) - self.within)

    @property
    def says(self) -> tuple[str, ...]:
        """What was not recorded of them, as sentences."""
        told = (
            (self.ahead, "before the model was called, as encoders of images do"),
            (self.between - self.ahead, "between calls of the model, and in none of them"),
        )
        found = []
        for paths, when in told:
            first, *others = sorted(paths - self.within) or [""]
            more = f" and {len(others)} more" if others else ""
            if first:
                found.append(f"{first}{more}: attended {when}; that is not recorded")
        return tuple(found)

    def listen(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        """Note which of some modules run; returns how to stop.

        A hook goes when its module has run in a forward.
        """
        hooks: dict[str, RemovableHandle] = {}

        def note(path: str) -> Callable[..., None]:
            def hook(*_: object) -> None:
                if not passes():
                    (self.between if self.within else self.ahead).add(path)
                    return
                self.within.add(path)
                hooks.pop(path).remove()

            return hook

        for path, module in modules.items():
            hooks[path] = module.register_forward_pre_hook(note(path))

        def stop() -> None:
            for handle in hooks.values():
                handle.remove()
            hooks.clear()

        return stop
