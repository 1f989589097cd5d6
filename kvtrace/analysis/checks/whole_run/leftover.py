"""Rows that are there before a text begins: what is left of an earlier one.

A model that keeps its cache inside is recomputed on a copy of itself, which holds the same rows:
both lanes agree. But where a text begins, no query can see more rows than it has tokens, unless
the layer has rows of its own for every text; then it had them in the first run as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.place_names import spoken
from kvtrace.trace import Step, Trace, stands_for_none
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.step import Runs
from kvtrace.trace.view import cells_of


def leftover(
    trace: Trace, step: Step, before: Step | None, fresh: Mapping[int, int] | None
) -> Finding | None:
    """A text whose first query to see everything sees rows that none of its tokens made.

    Args:
        trace: Whose step.
        step: Any; only one that begins a text can show it.
        before: The one recorded before it; None: there is none.
        fresh: What `beyond` said of the first run of the model; None: compare with other layers.
    """
    alone = step.parent is not None and (before is None or step.new < 2)
    if step.packed is not None or alone:
        return None
    more = beyond(trace, step)
    if before is not None and _repeats(trace, step, before, more):
        return None
    if step.parent is not None or not fresh:
        usual = _usual(trace, step, before, more)
    else:  # a window or a summary shows fewer rows than tokens: none are left over by that
        usual = {site: max(0, count) for site, count in fresh.items()}
    for site, count in sorted(more.items(), key=lambda one: (trace.site(one[0]).layer, one[0])):
        if count > usual.get(site, count) and _grows(trace, step, site, count):
            evidence = _said(trace, step, more, site, usual[site])
            if not _left(trace, step, site):
                evidence += ", all of them zero: the buffer was cleared, and its length was not"
                return Finding("ZERO-GAP", step.number, site, "k", evidence, row=0)
            shared = _made_by(trace, step, site)
            if shared is not None:
                evidence += f"; they are those that {spoken(trace.meta, shared)} made in this step"
                return Finding("WRONG-LAYER", step.number, site, "k", evidence, row=0)
            return Finding("STALE-CACHE", step.number, site, "k", evidence, row=0)
    return None


def _repeats(trace: Trace, step: Step, before: Step, more: Mapping[int, int]) -> bool:
    """Whether a step computes the one before it again and goes on, behind the same rows.

    So do models with a memory of segments: the one that is being written is no part of it. Where a
    cache was left over, the row of the token that came last is among what is left.
    """
    tokens = (row[: before.new] for row in step.tokens)
    if step.new <= before.new or tuple(tokens) != before.tokens:
        return False
    earlier = beyond(trace, before)
    return all(count <= earlier.get(site, 0) for site, count in more.items())


def _left(trace: Trace, step: Step, site: int) -> bool:
    """Whether any row that is seen in front of those of the step's tokens holds a number."""
    for sequence, seen in enumerate(_visible(trace, step, site)):
        view = trace.cache(step.number, site, sequence)
        front = np.flatnonzero(seen)[: -step.new]
        if view.keys[:, front].any() or view.values[:, front].any():
            return True
    return False


def _made_by(trace: Trace, step: Step, site: int) -> int | None:
    """The layer whose rows of this very step stand in front of a site's own; None: none's do.

    One cache that several layers were given holds what all of them wrote.
    """
    front, _ = _parted(trace, step, site)
    for other in _own(trace, step):
        if other != site and front.size and np.array_equal(front, _parted(trace, step, other)[1]):
            return other
    return None


def _parted(trace: Trace, step: Step, site: int) -> tuple[Floats, Floats]:
    """Keys that are seen of the first sequence: those before the step's own, and those."""
    seen = np.flatnonzero(_visible(trace, step, site)[0])
    keys = trace.cache(step.number, site, 0).keys
    return keys[:, seen[: -step.new]], keys[:, seen[-step.new :]]


