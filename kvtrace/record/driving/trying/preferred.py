"""Which of the ways that were tried come first, where the author's own loop shows none."""

from __future__ import annotations

from collections.abc import Sequence

from kvtrace.record.driving.trying.evidence import Tried
from kvtrace.record.driving.ways.begins import OF_TRANSFORMERS
from kvtrace.record.driving.ways.way import Way


def closest_first(differing: list[Tried], slicing: Sequence[Tried]) -> list[Tried]:
    """Ways whose steps differ; those of a model that takes its new tokens itself, if far closer."""
    near = min(slicing, key=lambda tried: tried.difference, default=None)
    if near is None or (differing and near.difference * 5 > differing[0].difference):
        return differing
    return [near, *differing]


def unless_their_own(agreeing: list[Tried], differing: list[Tried]) -> list[Tried]:
    """Ways whose steps agree; none where that is for a cache of transformers, and not for theirs.

    A cache class beside the model that takes its rows is the one that is asked about, right or
    wrong.
    """
    own = any(one.way.cache is not None and one.way.cache.begin.of_class for one in differing)
    return [one for one in agreeing if not (own and _of_transformers(one.way))]


def _of_transformers(way: Way) -> bool:
    return way.cache is not None and way.cache.begin.said == OF_TRANSFORMERS
