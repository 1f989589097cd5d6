"""Sequences that are padded behind or within their text: hidden tokens that are not at its left.

The other lane knows padding at the left only, where it is a prefix that nobody sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace import Step, Trace
from kvtrace.trace.view import cells_of


def padded_inside(trace: Trace, step: Step) -> Iterator[int]:
    """Sequences with new tokens behind others that no query sees, not even their own.

    Such tokens are padding where positions go on as if they were not there, or where other
    sequences of the batch see all of theirs.

    Args:
        trace: Whose step.
        step: Any; only one of several tokens can show it.
    """
    site = next((one for one in step.attending if trace.site(one).kind == "self"), None)
    if site is None or step.new < 2 or not trace.site_step(step.number, site).mask.full:
        return  # a mask said by rule hides no new token behind another
    hidden = [_hidden(trace, step, site, sequence) for sequence in range(step.num_sequences)]
    after = (n for n in trace.numbers if n > step.number and trace.step(n).parent == step.number)
    number = next(after, None)
    following = () if number is None else trace.step(number).positions
    for sequence, never in enumerate(hidden):
        if not never.any():
            continue
        told = [*step.positions[sequence], *(row[0] for row in following[sequence : sequence + 1])]
        if _skipped(told, never) or not all(one.any() for one in hidden):
            yield sequence


def _skipped(told: Sequence[int], never: NDArray[np.bool_]) -> bool:
    """Whether what follows the first hidden tokens goes on as if they were not there."""
    first = int(np.argmax(never))
    after = first + int(np.argmin(np.append(never[first:], False)))
    return first > 0 and after < len(told) and told[after] == told[first - 1] + 1


def _hidden(trace: Trace, step: Step, site: int, sequence: int) -> NDArray[np.bool_]:
    """New tokens behind others that no query sees, where all the others see their own, [new]."""
    seen: NDArray[np.bool_] = np.any(trace.visible(step.number, site, sequence), axis=0)
    rows = _rows(trace, step, site, sequence)
    nobody = np.zeros(step.new, np.bool_)
    if seen.shape[0] != step.new or len(rows) != step.new:
        return nobody
    own: NDArray[np.bool_] = seen[:, rows]
    left = np.array(step.positions[sequence]) < 0
    never: NDArray[np.bool_] = np.logical_not(np.logical_or(own.any(axis=0), left))
    others = np.logical_not(np.logical_or(never, left))
    fits = (
        others.any() and not never[: int(np.argmax(others))].any() and own.diagonal()[others].all()
    )
    return never if fits else nobody


def _rows(trace: Trace, step: Step, site: int, sequence: int) -> NDArray[np.int64]:
    """Attended rows of the new tokens, in their order: as written, else the highest positions."""
    group = trace.cache_step(step.number, site)
    runs = group.attended[sequence]
    cells, first = cells_of(runs), group.first_cell + sequence * group.rows
    new = np.flatnonzero((cells >= first) & (cells < first + group.rows))
    if len(new) == step.new and not group.rewritten:
        return new[np.argsort(cells[new], kind="stable")]
    places = [np.arange(run.position, run.position + run.count) for run in runs]
    return np.argsort(np.concatenate(places), kind="stable")[-step.new :]
