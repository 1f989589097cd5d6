"""Imports the user's module: a file by its path, or a dotted name; whole, or its definitions."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from kvtrace.errors import UsageError
from kvtrace.models.loaded import Progress
from kvtrace.models.scripts.definitions import Definitions, definitions_of
from kvtrace.models.scripts.mistakes import theirs
from kvtrace.models.scripts.neighbours import add_to_path
from kvtrace.models.spec import Source

SLOW_SECONDS = 10.0
"""An import that takes longer is likely no import, but a program."""


def import_script(
    source: Source, progress: Progress, *, definitions: bool
) -> tuple[ModuleType, Definitions | None]:
    """The user's module, and what was left out of it.

    Raises:
        UsageError: It is not there.
        ModelError: It raised.
    """
    with _impatient(source, progress, definitions), patch.object(sys, "argv", [source.place]):
        if source.kind == "module":
            return _by_name(source, definitions)
        return _by_path(source, Path(source.place).resolve(), definitions)


@contextmanager
def _impatient(source: Source, progress: Progress, definitions: bool) -> Iterator[None]:
    """Say what may help while an import goes on and on."""
    text = f"{source.name} has been running for {SLOW_SECONDS:.0f} s as it is imported"
    if not definitions:
        text += "; if it trains, stop it (Ctrl-C) and add --definitions"
    timer = threading.Timer(SLOW_SECONDS, progress, (text, None))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _by_name(source: Source, definitions: bool) -> tuple[ModuleType, Definitions | None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        spec = theirs(source, lambda: _spec_of(source.place))
        if spec is None:
            raise UsageError(
                f"{source.name}: there is no module {source.place} here or among the "
                "installed packages"
            )
        if definitions and spec.origin and spec.origin.endswith(".py"):
            return _defined(source, Path(spec.origin), source.place)
        return theirs(source, lambda: importlib.import_module(source.place)), None
    finally:
        sys.path.remove(here)


def _spec_of(dotted: str) -> importlib.machinery.ModuleSpec | None:
    """What would be imported; None when a part of the name is not there."""
    try:
        return importlib.util.find_spec(dotted)
    except (ModuleNotFoundError, ValueError):
        return None


def _by_path(
    source: Source, path: Path, definitions: bool
) -> tuple[ModuleType, Definitions | None]:
    add_to_path(path.parent)  # it stays: factories import their neighbours later than at import
    name = path.stem if path.stem not in sys.modules else f"kvtrace_user_{path.stem}"
    if definitions:
        return _defined(source, path, name)
    if depth := _package_depth(path):
        return _of_package(source, path, depth), None
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{source.name}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    theirs(source, lambda: loader.exec_module(module))
    return module, None


def _package_depth(path: Path) -> int:
    """Directories above a file that its relative imports, or `__init__.py`, make packages."""
    packages = 0
    while (path.parents[packages] / "__init__.py").is_file():
        packages += 1
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return 0
    relative = (one.level for one in ast.walk(tree) if isinstance(one, ast.ImportFrom))
    return max(packages, *relative, 0)


def _of_package(source: Source, path: Path, depth: int) -> ModuleType:
    """The file by its dotted name, so that `from . import neighbour` works."""
    folder = path.parents[depth - 1]
    sys.path.insert(0, str(folder.parent))
    try:
        within = path.relative_to(folder).with_suffix("").parts
        dotted = ".".join([theirs(source, lambda: _package_of(folder)), *within])
        return theirs(source, lambda: importlib.import_module(dotted))
    finally:
        sys.path.remove(str(folder.parent))
        sys.path.append(str(folder.parent))


def _package_of(folder: Path) -> str:
    """The name that a folder's files are imported under: its own, where that means no other module.

    A module of its name, beside it or installed, comes before a folder without an `__init__.py`;
    one that was imported already comes before all; and names of folders may have dots in them.
    """
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(folder.name)
        places = [] if spec is None else [*(spec.submodule_search_locations or ())]
        if places and Path(places[0]).resolve() == folder:
            return folder.name
    name = f"kvtrace_user_{folder.name.replace('.', '_')}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
        if (begin := folder / "__init__.py").is_file():
            module.__file__, module.__package__ = str(begin), name
            exec(compile(begin.read_bytes(), str(begin), "exec"), module.__dict__)
    return name


def _defined(source: Source, path: Path, name: str) -> tuple[ModuleType, Definitions]:
    """A module with a file's definitions in it."""
    code = path.read_text(encoding="utf-8", errors="replace")
    found = theirs(source, lambda: definitions_of(code, str(path)))
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__package__ = name.rpartition(".")[0]
    sys.modules[name] = module
    compiled = theirs(source, lambda: compile(found.tree, str(path), "exec"))
    theirs(source, lambda: exec(compiled, module.__dict__))
    return module, found
