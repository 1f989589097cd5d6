"""Where rows stand that an attention was given beside those of a known cache layer.

A model may put more next to what its cache handed back: summaries of rows that a window has let
go, learned rows. Those of the cache are known by content; the others stand for no single token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvtrace.record.capture.forward import CacheUpdate
from kvtrace.record.flow.rows.slots import Numbers
from kvtrace.record.flow.rows.standing import for_none
from kvtrace.record.match import Digests, digest
from kvtrace.trace import NO_TOKEN
from kvtrace.trace.step import Runs
from kvtrace.trace.view import positions_of


def among(
    given: tuple[Digests, Digests], update: CacheUpdate, handed: Sequence[Runs]
) -> tuple[Numbers, ...]:
    """Position of every row that was given, per sequence; nothing where none is of the cache.

    Args:
        given: Digests of keys and values as they were given, [sequences, seq].
        update: What handed back rows of the cache.
        handed: What those are, per sequence, in slot order.
    """
    keys, values = digest(update.keys), digest(update.values)
    if len(given[0]) != len(handed) or len(keys) != len(handed):
        return ()
    out = []
    for b, held in enumerate(handed):
        positions = positions_of(held)
        theirs = _pairs(keys[b], values[b])[: len(positions)]
        found = _positions(_pairs(given[0][b], given[1][b]), theirs, positions)
        if for_none(found).all():
            return ()
        out.append(found)
    return tuple(out)


def _pairs(keys: Numbers, values: Numbers) -> Numbers:
    return keys * 3 + values


def _positions(mine: Numbers, theirs: Numbers, positions: Numbers) -> Numbers:
    """The position of each of my rows that is one of theirs; others are numbered."""
    if not len(theirs):
        return NO_TOKEN + np.arange(len(mine))
    order = np.argsort(theirs, kind="stable")
    at = order[np.minimum(np.searchsorted(theirs[order], mine), len(theirs) - 1)]
    known = theirs[at] == mine
    found = positions[at]
    found[~known] = NO_TOKEN + np.arange(int((~known).sum()))
    return found
