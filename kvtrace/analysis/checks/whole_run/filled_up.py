"""Batches filled up at the right whose texts go on behind the filling, and see it.

No lane shows it: whoever does not hide the filling makes it part of the text. The tokens do. A
text that ends in what stands nowhere else, and is fed another token than the likeliest after it,
while the longest texts and all later steps are fed the likeliest, is meant to go on from before.
"""

from __future__ import annotations

import numpy as np

from kvtrace.analysis.checks.report import Finding
from kvtrace.trace import Step, Trace
from kvtrace.trace.view import cells_of


def filled_up(trace: Trace, step: Step, before: Step | None) -> Finding | None:
    """That the queries of a step see the filling of the prompts before it.

    Args:
        trace: Whose step.
        step: Any; only the first after a batch of prompts can show it.
        before: The one recorded before it; None: there is none.
    """
    if before is None or before.parent is not None or not _goes_on(step, before):
        return None
    filling, stray = _filling(before), _stray(step, before)
    if not stray or not stray <= set(filling):
        return None
    after = next((n for n in trace.numbers if n > step.number), None)
    following = None if after is None else trace.step(after)
    if following is None or not _goes_on(following, step) or _stray(following, step):
        return None  # nobody says that the likeliest token is what each step is fed
    shown = sorted(filling, key=lambda n: (n not in stray, n))
    return _seen(trace, step, before, {n: filling[n] for n in shown})


def _seen(trace: Trace, step: Step, before: Step, filling: dict[int, int]) -> Finding | None:
    """The same of some sequences and how much fills each; None: nobody sees it."""
    site = next((one for one in step.attending if trace.site(one).kind == "self"), None)
    wrote = None if site is None else before.cache_step(trace.site(site).reads)
    if site is None or wrote is None or wrote.rows != before.new or wrote.rewritten:
        return None
    group, found = trace.cache_step(step.number, site), dict[int, int]()
    for sequence, count in filling.items():
        end = wrote.first_cell + (sequence + 1) * wrote.rows
        cells = cells_of(group.attended[sequence])
        visible = trace.visible(step.number, site, sequence, query=-1).any(axis=(0, 1))
        seen = np.flatnonzero(visible & (cells >= end - count) & (cells < end))
        if len(seen):
            found[sequence] = int(seen[0])
    if not found:
        return None
    sequence, row = next(iter(found.items()))
    times = "once" if filling[sequence] == 1 else f"{filling[sequence]} times"
    evidence = (
        f"the query sees what fills the prompt of sequence {sequence} up at the right, token "
        f"{before.tokens[sequence][-1]} {times}: the text goes on with another token than the "
        "likeliest after that, where the others go on with the likeliest"
    )
    at = (step.number, site, "k")
    return Finding("PAD-VISIBLE", *at, evidence, row=row, sequences=tuple(sorted(found)))


def _goes_on(step: Step, before: Step) -> bool:
    """Whether several sequences go on by a token each, and what was likely after each is known."""
    count = before.num_sequences
    same = step.num_sequences == count and list(step.order) in ([], list(range(count)))
    known = len(before.top) == count and all(one.ids for one in before.top)
    return step.parent == before.number and step.new == 1 and count > 1 and same and known


def _stray(step: Step, before: Step) -> set[int]:
    """Sequences that were fed another token than the likeliest."""
    fed = enumerate(zip(step.tokens, before.top, strict=True))
    return {n for n, (token, top) in fed if token[0] != top.ids[0]}


def _filling(step: Step) -> dict[int, int]:
    """How many tokens fill up each sequence at its right; empty: none do, or all.

    They are one and the same token, which stands nowhere else. One alone may end a text.
    """
    ends = [row[-1] for row in step.tokens]
    for token in dict.fromkeys(ends):
        counts = {n: _trailing(row, token) for n, row in enumerate(step.tokens) if row[-1] == token}
        total = sum(row.count(token) for row in step.tokens)
        if len(counts) < len(ends) and 1 < total == sum(counts.values()):
            return {n: count for n, count in counts.items() if count < step.new}
    return {}


def _trailing(row: tuple[int, ...], token: int) -> int:
    return next((n for n, one in enumerate(reversed(row)) if one != token), len(row))