def _usual(
    trace: Trace, step: Step, before: Step | None, more: Mapping[int, int]
) -> Mapping[int, int]:
    """Rows beyond its own that each site may see in a step; empty: it begins no text."""
    if step.parent is None:
        # rows that went with this step are beyond its tokens as well: in all layers, mostly
        fewest = min((_seen(trace, step, site) - step.new for site in more), default=0)
        return dict.fromkeys(more, max(0, fewest))
    # it goes on with rows of the step before it: several tokens in one call, after single ones,
    # are another text where they are counted from 0, or half the layers begin empty
    after = before is not None and before.new == 1
    zero = all(row[0] <= 0 for row in step.positions if row)
    whole = [
        site for site in more if not (trace.site(site).window or trace.cache_layer(site).window)
    ]
    empty = bool(whole) and 2 * sum(more[site] == 0 for site in whole) >= len(whole)
    return dict.fromkeys(more, 0) if after + zero + empty > 1 else {}


def _said(trace: Trace, step: Step, more: Mapping[int, int], site: int, usual: int) -> str:
    """What was seen, in words."""
    count = more[site]
    what = f"{step.new} tokens went in, and the last one sees {step.new + count} rows"
    begins = "" if step.parent is None else ", and a text begins here by all that is seen"
    other = next((one for one in more if more[one] <= usual), None)
    empty = "" if other is None else f", none in {spoken(trace.meta, other)}"
    return f"{what}{begins}: {count - usual} were there before it{empty}"


def beyond(trace: Trace, step: Step | None = None) -> dict[int, int]:
    """Rows that the last new token sees beyond the tokens of its step, by self-attention site.

    Args:
        trace: Whose step.
        step: One that begins a text; None: the first that attends to itself.
    """
    if step is None:
        attends = (one for one in trace if _own(trace, one))
        step = next(attends, None)
    if step is None:
        return {}
    return {site: _beyond(trace, step, site) for site in _own(trace, step)}


def _own(trace: Trace, step: Step) -> list[int]:
    """Sites that attend to their own text, and whose rows may be kept from one step to the next."""
    kept = [site for site in step.attending if trace.cache_layer(site).kind != "uncached"]
    return [site for site in kept if trace.site(site).kind == "self"]


def _seen(trace: Trace, step: Step, site: int) -> int:
    """Rows that the last new token sees in any head, in the sequence in which it sees most."""
    return max(int(mask.sum()) for mask in _visible(trace, step, site))


def _visible(trace: Trace, step: Step, site: int) -> list[NDArray[np.bool_]]:
    """Per sequence, the rows that the last new token sees in any head, [seq].

    Rows that are made of those in the cache, and compress several tokens, are left out.
    """
    seen = [
        np.asarray(trace.visible(step.number, site, sequence, query=-1).any(axis=(0, 1)))
        for sequence in range(step.num_sequences)
    ]
    if trace.cache_layer(site).kind != "derived":
        return seen
    runs = trace.cache_step(step.number, site).attended
    return [one & _of_tokens(its) for one, its in zip(seen, runs, strict=True)]


def _of_tokens(runs: Runs) -> NDArray[np.bool_]:
    """Rows that stand for a token each, [seq]."""
    one = [not stands_for_none(run.position) for run in runs]
    return np.repeat(np.array(one, np.bool_), [run.count for run in runs])


def _beyond(trace: Trace, step: Step, site: int) -> int:
    """Rows beyond its own; those that were computed for this step alone are left of nothing."""
    count = _seen(trace, step, site) - step.new
    number = _next(trace, step, site) if count > 0 else None
    if number is None or not 0 < _kept(trace, step, number, site) <= step.new:
        return count
    return 0


def _next(trace: Trace, step: Step, site: int) -> int | None:
    """The step that goes on with this one, if the site attends in it."""
    after = (n for n in trace.numbers if n > step.number and trace.step(n).parent == step.number)
    number = next(after, None)
    there = number is not None and trace.step(number).site_step(site) is not None
    return number if there else None


def _grows(trace: Trace, step: Step, site: int, count: int) -> bool:
    """Whether the next step sees those rows still, and its own as well."""
    number = _next(trace, step, site)
    return number is not None and _seen(trace, trace.step(number), site) > step.new + count


def _kept(trace: Trace, step: Step, number: int, site: int) -> int:
    """Rows that the last new token sees and a later step is given too, where they are most.

    0: that step is given other ones, as by a cache whose rows are made anew.
    """
    sequences = zip(
        _visible(trace, step, site),
        trace.cache_step(step.number, site).attended,
        trace.cache_step(number, site).attended,
        strict=False,
    )
    return max(
        int(np.isin(cells_of(now)[seen], cells_of(then)).sum()) for seen, now, then in sequences
    )
