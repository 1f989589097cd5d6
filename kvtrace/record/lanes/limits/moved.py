"""Which attention is the first whose rows come out otherwise when later tokens follow."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from msgspec import Struct
from torch import Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.lanes.limits.apart import pairs, relative
from kvtrace.record.lanes.paths import Path

_GROWTH = 100.0
"""Times that rounding may grow from one layer to the next: in many layers it grows to anything."""


class Moved(Struct, frozen=True):
    """An attention whose rows moved.

    Attributes:
        call: It, in the short text.
        whole: The same in the whole one.
        far: The largest difference over the largest number.
        padded: Only those of sequences with padding did, and there are others.
    """

    call: AttentionCall
    whole: AttentionCall
    far: float
    padded: bool


def moved(
    short: Sequence[AttentionCall],
    whole: Sequence[AttentionCall],
    paths: Sequence[Path],
    limit: float,
) -> Moved | None:
    """The first attention whose rows moved, and how far.

    None also where the length alone explains it, by positions or by the scale, and where what is
    rounding in the first layers grows from layer to layer: what looks ahead moves at once.
    """
    rows, before = len(paths[0].tokens), 0.0
    for one, other in pairs(short, [call for call in whole if call.kind == "self"]):
        if one.queries.shape[2] != rows:
            continue
        each = [
            _each_apart(mine, theirs, paths)
            for mine, theirs in (
                (one.queries, other.queries),
                (one.values, other.values),
                (one.output, other.output),
            )
        ]
        far = [max(sequences) for sequences in each]
        if max(far) > max(limit, _GROWTH * before):
            turned = far[0] > limit and far[1] <= limit
            if turned or _rescaled(one, other, limit, far):
                return None
            whose = [max(column) > limit for column in zip(*each, strict=True)]
            padded = whose == [path.padding > 0 for path in paths] and not all(whose)
            return Moved(one, other, max(far), padded)
        before = max(before, *far)
    return None


def _rescaled(one: AttentionCall, other: AttentionCall, limit: float, far: Sequence[float]) -> bool:
    """Whether only the factor on the scores differs: it depends on the length, no row does."""
    factor = one.scale / other.scale if other.scale else inf
    return max(far[:2]) <= limit and abs(factor - 1) > limit


def rows_apart(mine: Tensor, theirs: Tensor, paths: Sequence[Path]) -> float:
    """How far the rows of short texts are from those of the whole ones, of the largest number."""
    return max(_each_apart(mine, theirs, paths))


def _each_apart(mine: Tensor, theirs: Tensor, paths: Sequence[Path]) -> list[float]:
    """The same of every text."""
    rows = len(paths[0].tokens)
    return [_apart(mine, theirs, place, path.padding, rows) for place, path in enumerate(paths)]


def _apart(mine: Tensor, theirs: Tensor, place: int, start: int, rows: int) -> float:
    """The largest difference of the rows that both have, over the largest number."""
    if mine.shape[2] < rows or theirs.shape[2] < rows:
        return 0.0
    one, other = (x[place, :, start:rows].float() for x in (mine, theirs))
    return relative(one, other)
