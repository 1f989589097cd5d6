"""Masks of the attention interface, taken apart into what is seen and what is added."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

HIDDEN_BELOW = -9000.0
"""Masks in the wild: -inf, finfo.min, -1e9, -10000. No bias comes near."""


class MaskReader:
    """Takes masks apart, once per mask object: one serves all layers of a forward."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[int, tuple[object, Tensor | None, Tensor | None]] = {}

    def read(self, mask: object) -> tuple[Tensor | None, Tensor | None]:
        """(visible, bias) of a bool, integer or additive mask, or of flex_attention's blocks."""
        found = self._seen.get(id(mask))
        if found is None:
            if isinstance(mask, Tensor):
                found = (mask, *_take_apart(mask))
            elif type(mask).__name__ == "BlockMask":
                found = (mask, _unblocked(mask), None)
            else:
                return None, None
            self._seen[id(mask)] = found
        return found[1], found[2]


def _unblocked(mask: Any) -> Tensor:
    """What a mask says that is kept as a function of indices, [sequences, heads, new, seq]."""
    from torch.nn.attention.flex_attention import create_mask

    sequences, heads, new, seq = mask.shape
    with torch.no_grad():
        table: Tensor = create_mask(
            mask.mask_mod, sequences, heads, new, seq, str(mask.kv_indices.device)
        )
    return table


def _take_apart(mask: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if not mask.is_floating_point():
        visible = mask if mask.dtype == torch.bool else mask != 0
        return visible, None
    visible = mask > HIDDEN_BELOW
    rest = torch.where(visible, mask, torch.zeros((), dtype=mask.dtype, device=mask.device))
    return visible, rest if bool(rest.any()) else None


def over_keys(
    visible: Tensor, bias: Tensor | None, seq: int
) -> tuple[Tensor | None, Tensor | None]:
    """Of a mask, the part that is over the keys there are.

    One of fewer keys than there are is none: another one was used, if any.
    """
    if visible.shape[-1] > seq:
        return visible[..., :seq], None if bias is None else bias[..., :seq]
    return (None, None) if 1 < visible.shape[-1] < seq else (visible, bias)
