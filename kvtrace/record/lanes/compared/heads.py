"""K or V of another lane with as many kv heads as the cached lane has."""

from __future__ import annotations

from torch import Tensor


def with_heads(rows: Tensor, heads: int) -> Tensor:
    """The same rows for another number of kv heads, as grouped queries read them.

    Args:
        rows: [sequences, kv_heads, rows, dim].
        heads: Wanted. Fewer: the first of each group; more: each for its group of query heads.
    """
    there = rows.shape[1]
    if there != heads and there % heads == 0:
        return rows[:, :: there // heads]
    if there != heads and there and heads % there == 0:
        return rows.repeat_interleave(heads // there, dim=1)
    return rows
