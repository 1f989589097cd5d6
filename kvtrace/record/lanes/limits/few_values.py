"""Keys and values that are kept in few values, with a scale that the whole text gives them.

A cache that quantises what it is given, and takes its scale from the first tokens that it sees,
rounds a longer text otherwise. Rows of earlier tokens then move by what that rounding moves rows
by, and by no more: that is meant, and no later token was looked at by an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kvtrace.analysis.checks.whole_run.few_bits import kinds
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.lanes.limits.apart import pairs
from kvtrace.record.lanes.limits.moved import Moved, rows_apart
from kvtrace.record.lanes.paths import Path
from kvtrace.trace import ROUNDS_INSIDE, Note
from kvtrace.trace.dtypes import Floats

_MOST = 0.5
"""Of the largest number: what moves rows further in some layer looks ahead besides."""


def few_values(
    found: Moved,
    short: Sequence[AttentionCall],
    whole: Sequence[AttentionCall],
    paths: Sequence[Path],
    limit: float,
) -> Note | None:
    """A note, where rows moved because they are rounded by the scale of another text.

    Args:
        found: The first attention whose rows moved.
        short: All of a text that was cut.
        whole: All of the whole text.
        paths: The cut texts.
        limit: What is rounding beside that, relative to the largest number.
    """
    one, other = found.call, found.whole
    if rows_apart(one.queries, other.queries, paths) > limit:
        return None
    both = ((one.keys, other.keys), (one.values, other.values))
    beyond = {
        far: mine for mine, theirs in both if (far := rows_apart(mine, theirs, paths)) > limit
    }
    if not beyond or not all(_rounded(one, mine, far, paths) for far, mine in beyond.items()):
        return None
    far = max(
        rows_apart(getattr(mine, name), getattr(theirs, name), paths)
        for mine, theirs in pairs(short, [call for call in whole if call.kind == "self"])
        for name in ("queries", "keys", "values", "output")
    )
    if far > _MOST:
        return None
    text = (
        f"{ROUNDS_INSIDE} {far:.1e} of the largest number is how far rows move in a longer text, "
        f"without any cache; what is attended in {one.module or 'the model'} takes few values, "
        "times a scale that the whole text gives them"
    )
    return Note("note", text)


def _rounded(call: AttentionCall, rows: Tensor, far: float, paths: Sequence[Path]) -> bool:
    """Whether rows of every text take few values, which explains how far they moved.

    Queries are numbers of the same model that no cache has rounded.
    """
    if rows.shape[1] > call.queries.shape[1] or rows.shape != call.keys.shape:
        return False
    for place, path in enumerate(paths):
        span = slice(path.padding, len(path.tokens))
        mine = _numbers(rows[place, :, span])
        plain = _numbers(call.queries[place, : rows.shape[1], span])
        if not any(far <= one.step for one in kinds(mine, plain)):
            return False
    return True


def _numbers(rows: Tensor) -> Floats:
    numbers: Floats = rows.detach().float().cpu().numpy()
    return numbers
