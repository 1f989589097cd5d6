"""Which module is running: `forward` is patched at class level while watching.

Module hooks never fire when code calls `.forward()` itself, so the classes are patched, and given
back on exit whatever happens. Modules of `torch.nn` without children are left alone: they attend
to nothing and are called most often.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.capture.attention.kinds import is_two_sided
from kvtrace.record.capture.replaced.overlay import Overlay
from kvtrace.record.capture.symbolic import is_symbolic
from kvtrace.record.driving.ways.roles import signature_of
from kvtrace.record.flow.modes.inline import INLINED

Forward = Callable[..., Any]
Around = Callable[["Frame", Callable[[], Any]], Any]
"""(frame, run the forward) → its result."""
Only = Callable[[str, nn.Module], bool]
"""(path, module) → whether what is inside of it counts."""


@dataclass(slots=True, eq=False)
class Frame:
    """One running `forward`.

    Attributes:
        module: The module; None where no module runs.
        path: As the model calls it.
        outermost: No other module was running.
        forward: The original, with its arguments, to run it again.
        attended: Attention calls seen so far, those of modules below included.
    """

    module: nn.Module | None
    path: str
    outermost: bool
    forward: Callable[[], Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    attended: int = 0

    def tensors(self) -> Iterable[Tensor]:
        """Tensors among the arguments, in order."""
        given, named = self.arguments
        return (x for x in (*given, *named.values()) if isinstance(x, Tensor))


@dataclass(slots=True)
class Forwards:
    """The patch, and the stack of running modules.

    Attributes:
        around: Called for every forward.
        stack: Running forwards, outermost first.
        paused: Forwards run as if there were no patch.
        thread: The one in which they run.
        paths: Path of each known module, by identity.
        two_sided: A model has an encoder and a decoder: its modules are called so, or its forward
            takes a text for each.
    """

    around: Around
    stack: list[Frame] = field(default_factory=list)
    paused: bool = False
    thread: int = 0
    paths: dict[int, str] = field(default_factory=dict)
    two_sided: bool = False
    parameters: dict[int, str] = field(default_factory=dict)
    scripted: list[str] = field(default_factory=list)
    compiled: list[str] = field(default_factory=list)
    _roots: list[nn.Module] = field(default_factory=list)
    _foreign: weakref.WeakSet[nn.Module] = field(default_factory=weakref.WeakSet)
    _classes: set[type] = field(default_factory=set)
    _overlays: list[Overlay] = field(default_factory=list)

    def adopt(self, root: nn.Module, only: Only | None = None) -> None:
        """Learn the modules of a model and patch their classes.

        Args:
            root: The model.
            only: Patch what is inside of modules for which this is true, and the model; None: all.
        """
        if id(root) in self.paths:
            return
        if not self._roots:
            INLINED.hold()
        self._roots.append(root)
        chosen = ""
        for path, module in root.named_modules():
            # torch.compile puts a module around the one the user wrote
            name = path.replace("_orig_mod.", "").removesuffix("_orig_mod")
            if only is not None and not _within(name, chosen) and only(name, module):
                chosen = name
            self._adopt(name, module, only is None or module is root or _within(name, chosen))
        self.two_sided |= is_two_sided(self.paths.values(), type(root).__name__)
        self.two_sided |= bool(signature_of(root).of("source"))
        for path, parameter in root.named_parameters(remove_duplicate=False):
            self.parameters.setdefault(id(parameter), path)

    def name(self, model: nn.Module) -> None:
        """Call the modules of a model by their paths, without patching them."""
        for path, module in model.named_modules():
            self.paths.setdefault(id(module), path)
        self.two_sided = self.two_sided or is_two_sided(self.paths.values())
        self.two_sided = self.two_sided or bool(signature_of(model).of("source"))

    def _adopt(self, path: str, module: nn.Module, patched: bool = True) -> None:
        self.paths.setdefault(id(module), path)
        if isinstance(module, torch.jit.ScriptModule):
            self.scripted.append(path)
            return
        if module._compiled_call_impl is not None or hasattr(module, "_orig_mod"):
            self.compiled.append(path)
        if not patched:
            return
        if "forward" in module.__dict__:
            self._patch_instance(module)
        owner = next((cls for cls in type(module).__mro__ if "forward" in cls.__dict__), nn.Module)
        leaf = owner.__module__.startswith("torch.nn.") and not any(module.children())
        if owner is not nn.Module and owner not in self._classes and not leaf:
            self._patch_class(owner)

    def _patch_class(self, owner: type) -> None:
        if not callable(owner.__dict__["forward"]):
            return
        call = self.call

        def make(overlay: Overlay) -> Forward:
            original: Forward = overlay.under

            def forward(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
                if overlay.over:
                    return original(module, *args, **kwargs)
                return call(original, module, args, kwargs)

            return forward

        self._classes.add(owner)
        self._overlays.append(Overlay(owner, "forward", make))

    def _patch_instance(self, module: nn.Module) -> None:
        call = self.call

        def make(overlay: Overlay) -> Forward:
            original: Forward = overlay.under

            def forward(*args: Any, **kwargs: Any) -> Any:
                if overlay.over:
                    return original(*args, **kwargs)
                return call(lambda _, *a, **k: original(*a, **k), module, args, kwargs)

            return forward

        self._overlays.append(Overlay(module, "forward", make))

    def call(
        self, original: Forward, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a function of a module as a forward of it."""
        stack = self.stack
        if stack and self.thread != get_ident():  # one step at a time is followed
            return original(module, *args, **kwargs)
        if not stack and is_symbolic():
            return original(module, *args, **kwargs)
        self.thread = get_ident()
        if self.paused or (stack and stack[-1].module is module):  # super().forward()
            return original(module, *args, **kwargs)
        path = self.paths.get(id(module))
        if path is None:
            if module in self._foreign:
                return original(module, *args, **kwargs)
            path = self._learn(module)
        if path is None:
            self._foreign.add(module)
            return original(module, *args, **kwargs)
        run = functools.partial(original, module, *args, **kwargs)
        frame = Frame(module, path, not stack, run, (args, kwargs))
        stack.append(frame)
        try:
            return self.around(frame, run)
        finally:
            stack.pop()
            if stack:
                stack[-1].attended += frame.attended

    def _learn(self, module: nn.Module) -> str | None:
        """The path of a module that was not there before; None: it is of another model."""
        for root in self._roots:
            for path, found in root.named_modules():
                if found is module:
                    self.paths[id(module)] = str(path)
                    return str(path)
        if self.stack:
            return f"{self.stack[-1].path}.{type(module).__name__}".lstrip(".")
        if self._roots:
            return None
        self.adopt(module)
        return ""

    def undo(self) -> None:
        """Give every class and module its own forward back."""
        while self._overlays:
            self._overlays.pop().stop()
        self._classes.clear()
        self.stack.clear()
        self.paths.clear()
        self.parameters.clear()
        if self._roots:
            self._roots.clear()
            INLINED.release()

    def owner_of(self, parameter: Tensor | None) -> str | None:
        """Path of the module that owns a parameter, as far as it names a place in the model."""
        path = self.parameters.get(id(parameter)) if parameter is not None else None
        if path is None:
            return None
        parts = path.split(".")
        return ".".join(parts[: -2 if len(parts) > 2 else -1])


def _within(path: str, around: str) -> bool:
    """Whether a module is another one, or inside of it."""
    return bool(around) and (path == around or path.startswith(f"{around}."))
