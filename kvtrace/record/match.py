"""Recognising K,V rows by content: which of the rows now seen were seen before.

For caches whose behaviour isn't known, and for rows that somebody moved or changed. A row's digest
takes in every bit of it, all kv heads, in 64 bits: a weighted sum of its bits modulo 2^64 with odd
random weights, in which two rows that differ agree with a probability of at most 2^-32
(multilinear hashing, Carter and Wegman 1979). It is the sum of the digests of its parts, each of
which takes in every `PARTS`-th feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PARTS = 8
"""Features are looked at in so many turns where a row is long."""

_ALIKE = 0.8
"""Cosine of a row and of what two bits a number leave of it, at least."""

Digests = NDArray[np.int64]

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_factors: dict[tuple[int, int, int | None, torch.device], Tensor] = {}


def digests(keys: Tensor, values: Tensor) -> list[list[int]]:
    """One number per sequence and row.

    Args:
        keys: [sequences, kv_heads, seq, key_dim].
        values: [sequences, kv_heads, seq, value_dim].
    """
    total = _sums(keys, None) * 3 + _sums(values, None)
    found: list[list[int]] = total.tolist()
    return found


def digest(rows: Tensor, part: int | None = None) -> Digests:
    """One number per sequence and row, [sequences, seq]; of all its features, or of a part.

    Args:
        rows: [sequences, kv_heads, seq, dim].
        part: 0 to `PARTS` - 1; None: the whole row.
    """
    found: Digests = _sums(rows, part).cpu().numpy()
    return found


def glance(keys: Tensor, values: Tensor, part: int | None = None) -> Digests:
    """Digests of keys and values, [2, sequences, seq]; in one go where their shapes allow it."""
    if keys.shape != values.shape or keys.dtype != values.dtype:
        return np.stack((digest(keys, part), digest(values, part)))
    sequences, heads, seq, dim = keys.shape
    factors = _weights(heads, dim, part, keys.device)
    rows = [_bits(one, part).transpose(1, 2) for one in (keys, values)]
    flat = torch.cat(rows).reshape(2 * sequences * seq, factors.shape[0])
    found: Digests = _summed(flat, factors).cpu().numpy()
    return found.reshape(2, sequences, seq)


def glances(rows: Sequence[Tensor], dim: int, part: int | None) -> Digests:
    """Digests of several tensors of one shape, all of them in one go, [tensors · sequences, seq].

    Args:
        rows: A part of all features or all of them, [sequences, kv_heads, seq, dim of it] each.
        dim: Features of a whole row.
        part: 0 to `PARTS` - 1; None: whole rows.
    """
    every = torch.cat([one.transpose(1, 2) for one in rows])
    sequences, seq, heads, width = every.shape
    flat = every.view(_BITS[every.element_size()]).reshape(sequences * seq, heads * width)
    found: Digests = _summed(flat, _weights(heads, dim, part, every.device)).cpu().numpy()
    return found.reshape(sequences, seq)


def in_parts(rows: Tensor) -> Digests:
    """Digests of all parts of each row, [PARTS, sequences, seq]."""
    sequences, heads, seq, dim = rows.shape
    flat = rows.detach().transpose(1, 2).reshape(sequences * seq, heads * dim)
    bits = flat.view(_BITS[flat.element_size()]).to(torch.int64)
    products = (bits * _weights(heads, dim, None, bits.device)).view(-1, heads, dim)
    if dim % PARTS:
        products = torch.nn.functional.pad(products, (0, -dim % PARTS))
    found = products.view(sequences * seq, -1, PARTS).sum(1)
    parts: Digests = found.T.cpu().numpy().reshape(PARTS, sequences, seq)
    return parts


def _sums(rows: Tensor, part: int | None) -> Tensor:
    """Rows times factors, [sequences, seq]."""
    sequences, heads, seq, dim = rows.shape
    factors = _weights(heads, dim, part, rows.device)
    bits = _bits(rows, part).transpose(1, 2).reshape(sequences * seq, factors.shape[0])
    return _summed(bits, factors).reshape(sequences, seq)


def _bits(rows: Tensor, part: int | None) -> Tensor:
    """The features that count as whole numbers; hardly ever a copy."""
    bits = rows.detach().resolve_neg().view(_BITS[rows.element_size()])
    return bits if part is None else bits[..., part::PARTS]


def _summed(bits: Tensor, factors: Tensor) -> Tensor:
    """[rows, features] times factors, [rows]."""
    wide = bits.to(torch.int64)
    # no accelerator multiplies matrices of whole numbers
    return wide @ factors if wide.device.type == "cpu" else (wide * factors).sum(-1)


def _weights(heads: int, dim: int, part: int | None, device: torch.device) -> Tensor:
    key = (heads, dim, part, device)
    found = _factors.get(key)
    if found is None:
        generator = torch.Generator().manual_seed(0x5EED)
        drawn = torch.randint(-(2**62), 2**62, (heads * dim,), generator=generator) * 2 + 1
        cut = drawn.view(heads, dim)[:, slice(None) if part is None else slice(part, None, PARTS)]
        found = _factors[key] = cut.reshape(-1).to(device)
    return found


def same(now: Tensor, before: Tensor) -> bool:
    """Bit for bit; two NaN of the same bits are the same."""
    if now.shape != before.shape or now.dtype != before.dtype:
        return False
    bits = _BITS[now.element_size()]
    return torch.equal(now.contiguous().view(bits), before.contiguous().view(bits))


def nearly(one: Tensor, other: Tensor) -> bool:
    """Whether every row points where its other one does, as a coarse quantiser leaves it."""
    alike = torch.cosine_similarity(one.float(), other.float(), dim=-1)
    return bool((alike > _ALIKE).all())


def holds(keys: Tensor, values: Tensor) -> bool:
    """Whether keys hold the values: as their first features, or their last."""
    dim = values.shape[3]
    if not values.numel() or keys.shape[3] < dim or keys.dtype != values.dtype:
        return False
    return same(keys[..., :dim], values) or same(keys[..., -dim:], values)
