"""Recognising K,V rows by content: which of the rows now seen were seen before.

For caches whose behaviour isn't known, and for rows that somebody moved or changed. A row's digest
takes in every bit of its K and V, all kv heads, in 64 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_factors: dict[tuple[int, torch.device], Tensor] = {}


def digests(keys: Tensor, values: Tensor) -> list[list[int]]:
    """One number per sequence and row.

    Args:
        keys: [sequences, kv_heads, seq, key_dim].
        values: [sequences, kv_heads, seq, value_dim].
    """
    total = _digest(keys) * 3 + _digest(values)
    found: list[list[int]] = total.tolist()
    return found


def _digest(rows: Tensor) -> Tensor:
    """A weighted sum of the bits modulo 2^64, [sequences, seq]; odd weights lose no single bit."""
    sequences, _, seq, _ = rows.shape
    flat = rows.detach().transpose(1, 2).reshape(sequences, seq, -1)
    bits = flat.view(_BITS[flat.element_size()]).to(torch.int64)
    return (bits * _weights(bits.shape[-1], bits.device)).sum(dim=-1)


def _weights(size: int, device: torch.device) -> Tensor:
    found = _factors.get((size, device))
    if found is None:
        generator = torch.Generator().manual_seed(0x5EED)
        drawn = torch.randint(-(2**62), 2**62, (size,), generator=generator) * 2 + 1
        found = _factors[size, device] = drawn.to(device)
    return found


def same(now: Tensor, before: Tensor) -> bool:
    """Bit for bit; two NaN of the same bits are the same."""
    if now.shape != before.shape or now.dtype != before.dtype:
        return False
    bits = _BITS[now.element_size()]
    return torch.equal(now.contiguous().view(bits), before.contiguous().view(bits))
