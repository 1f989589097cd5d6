"""Arguments that a call writes to, whatever their names: that is what a cache is passed for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor, nn

_DEEP = 6
_MANY = 512
"""Parts that are looked at of one."""


@torch.no_grad()
def written_to(before: Mapping[str, object], after: Mapping[str, object]) -> frozenset[str]:
    """Names of arguments that hold other tensors after a call, or tensors that changed.

    Numbers in them count too: how far a cache is filled, where its rows lie on the disk.

    Args:
        before: Copies of what it was given.
        after: What it was given itself, now that it is over; of a method that nobody called
            through its model, what its frames had at hand.
    """
    now = {name: after.get(name, after.get(f"local {name}")) for name in before}
    both = ((name, one, now[name]) for name, one in before.items() if now[name] is not None)
    return frozenset(name for name, one, other in both if _changed(one, other, _DEEP))


def _changed(before: object, after: object, deep: int) -> bool:
    if isinstance(after, Tensor):
        return not isinstance(before, Tensor) or not _same(before, after)
    if isinstance(after, np.ndarray) or (deep < _DEEP and isinstance(after, int | float)):
        return type(before) is type(after) and not np.array_equal(before, after)
    if not deep or isinstance(after, (str, bytes, type, nn.Module)):
        return False
    earlier = _parts(before) if type(before) is type(after) else ()
    parts = zip_longest(earlier, _parts(after))
    return any(_changed(one, other, deep - 1) for one, other in parts)


def _parts(value: object) -> Sequence[object]:
    """What a collection or an object holds, in its order."""
    if isinstance(value, Mapping):
        found = list(value.values())
    elif isinstance(value, (list, tuple)):
        found = list(value)
    else:
        found = list(getattr(value, "__dict__", {}).values())
    return found[:_MANY]


def _same(before: Tensor, after: Tensor) -> bool:
    if before is after:
        return True
    alike = before.shape == after.shape and before.dtype == after.dtype
    return alike and before.device == after.device and torch.equal(before, after)
