"""Which modules that look like attention run at all: in the model's forwards, or ahead of them.

`generate` has images and sounds encoded before it calls the model: that is nobody's step.
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
        ahead: While none was running.
    """

    within: set[str] = field(default_factory=set)
    ahead: set[str] = field(default_factory=set)

    @property
    def only_ahead(self) -> list[str]:
        """Those that never ran in a forward, in their order."""
        return sorted(self.ahead - self.within)

    @property
    def says(self) -> tuple[str, ...]:
        """What was not recorded of them, as a sentence."""
        paths = self.only_ahead
        if not paths:
            return ()
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        return (
            f"{paths[0]}{more}: attended before the model was called, as encoders of images do; "
            "that is not recorded",
        )

    def listen(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        """Note which of some modules run; returns how to stop.

        A hook goes when its module has run in a forward.
        """
        hooks: dict[str, RemovableHandle] = {}

        def note(path: str) -> Callable[..., None]:
            def hook(*_: object) -> None:
                if not passes():
                    self.ahead.add(path)
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
