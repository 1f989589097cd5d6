"""What the modules of a forward chose for its tokens, as a step keeps it."""

from __future__ import annotations

from collections.abc import Iterator

from kvtrace.record.capture.forward import Forward
from kvtrace.record.capture.replaced.by_token import by_token
from kvtrace.trace import Picks

_OPTIONS = 1 << 12
"""Routers have fewer; what picks from more picks rows, and those are known by the mask."""


def picks_of(forward: Forward) -> tuple[Picks, ...]:
    """Its choices of some options for each token; none where nobody wanted to know."""
    return tuple(_each(forward))


def _each(forward: Forward) -> Iterator[Picks]:
    for one in forward.choices:
        count = one.indices.shape[-1]
        if one.ordered or not count < one.options <= _OPTIONS:
            continue
        rows = by_token(one.indices.to("cpu"), forward.sequences, forward.new)
        if rows is not None and rows.shape[2] == 1:
            numbers = rows.flatten().tolist()
            yield Picks.of(one.module, one.number, one.options, count, numbers)
