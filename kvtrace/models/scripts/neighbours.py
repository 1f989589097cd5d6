"""A program's own modules before installed ones of their name, as Python itself finds them.

What kvtrace has imported before the program starts is what Python would find first otherwise.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

_STAY = {"__main__", "__mp_main__", "kvtrace", "torch", "numpy"}
"""Ours, and what can't be loaded twice."""


def come_first(folder: Path) -> None:
    """Forget what was imported under a name that a program would find in its own folder.

    The standard library stays what it is, for a file called `random.py` would break torch.

    Args:
        folder: Of the program.
    """
    loaded = {name.partition(".")[0] for name in sys.modules}
    for name in loaded - _STAY - sys.stdlib_module_names:
        if _is_another(name, folder):
            for one in [one for one in sys.modules if one.partition(".")[0] == name]:
                del sys.modules[one]


def _is_another(name: str, folder: Path) -> bool:
    """Whether the folder has a module of this name that is not the one that was imported."""
    own = PathFinder.find_spec(name, [str(folder)])
    if own is None or own.origin is None:
        return False  # a folder without an __init__.py comes after what is installed
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or Path(file).resolve() != Path(own.origin).resolve()


def add_to_path(folder: Path) -> None:
    """Let a program import its neighbours: after the standard library, before what is installed.

    Args:
        folder: Of the program.
    """
    if str(folder) not in sys.path:
        installed = (
            place
            for place, path in enumerate(sys.path)
            if Path(path).name in ("site-packages", "dist-packages")
        )
        sys.path.insert(next(installed, len(sys.path)), str(folder))
    come_first(folder)
