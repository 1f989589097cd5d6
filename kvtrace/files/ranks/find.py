"""The traces that belong together: the ranks of one run, from a folder or as they are named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kvtrace.errors import TraceError
from kvtrace.files.ranks.heads import said
from kvtrace.files.ranks.source import JoinedSource
from kvtrace.files.reading.source import FileSource
from kvtrace.text import safe
from kvtrace.trace import Rank

_RANKED = re.compile(r"(.+)\.rank\d+\.kvt")


def rank_files(folder: Path) -> list[Path]:
    """The ranks of the one run that is in a folder.

    Raises:
        TraceError: There are none, or those of several runs.
    """
    runs: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.kvt")):
        named = _RANKED.fullmatch(path.name)
        if named is not None:
            runs.setdefault(named[1], []).append(path)
    if not runs:
        runs[""] = [path for path in sorted(folder.glob("*.kvt")) if _says_rank(path)]
    name = safe(str(folder))
    if not any(runs.values()):
        raise TraceError(
            f"{name}: a folder without traces of ranks (NAME.rank0.kvt, NAME.rank1.kvt, …). "
            "Name a trace file."
        )
    if len(runs) > 1:
        names = ", ".join(safe(one) for one in sorted(runs)[:5])
        raise TraceError(
            f"{name}: ranks of {len(runs)} runs ({names}). Name the files of one of them: "
            "kvtrace merge NAME.rank*.kvt"
        )
    return next(iter(runs.values()))


def _says_rank(path: Path) -> bool:
    try:
        return FileSource(path).meta.rank is not None
    except TraceError:
        return False


def open_ranks(paths: Sequence[Path], name: str | None = None) -> JoinedSource:
    """Open the ranks of one run as one trace.

    Args:
        paths: Their files, in any order.
        name: What to call the whole; by default what their names have in common.

    Raises:
        TraceError: One is no trace of a rank, or they do not belong together.
    """
    found: dict[int, FileSource] = {}
    files: dict[int, str] = {}
    sizes: dict[int, str] = {}
    for path in paths:
        source = FileSource(path)
        rank = _rank(source)
        sizes.setdefault(rank.size, _named(path, paths))
        if len(sizes) > 1:
            (one, first), (two, second) = sizes.items()
            raise TraceError(
                f"{second} is one of {two} ranks, but {first} is one of {one}: these are not "
                "ranks of one run. Name the files of one run."
            )
        other = found.setdefault(rank.number, source)
        file = files.setdefault(rank.number, _named(path, paths))
        if other is not source:
            raise TraceError(
                f"{_named(path, paths)} and {file} are both rank {rank.number} of {rank.size}"
                f"{_replicas(rank, _rank(other))}. Name one file for each rank."
            )
    ordered = [found[number] for number in sorted(found)]
    return JoinedSource(name or _common_name(paths, sorted(found)), ordered)


def _named(path: Path, paths: Sequence[Path]) -> str:
    """A file's name; with its folder where another of the files has the same."""
    alike = sum(one.name == path.name for one in paths)
    return safe(path.name if alike == 1 else str(path))


def _rank(source: FileSource) -> Rank:
    rank = source.meta.rank
    if rank is None:
        raise TraceError(
            f"{source.name}: the trace of a whole model, not of one rank of it; there is nothing "
            "to merge. Open it as it is."
        )
    return rank


def _replicas(one: Rank, other: Rank) -> str:
    if one.replica == other.replica:
        return ""
    return f", of replica {one.replica} and {other.replica}"


def _common_name(paths: Sequence[Path], numbers: Sequence[int]) -> str:
    named = _RANKED.fullmatch(paths[0].name)
    stem = named[1] if named is not None else paths[0].stem
    noun = "rank" if len(numbers) == 1 else "ranks"
    return safe(f"{stem} ({noun} {said(numbers)})")
