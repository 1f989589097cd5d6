"""Rows of an encoder that are those of something else, or that are cached once more.

Where the encoder runs again in a decode step, its own attention shows what it was given.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.cross import first_read
from kvtrace.trace import Step, Trace

_ALIKE = 1e-2
"""Of the largest number: encoding the same again may round otherwise."""


def encoded_anew(trace: Trace, step: Step) -> Finding | None:
    """A step whose encoder read another text, while attention reads the rows of the one before.

    Args:
        trace: Whose step.
        step: Any.
    """
    kinds: defaultdict[str, list[int]] = defaultdict(list)
    for site in sorted(step.attending):
        kinds[trace.site(site).kind].append(site)
    if step.parent is None or not kinds["cross"] or not kinds["encoder"]:
        return None
    cross, encoder = kinds["cross"][0], kinds["encoder"][0]
    group = step.cache_step(trace.site(cross).reads)
    first = first_read(trace, step, trace.site(cross))
    if group is None or group.rows or first is None:
        return None
    before = trace.step(first[0])
    if before.site_step(encoder) is None:
        return None
    for sequence in range(step.num_sequences):
        mine = trace.cache(step.number, encoder, sequence).keys
        theirs = trace.cache(before.number, encoder, sequence).keys
        if mine.shape == theirs.shape:
            far, size = (float(np.abs(one).max(initial=0.0)) for one in (mine - theirs, theirs))
            if far <= _ALIKE * size:
                continue
            what = f"its keys in the encoder differ by up to {far:.3g} of {size:.3g}"
        else:
            what = f"{mine.shape[1]} rows and not {theirs.shape[1]}"
        evidence = (
            f"the encoder read something else in this step than in step {before.number} ({what}), "
            f"but the keys and values attended to are still those of step {before.number}"
        )
        return Finding("STALE-CACHE", step.number, cross, "k", evidence, row=0)
    return None


def cached_again(trace: Trace, step: Step) -> Finding | None:
    """A step that adds an encoder's rows to a cache that holds the same ones already.

    Attention to all of them is what it would be to one of each: no lane tells.

    Args:
        trace: Whose step.
        step: Any.
    """
    sites = sorted(step.attending)
    for site in (trace.site(one) for one in sites if trace.site(one).kind == "cross"):
        group = step.cache_step(site.reads)
        if step.parent is None or group is None or not 0 < group.rows <= group.length_before:
            continue
        if _twice(trace, step, site.index, group.rows):
            evidence = (
                f"{group.rows} rows of the encoder were added to {group.length_before} that are "
                "there already, and they are the same ones: attention reads all of them"
            )
            return Finding("DUPLICATE-ROWS", step.number, site.index, "k", evidence, row=0)
    return None


def _twice(trace: Trace, step: Step, site: int, new: int) -> bool:
    """Whether the newest rows stand right before themselves, and both are seen."""
    view = trace.cache(step.number, site, 0)
    if view.keys.shape[1] < 2 * new:
        return False
    for rows in (view.keys, view.values):
        older, newer = rows[:, -2 * new : -new], rows[:, -new:]
        if not older.any() or np.abs(older - newer).max() > _ALIKE * np.abs(older).max():
            return False
    seen = np.asarray(trace.visible(step.number, site, 0).any(axis=(0, 1)), np.bool_)
    return bool((seen[-2 * new : -new] & seen[-new:]).any())
