"""Steps that see the first rows of the cache and not their own: told without another lane.

A causal mask of the new tokens alone, laid over all rows, hides every row but the first ones. Where
the prompt saw itself, no model means that; and it shows where the model can't be called again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

import numpy as np

from kvtrace.analysis.checks.report import Finding
from kvtrace.errors import TraceError
from kvtrace.trace import Step, Trace

_STEPS = 2
"""One alone may be a text that is fed again."""


def first_alone(trace: Trace) -> Finding | None:
    """All steps after a prompt in which row i of the new ones sees the rows 0 to i alone.

    Args:
        trace: Any; it may have no lane but the cached one.

    Returns:
        What they show, at the first of them; nothing where any layer of any step sees another row.
    """
    shown: list[tuple[Step, int]] = []
    with suppress(TraceError):  # a mask that was not recorded tells nothing
        begun = False
        for step in trace:
            if step.parent is None:
                if step.new > 1 and not _sees_itself(trace, step):
                    return None
                begun = begun or step.new > 1
                continue
            sites = list(_longer(trace, step))
            if not sites or not all(_is_top_left(trace, step, site) for site in sites):
                return None
            shown.append((step, sites[0]))
    if not begun or len(shown) < _STEPS:
        return None
    step, site = shown[0]
    place = next(chain.from_iterable(step.positions), step.new)
    evidence = (
        f"the query of place {place} sees only place 0: in each of the {len(shown)} steps after a "
        "prompt row i of the new ones sees only rows 0..i; the prompt saw all of its own"
    )
    return Finding("MASK-TOP-LEFT", step.number, site, "mask", evidence)


def _kept(trace: Trace, step: Step) -> Iterator[int]:
    """Sites that attend to their own text, and whose rows are kept."""
    for site in step.attending:
        if trace.site(site).kind == "self" and trace.cache_layer(site).kind != "uncached":
            yield site


def _longer(trace: Trace, step: Step) -> Iterator[int]:
    """Those of them that are given more rows than went in."""
    for site in _kept(trace, step):
        if trace.visible(step.number, site, query=-1).shape[-1] > step.new:
            yield site


def _sees_itself(trace: Trace, step: Step) -> bool:
    """Whether the last query of a prompt sees as many rows as went in, in every layer."""
    sites = list(_kept(trace, step))
    seen = (trace.visible(step.number, site, query=-1).all() for site in sites)
    return bool(sites) and all(seen)


def _is_top_left(trace: Trace, step: Step, site: int) -> bool:
    """Whether each new row of each sequence, in all heads, sees the rows up to its number alone."""
    for sequence in range(step.num_sequences):
        seen = trace.visible(step.number, site, sequence)
        own, rows = seen.shape[-2:]
        if not np.array_equal(seen, np.broadcast_to(np.tri(own, rows, dtype=bool), seen.shape)):
            return False
    return True
