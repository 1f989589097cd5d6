"""The file a piece of a model is written in, if it is on this machine. Only read, never run.

A trace names files without their folders. They are looked for where the user is, in what is
beside it, and in the installed transformers; those of built-in models where these are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from msgspec import Struct

from kvtrace import paths
from kvtrace.text import safe
from kvtrace.trace import Trace

LARGEST = 4 << 20
_OURS = re.compile(r"demo(-\w+)?|zoo: .+")
"""Names of models that come with kvtrace; people's own have a path or a colon."""

_FOLDERS = 400
"""Folders below the current one that are looked into."""

_SKIPPED = {"node_modules", "__pycache__", "site-packages", "build", "dist"}


class Source(Struct, frozen=True):
    """A file and the lines meant in it.

    Attributes:
        name: File and line as recorded: "model.py:33".
        line: Where the output is calculated, counted from 1; 0: not known.
        scores: Where the scores are, if that is another line of this file; else 0.
        path: Where it is, safe to show; empty: it is not here.
        lines: Its text, safe to show.
        remark: Why there is nothing to show, or why it may be another version.
    """

    name: str
    line: int
    scores: int = 0
    path: str = ""
    lines: tuple[str, ...] = ()
    remark: str = ""


def source_of(trace: Trace, layer: int, here: Path) -> Source:
    """The code of a site.

    Args:
        trace: Names the file.
        layer: Site.
        here: The current folder.
    """
    site = trace.site(layer)
    name, number = _parted(site.code)
    scores_name, scores = _parted(site.scores_code)
    scores = scores if scores_name == name else 0
    shown = safe(site.lines, 200)
    if not name or not number:
        return Source(shown, 0, remark="where this attention is written was not seen")
    if name != PurePosixPath(name).name or not name.endswith(".py") or name.startswith("."):
        return Source(shown, number, remark="that is not the name of a Python file")
    for path in (*_built_in(trace, name), *_places(name, here)):
        lines = _read(path)
        if lines is not None and len(lines) >= max(number, scores):
            where = safe(paths.shown(path), 400)
            return Source(shown, number, scores, where, lines, _version(trace, path))
    where = "below this folder or in transformers: start kvtrace where the model's code is"
    return Source(shown, number, remark=f"no {safe(name, 100)} with that line {where}")


def _parted(code: str) -> tuple[str, int]:
    """File and line of "file.py:line"; 0: no line."""
    name, _, line = code.rpartition(":")
    return name, int(line) if line.isascii() and line.isdecimal() and len(line) < 9 else 0


def _places(name: str, here: Path) -> Iterator[Path]:
    """Where a file of that name is, the likeliest first."""
    if name.startswith(("modeling_", "modular_")):
        yield from _in_transformers(name)
    for seen, (folder, below, files) in enumerate(os.walk(here)):
        if name in files:
            yield Path(folder, name)
        below[:] = sorted(b for b in below if not b.startswith(".") and b not in _SKIPPED)
        if seen >= _FOLDERS:
            break
    if not name.startswith(("modeling_", "modular_")):
        yield from _in_transformers(name)


def _in_transformers(name: str) -> Iterator[Path]:
    """Files of the installed library."""
    for folder in _folders("transformers"):
        yield from sorted(folder.joinpath("models").glob(f"*/{name}"))


def _built_in(trace: Trace, name: str) -> Iterator[Path]:
    """Files of models that come with kvtrace, where the trace is of one."""
    if _OURS.fullmatch(trace.meta.model.name):
        for folder in _folders("kvtrace_fixtures"):
            yield from sorted(folder.rglob(name))


def _folders(package: str) -> list[Path]:
    """Where an installed package is; it is not imported."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return []
    found = None if spec is None else spec.submodule_search_locations
    return [Path(folder) for folder in found or ()]


def _read(path: Path) -> tuple[str, ...] | None:
    """Its lines, made safe; None if it can't be read."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return None
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
    return tuple(safe(line.expandtabs(4), 400) for line in text.split("\n"))


def _version(trace: Trace, path: Path) -> str:
    """Whether the library is the one that was recorded with."""
    recorded = trace.meta.versions.get("transformers", "")
    if "transformers" not in path.parts or not recorded:
        return ""
    try:
        installed = version("transformers")
    except PackageNotFoundError:
        return ""
    if installed == recorded:
        return f"transformers {safe(installed, 40)}, as recorded"
    return (
        f"recorded with transformers {safe(recorded, 40)}; this is {safe(installed, 40)}: "
        "lines may have moved"
    )
