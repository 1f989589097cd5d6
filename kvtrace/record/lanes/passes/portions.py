"""Which paths go into one pass together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from kvtrace.record.lanes.as_it_was.settings import Settings
from kvtrace.record.lanes.given.extras import Extras
from kvtrace.record.lanes.paths import Path


def portions(
    paths: Sequence[Path], size: int, extras: Extras, settings: Settings
) -> Iterator[list[Path]]:
    """Paths of one text, so many at most, in their order.

    Where its arguments belong to all its sequences at once, a pass has exactly these.
    """
    for _, same in groupby(paths, key=lambda path: (extras.text(path), settings.text(path))):
        whole = list(same)
        rows = extras.together(whole[0])
        each = [[path for path in whole if path.row == row] for row in range(rows)]
        if each and all(each):
            yield from _abreast(each)
            continue
        for start in range(0, len(whole), size):
            yield whole[start : start + size]


def _abreast(each: Sequence[Sequence[Path]]) -> Iterator[list[Path]]:
    """One path of every sequence; where a sequence has no more, its shortest runs along."""
    along = [replace(min(own, key=lambda path: len(path.tokens)), nodes=[]) for own in each]
    for number in range(max(map(len, each))):
        yield [
            own[number] if number < len(own) else other
            for own, other in zip(each, along, strict=True)
        ]
