"""What is in a trace file: frames, bytes, and every string, so that people can share it safely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from kvtrace.errors import TraceError
from kvtrace.files.layout import HEADER_BYTES, Kind
from kvtrace.files.reading.source import FileSource
from kvtrace.files.reading.stored import read_everything
from kvtrace.trace import Ending, Trace


class FileReport(Struct, frozen=True):
    """What a file holds.

    Attributes:
        name: File name.
        version: Of the format.
        size: Bytes.
        whole: Bytes up to the end of the last whole frame; the rest is torn.
        frames: Kind of frame to (number, bytes).
        steps: Number of steps.
        ending: How it ended; None: incomplete.
        damage: Sentences: what can't be read, or is missing between what can.
        strings: Every string in its frames, raw, with how often it occurs, in order of appearance.
        unlisted: Bytes that belong to no frame that could be read: their strings are not listed.
    """

    name: str
    version: int
    size: int
    whole: int
    frames: dict[str, tuple[int, int]]
    steps: int
    ending: Ending | None
    damage: tuple[str, ...]
    strings: dict[str, int]
    unlisted: int


def describe(path: Path, told: Callable[[float], None] = lambda _: None) -> FileReport:
    """Look at every frame of a file, and hold all of it against its checksums.

    Args:
        path: The file.
        told: Hears which share of its steps has been read.

    Raises:
        TraceError: It is no trace, or nothing of it can be read.
    """
    source = FileSource(path)
    read_everything(source, told)
    catalog = source.catalog
    file = catalog.file
    frames: dict[str, tuple[int, int]] = {}
    strings: Counter[str] = Counter()
    for row in catalog.frames.rows:
        kind, offset = _kind_name(int(row["kind"])), int(row["offset"])
        try:
            frame = file.frame(offset)
            strings.update(_strings(catalog.json(frame)))
        except TraceError as error:
            catalog.damage.add(str(error), offset)
            continue
        number, size = frames.get(kind, (0, 0))
        frames[kind] = (number + 1, size + frame.head.total)
    return FileReport(
        name=file.name,
        version=file.version,
        size=file.size(),
        whole=catalog.end,
        frames=frames,
        steps=len(catalog.numbers),
        ending=catalog.ending,
        damage=(*(one.text for one in catalog.damage.all()), *Trace(source).missing),
        strings=dict(strings),
        unlisted=file.size() - HEADER_BYTES - sum(size for _, size in frames.values()),
    )


def _kind_name(kind: int) -> str:
    return Kind(kind).name if kind in list(Kind) else f"kind {kind}"


def _strings(value: object) -> Iterator[str]:
    """Every string value in parsed JSON; keys are our own words, except of mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
