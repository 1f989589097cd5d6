"""Heads that keep rows of their own, as caches do that score rows head by head and drop some."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.identify import Identity, matches
from kvtrace.analysis.checks.scenes.rows import Indices, counted, finding
from kvtrace.analysis.checks.scenes.scene import Scene

_NAMED = 3


class OwnRows(Struct, frozen=True):
    """What each kv head was given, where rows are those of no token as a whole.

    Attributes:
        rows: Those, as indices into the attended rows.
        places: Of each head, the place of every row that is seen.
        lacks: Of each head, the wanted places of which it is given no row.
    """

    rows: Indices
    places: list[list[int]]
    lacks: list[list[int]]

    @property
    def complete(self) -> bool:
        """Whether no head lacks any: the order of rows is nothing to a softmax."""
        return not any(self.lacks)


def rows_of_heads(scene: Scene, identity: Identity) -> OwnRows | None:
    """Rows that no token has as a whole, while each kv head's part is that of some token.

    None where there are none, or a part is nobody's or of a token that must not be seen.
    """
    seen = scene.seen
    rows = seen[(identity.by_key[seen] < 0) & (identity.by_value[seen] < 0)]
    if not len(rows) or len(scene.cached.keys) < 2:
        return None
    wanted, found, lacks = set(scene.wanted.tolist()), list[list[int]](), list[list[int]]()
    for head in range(len(scene.cached.keys)):
        places = _places(scene, head, seen)
        if places is None or not wanted.issuperset(places):
            return None
        found.append(places)
        lacks.append(_lacking(scene, head, wanted.difference(places)))
    return OwnRows(rows, found, lacks)


def check_rows_of_heads(scene: Scene, own: OwnRows) -> Finding | None:
    """Heads that lack rows: dropped there, or another stands in their place."""
    if own.complete:
        return None
    head, lost = next((head, gone) for head, gone in enumerate(own.lacks) if gone)
    twice = [len(one) - len(set(one)) for one in own.places]
    if all(len(gone) <= more for gone, more in zip(own.lacks, twice, strict=True)):
        again = f"{counted(twice[head])} of other places stand there twice"
        evidence = f"kv head {head} lacks {len(lost)}: {_first(lost)}; {again}"
        return finding(scene, "ROW-OVERWRITTEN", "k", evidence, own.rows, head)
    told = "; ".join(
        f"head {head} lacks {len(gone)}: {_first(gone)}"
        for head, gone in enumerate(own.lacks[:_NAMED])
    )
    more = f" and {len(own.lacks) - _NAMED} more heads" if len(own.lacks) > _NAMED else ""
    kept = f"{len(scene.seen)} of {len(scene.wanted)} places"
    evidence = f"each kv head sees rows of its own, {kept}: {told}{more}"
    chosen = _chosen(own.lacks) and not any(twice)
    name = "EVICTED-BY-CHOICE" if chosen else "EVICTED-EARLY"
    return finding(scene, name, "k", evidence, own.rows, head)


def _chosen(lacks: list[list[int]]) -> bool:
    """Whether each head lacks as many rows, some of them others, here and there: not by place."""
    if len({len(gone) for gone in lacks}) > 1:
        return False
    scattered = {tuple(gone) for gone in lacks if gone[-1] - gone[0] >= len(gone)}
    return len(scattered) > 1


def _places(scene: Scene, head: int, seen: Indices) -> list[int] | None:
    """The places whose rows one kv head is given; None where a row is nobody's."""
    part, supposed = slice(head, head + 1), scene.supposed[seen]
    mine, right = scene.cached, scene.reference
    values = matches(mine.values[part, seen], right.values[part], supposed, scene.atol.values)
    # equal tokens have equal values, and keys of their own
    keys = matches(mine.keys[part, seen], right.keys[part], values, scene.atol.keys)
    if (values < 0).any() or (keys < 0).any():
        return None
    again = right.values[part][:, keys] - mine.values[part, seen]
    return keys.tolist() if np.abs(again).max() <= scene.atol.values else None


def _lacking(scene: Scene, head: int, places: set[int]) -> list[int]:
    """Those of some places whose rows the head is not given: equal tokens have equal ones."""
    part, gone = slice(head, head + 1), np.array(sorted(places), np.int64)
    if not len(gone):
        return []
    mine, right = scene.cached, scene.reference
    there = matches(right.keys[part][:, gone], mine.keys[part, scene.seen], gone, scene.atol.keys)
    return [int(place) for place in gone[there < 0]]


def _first(places: list[int]) -> str:
    """The first of some places, as text."""
    return ", ".join(map(str, places[:_NAMED])) + (" …" if len(places) > _NAMED else "")
