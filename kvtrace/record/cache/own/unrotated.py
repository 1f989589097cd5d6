"""Keys that are kept before their rotation: what holds them, though no number is the same.

RoPE (Su et al., 2021) turns pairs of features by an angle: the length of every pair stays. Pairs
are neighbours, or lie half a head apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvtrace.record.cache.own.find_holder import LARGEST, FoundHolder, described
from kvtrace.record.cache.own.holders import Holder

_SAME = 1e-4
"""Of the longest pair; half precision rounds more."""
_HALF = 2e-2

_LOOKS = 8
"""Rows that are looked for, at most: those of a token that stands often in the text are alike."""


@torch.no_grad()
def find_turned(rows: Tensor, slots: Sequence[int], among: Sequence[Holder]) -> FoundHolder | None:
    """Who holds some keys as they were before they were rotated.

    Args:
        rows: As attended to, [sequences, kv_heads, seq, dim].
        slots: Rows to be found, of different positions; two are needed.
        among: In this order of preference.
    """
    dim = rows.shape[3]
    if len(slots) < 2 or dim % 2:
        return None
    wanted = rows[0, 0, list(slots[:_LOOKS])]
    for one in among:
        if one.tensor.dtype != rows.dtype or one.tensor.numel() > LARGEST:
            continue
        for axis in reversed(range(one.tensor.dim())):
            if one.tensor.shape[axis] and one.tensor.shape[axis] % dim == 0:
                along = _along(wanted, one.tensor, axis)
                if along is not None:
                    return described(one, along)
    return None


def _along(wanted: Tensor, tensor: Tensor, axis: int) -> int | None:
    """The axis along which two of the rows lie; None: there is none, or some row is not held."""
    held = tensor.movedim(axis, -1)[..., : wanted.shape[-1]]
    others = [n for n in range(tensor.dim()) if n != axis]
    for pairs in (_neighbours, _halves):
        places = []
        for row in wanted:
            told, found = pairs(row), pairs(held)
            limit = (_SAME if row.dtype == torch.float32 else _HALF) * float(told.max())
            hits = ((found - told).abs() <= limit).all(-1).nonzero()
            if limit == 0 or not len(hits):
                break
            if len(hits) > 2 or hits[0].tolist() in places:
                continue  # of a token that stands in several places
            places.append(hits[0].tolist())
            if len(places) == 2:
                break
        if len(places) == 2:
            apart = [n for n, a, b in zip(others, *places, strict=True) if a != b]
            if len(apart) == 1:
                return int(apart[0])
    return None


def _neighbours(rows: Tensor) -> Tensor:
    return _pairs(rows, -1, 2).square().sum(-1).sqrt()


def _halves(rows: Tensor) -> Tensor:
    return _pairs(rows, 2, -1).square().sum(-2).sqrt()


def _pairs(rows: Tensor, first: int, second: int) -> Tensor:
    return rows.float().reshape(*rows.shape[:-1], first, second)
