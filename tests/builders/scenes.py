"""Scenes: one attention in both lanes, computed naively, with room to break the cached side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from kvtrace.analysis.checks.scenes.scene import Scales, Scene, Side
from kvtrace.trace import Site


def rope(rows, positions, style="half", base=10000.0):
    """Rows [.., seq, dim] rotated to their positions, plane by plane."""
    dim = rows.shape[-1]
    rates = base ** (-2 * np.arange(dim // 2) / dim)
    angle = np.asarray(positions)[:, None] * rates
    cos, sin = np.cos(angle), np.sin(angle)
    out = np.empty_like(rows)
    first, second = (
        (slice(0, dim // 2), slice(dim // 2, dim))
        if style == "half"
        else (slice(0, None, 2), slice(1, None, 2))
    )
    a, b = rows[..., first], rows[..., second]
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    return out


@dataclass
class Toy:
    """Random rows of one layer for a sequence, before and after rotation."""

    total: int = 12
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    style: str = "half"
    base: float = 10000.0
    seed: int = 0
    window: int | None = None
    padding: int = 0
    layer: int = 1

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.plain_q = rng.standard_normal((self.heads, self.total, self.dim)).astype(np.float32)
        self.plain_k = rng.standard_normal((self.kv_heads, self.total, self.dim)).astype(np.float32)
        self.v = rng.standard_normal((self.kv_heads, self.total, self.dim)).astype(np.float32)
        self.other = rng.standard_normal((2, self.kv_heads, self.total, self.dim)).astype(
            np.float32
        )
        where = np.arange(self.total) - self.padding
        self.q = rope(self.plain_q, where, self.style, self.base).astype(np.float32)
        self.k = rope(self.plain_k, where, self.style, self.base).astype(np.float32)

    def site(self):
        return Site(
            index=self.layer,
            module=f"layers.{self.layer}.attn",
            call=0,
            layer=self.layer,
            kind="self",
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            key_dim=self.dim,
            value_dim=self.dim,
            scale=self.dim**-0.5,
            reads=self.layer,
        )

    def mask(self, queries, keys):
        """Causal, window and padding, by place: [queries, keys]."""
        q, k = np.asarray(queries)[:, None], np.asarray(keys)[None]
        seen = (k <= q) & (k >= self.padding)
        if self.window is not None:
            seen &= k > q - self.window
        return seen

    def side(self, q, k, v, visible, **changes):
        return attend(q, k, v, visible, self.dim**-0.5, **changes)

    def scene(self, new=1, end=None, first_step=False, **cached):
        """The step whose last `new` tokens end at `end`; `cached` replaces what the cache gave.

        q, k, v: rows; visible: table; supposed, slots, changed; weights: a function of the
        scores [heads, new, seq] and the table.
        """
        end = self.total if end is None else end
        places = np.arange(end - new, end)
        every = np.arange(end)
        reference, weights = self.side(
            self.q[:, places], self.k[:, :end], self.v[:, :end], self.mask(places, every)
        )
        k = cached.pop("k", self.k[:, :end])
        v = cached.pop("v", self.v[:, :end])
        supposed = cached.pop("supposed", every)
        slots = cached.pop("slots", np.arange(k.shape[1]))
        changed = cached.pop("changed", np.zeros(k.shape[1], bool))
        visible = cached.pop("visible", None)
        if visible is None:
            visible = self.mask(places, supposed)
        q = cached.pop("q", self.q[:, places])
        mine, _ = self.side(q, k, v, visible, **cached)

        def made():
            if k.shape != self.k[:, :end].shape or not np.array_equal(supposed, every):
                return None
            return self.side(q, k, v, self.mask(places, every))[0].output, reference.output

        atol = 1e-4
        return Scene(
            step=3,
            layer=self.layer,
            sequence=0,
            site=self.site(),
            first_step=first_step,
            cached=mine,
            reference=reference,
            places=places,
            supposed=supposed,
            slots=slots,
            changed=changed,
            padding=self.padding,
            weights=lambda row: weights[:, row],
            atol=Scales(atol, atol, atol, atol),
            layer_rows=lambda layer: (self.other[0], self.other[0]) if layer == 0 else None,
            sequence_rows=lambda sequence: (
                (self.other[1], self.other[1]) if sequence == 1 else None
            ),
            layers=2,
            sequences=2,
            first_site=self.layer == 0,
            made=made,
        )


def attend(q, k, v, visible, scale, scores=None, weights=None, group_order=None):
    """softmax(q·kᵀ·scale)·v, with hooks to break it."""
    heads, kv_heads = q.shape[0], k.shape[0]
    reads = group_order or [head // (heads // kv_heads) for head in range(heads)]
    product = np.einsum("hqd,hkd->hqk", q, k[reads]) * scale
    if scores is not None:
        product = scores(product)
    product = np.where(visible[None], product, -1e30)
    table = np.exp(product - product.max(-1, keepdims=True)) * visible[None]
    table /= np.maximum(table.sum(-1, keepdims=True), 1e-30)
    if weights is not None:
        table = weights(table)
    out = np.einsum("hqk,hkd->hqd", table, v[reads])
    side = Side(*(x.astype(np.float32) for x in (q, k, v, out)), visible)
    return side, table.astype(np.float32)


__all__ = ["Toy", "attend", "replace", "rope"]
