"""Modules that a program may import later: whoever waits for one is told once it is there.

While anybody waits, a finder of ours stands before Python's. It finds nothing itself: what the
others find is loaded as ever, by the loader they name, and told of afterwards.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

_lock = threading.Lock()
_waiting: list[tuple[str, Callable[[], None]]] = []


def finished(name: str) -> None:
    """Wait for another thread that is about to import a module; nobody else is waited for."""
    if name in sys.modules:
        importlib.import_module(name)


def when_there(name: str, tell: Callable[[], None]) -> Callable[[], None]:
    """Call `tell` now if a module is there, else as soon as it is; returns how to stop waiting."""
    if name in sys.modules:
        tell()
        return lambda: None
    entry = (name, tell)
    with _lock:
        if not _waiting:
            sys.meta_path.insert(0, _FINDER)
        _waiting.append(entry)

    def stop() -> None:
        with _lock:
            if entry in _waiting:
                _waiting.remove(entry)
                _step_aside()

    return stop


def _arrived(name: str) -> None:
    with _lock:
        told = [entry for entry in _waiting if entry[0] == name]
        _waiting[:] = [entry for entry in _waiting if entry[0] != name]
        _step_aside()
    for _, tell in told:
        tell()


def _step_aside() -> None:
    """Nobody waits any more."""
    if not _waiting and _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)


class _Finder:
    """Asks the others, and has what they found told of."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if all(name != awaited for awaited, _ in _waiting):
            return None
        others = [one for one in sys.meta_path if one is not self and hasattr(one, "find_spec")]
        found = (one.find_spec(name, path, target) for one in others)
        spec = next((one for one in found if one is not None), None)
        loader = None if spec is None else spec.loader
        if spec is not None and loader is not None and hasattr(loader, "exec_module"):
            spec.loader = _Telling(loader)
        return spec


class _Telling(Loader):
    """Loads as another loader does, which the module says of itself too, and tells."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _arrived(module.__name__)


_FINDER = _Finder()
