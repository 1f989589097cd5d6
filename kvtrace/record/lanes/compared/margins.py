"""Rows around those of a text's tokens that stand for none: learned ones, an encoder's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from kvtrace.trace import Run, stands_for_none


def margins(runs: Sequence[Run]) -> tuple[int, int] | None:
    """Rows that stand for none, before the tokens' and behind them; None: some are among them."""
    none = sum(run.count for run in runs if stands_for_none(run.position))
    front, behind = (
        sum(run.count for run in takewhile(lambda run: stands_for_none(run.position), order))
        for order in (runs, reversed(runs))
    )
    return (front, behind) if front + behind == none else None
