"""Sequences that are padded at the right: hidden tokens behind the text, which goes on after them.

The other lane knows padding at the left only, where it is a prefix that nobody sees.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace import Step, Trace


def padded_right(trace: Trace, step: Step) -> Iterator[int]:
    """Sequences whose last new tokens no query sees, not even their own.

    Such tokens are padding where the next step goes on at the first of them, or where other
    sequences of the batch see theirs.

    Args:
        trace: Whose step.
        step: Any; only one of several tokens can show it.
    """
    sites = (site for group in step.sites for site in group.sites)
    site = next((one for one in sites if trace.site(one).kind == "self"), None)
    if site is None or step.new < 2:
        return
    hidden = [_hidden(trace, step, site, sequence) for sequence in range(step.num_sequences)]
    after = (n for n in trace.numbers if n > step.number and trace.step(n).parent == step.number)
    number = next(after, None)
    following = () if number is None else trace.step(number).positions
    for sequence, count in enumerate(hidden):
        if not count:
            continue
        first = step.positions[sequence][step.new - count]
        goes_on = sequence < len(following) and following[sequence][0] == first
        if goes_on or not all(hidden):
            yield sequence


def _hidden(trace: Trace, step: Step, site: int, sequence: int) -> int:
    """New rows at the end that no query sees, where every query before them sees its own."""
    seen: NDArray[np.bool_] = np.any(trace.visible(step.number, site, sequence), axis=0)
    if seen.shape[0] != step.new or seen.shape[1] < step.new:
        return 0
    own: NDArray[np.bool_] = seen[:, _rows(trace, step, site, sequence)]
    never: NDArray[np.bool_] = np.logical_not(own.any(axis=0))
    count = int(np.argmin(never[::-1])) if not never.all() else 0
    live = np.array(step.positions[sequence][: step.new - count]) >= 0
    return count if own.diagonal()[: step.new - count][live].all() else 0


def _rows(trace: Trace, step: Step, site: int, sequence: int) -> NDArray[np.int64]:
    """Attended rows of the new tokens, in their order: those with the highest positions."""
    runs = trace.cache_step(step.number, site).attended[sequence]
    places = [np.arange(run.position, run.position + run.count) for run in runs]
    return np.argsort(np.concatenate(places), kind="stable")[-step.new :]
