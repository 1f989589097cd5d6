"""kv heads that were repeated for every query head, taken together again."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def widened(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with the same number of kv heads; one side may lack an axis."""
    heads = max(keys.shape[1], values.shape[1])
    if keys.shape[1] == values.shape[1]:
        return keys, values
    return _to(keys, heads), _to(values, heads)


def _to(rows: Tensor, heads: int) -> Tensor:
    return rows.repeat_interleave(heads // rows.shape[1], 1)


def repeats(keys: Tensor, values: Tensor) -> int:
    """How many heads in a row hold the very same rows; 1: each has its own.

    Only `repeat_interleave` order counts: kv head = head // group, as everywhere here. Rows that
    are all zero do not tell: 1.
    """
    if blank(keys, values):
        return 1
    heads = keys.shape[1]
    for group in (n for n in range(heads, 1, -1) if heads % n == 0):
        if _same(keys, group) and _same(values, group):
            return group
    return 1


def blank(keys: Tensor, values: Tensor) -> bool:
    """Whether all rows are zero, so that heads look the same whatever they are."""
    newest = keys[:, :1, -1:]  # looked at first: it is cheap
    return not (bool(newest.any()) or bool(keys.any()) or bool(values.any()))


def by_weights(weights: Iterable[Tensor], heads: int, dims: tuple[int, int]) -> int:
    """How many kv heads there are by the sizes of weights; as query heads, unless some are smaller.

    Args:
        weights: Parameters of the module that attends.
        heads: Query heads.
        dims: Features of a key and of a value.
    """
    key, value = dims
    shapes = [tuple(one.shape) for one in weights if one.dim() == 2]
    widths = set[int]().union(*shapes).intersection(*shapes)
    width = min(widths - {heads * key}, default=heads * key)
    made = [other if one == width else one for one, other in shapes if width in (one, other)]
    fewer = [n for n in range(1, heads) if heads % n == 0]
    apart = [n for n in fewer if made.count(n * key) > 1]
    fused = [n for n in fewer if heads * key + n * (key + value) in made]
    pairs = [n for n in fewer if n * (key + value) != heads * key and n * (key + value) in made]
    return next(iter((*apart, *fused, *pairs)), heads)


def _same(rows: Tensor, group: int) -> bool:
    """Whether every `group` heads are equal; the newest row is looked at first, it is cheap."""
    return _equal(rows[:, :, -1:], group) and _equal(rows, group)


def _equal(rows: Tensor, group: int) -> bool:
    batch, heads, *rest = rows.shape
    grouped = rows.reshape(batch, heads // group, group, *rest)
    return bool((grouped[:, :, 1:] == grouped[:, :, :1]).all())
