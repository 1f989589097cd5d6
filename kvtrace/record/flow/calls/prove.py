"""Softmax attention written out plainly: what a recorded call must be able to repeat.

softmax(softcap(q·kᵀ·scale) + bias + mask, sinks)·v as in "Attention Is All You Need" (Vaswani et
al., 2017, eq. 1), with Gemma 2's softcap and gpt-oss' sinks; calculated in float32, or in float64
where the model does.
"""

from __future__ import annotations

from math import isfinite, isnan

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.precision import EXACT, product_eps

HALF = (torch.float16, torch.bfloat16)

_LOST = 4
"""Sums that are cut into other pieces may lose several times as much as ours."""


class FlowCall(Struct, frozen=True):
    """An attention call that was seen by what it did.

    Attributes:
        queries: [sequences, heads, new, key_dim].
        keys: [sequences, kv_heads, seq, key_dim], as multiplied.
        values: [sequences, kv_heads, seq, value_dim].
        output: [sequences, heads, new, value_dim].
        scale, softcap: Applied to q·kᵀ.
        visible: Bool, broadcasts to [sequences, heads, new, seq]; None: everything.
        bias: Additive, float32, same shape; None without one.
        sinks: Logit of one extra column per head, [heads]; None without one.
        level: 2 SDPA and other fused calls, 3 softmax pattern.
        place: "file.py:line" in the model's code.
        scored: The same of q·kᵀ, where it was seen.
        texts: Sequences of the step, where this call may be that of one of them alone; else 0.
        weights: What the softmax made, where something random came after it.
        assumed: What was taken by convention, in a few words.
        rule: How scores become weights: "softmax" or "sigmoid".
        mixes: The model multiplied values for it; False: its weights were added to another's first.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    output: Tensor
    scale: float
    softcap: float | None = None
    visible: Tensor | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None
    level: int = 3
    place: str = ""
    weights: Tensor | None = None
    assumed: str = ""
    rule: str = "softmax"
    mixes: bool = True
    scored: str = ""
    texts: int = 0

    @property
    def hides_later(self) -> bool:
        """Whether the first of several queries sees no later row, and the last one something."""
        new, seq = self.queries.shape[2], self.keys.shape[2]
        if self.visible is None or not 1 < new == seq:
            return False
        seen = self.visible.expand(*self.visible.shape[:2], new, seq)
        return not bool(seen[:, :, 0, 1:].any()) and bool(seen[:, :, -1].any())

    @property
    def detached(self) -> FlowCall:
        """The same without a graph behind it."""
        if not (self.output.requires_grad or self.keys.requires_grad or self.values.requires_grad):
            return self
        q, k, v = self.queries.detach(), self.keys.detach(), self.values.detach()
        return replace(self, queries=q, keys=k, values=v, output=self.output.detach())


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to calculate in."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def rounding(*tensors: Tensor) -> float:
    """The coarsest step of the dtypes involved, and of products of float32, relative to 1."""
    eps = max(torch.finfo(tensor.dtype).eps for tensor in tensors)
    return max(eps, product_eps(tensors[0].device)) if eps == EXACT else eps


def products(queries: Tensor, keys: Tensor) -> Tensor:
    """q·kᵀ, query head h with kv head h // (heads // kv_heads); [sequences, heads, new, seq]."""
    batch, heads, new, dim = queries.shape
    kv_heads = keys.shape[1]
    wide = wide_dtype(queries, keys)
    grouped = queries.to(wide).reshape(batch, kv_heads, heads // kv_heads * new, dim)
    return (grouped @ keys.to(wide).mT).reshape(batch, heads, new, keys.shape[2])


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Cap scores: softcap · tanh(scores / softcap)."""
    return scores if not softcap else softcap * torch.tanh(scores / softcap)


def weights_of(call: FlowCall) -> tuple[Tensor, Tensor]:
    """Attention weights, and the logits before the mask, [sequences, heads, new, seq] each.

    A query that sees nothing gets zero weights.
    """
    logits = capped(products(call.queries, call.keys) * call.scale, call.softcap)
    if call.bias is not None:
        logits = logits + call.bias
    hidden = logits
    if call.visible is not None:
        hidden = logits.masked_fill(~call.visible, float("-inf"))
    if call.rule == "sigmoid":
        return hidden.sigmoid(), logits
    if call.sinks is not None:
        column = call.sinks.to(logits.dtype)[None, :, None, None]
        column = column.expand(*logits.shape[:-1], 1)
        weights = torch.softmax(torch.cat([hidden, column], -1), -1)[..., :-1]
    else:
        weights = torch.softmax(hidden, -1)
    return (weights if call.visible is None else weights.nan_to_num(0.0)), logits


def mixed(weights: Tensor, values: Tensor) -> Tensor:
    """weights·v, [sequences, heads, new, value_dim]."""
    batch, heads, new, seq = weights.shape
    kv_heads = values.shape[1]
    grouped = weights.reshape(batch, kv_heads, heads // kv_heads * new, seq)
    return (grouped @ values.to(weights.dtype)).reshape(batch, heads, new, -1)


def refusal(call: FlowCall) -> str:
    """Why the call does not repeat what the model calculated; empty when it does.

    Rows that see nothing are left out: fused kernels disagree on them. Tolerance: logits round to
    eps·|logits|, which moves the weights by as much relatively, and the output by that times |v|;
    and what sums over the rows lose, as we see where ours do.
    """
    expected, logits = _repeated(call)
    found = call.output if call.weights is None else call.weights
    size = 1.0 if call.weights is not None else largest_finite(call.values)
    if not expected.numel():
        return "it is empty"
    visible = call.visible
    seen = logits if visible is None else torch.where(visible, logits, 0.0)
    # models in float64 often have a softmax that is float32 all the same
    single = torch.finfo(torch.float32).eps
    eps = max(rounding(call.queries, call.keys, call.values, call.output), single)
    low = any(x.dtype in HALF for x in (call.queries, call.keys, call.values, call.output))
    allowed = (2 if low else 16) * eps * (1.0 + largest_finite(seen)) * size
    differs = (found.to(expected.dtype) - expected).abs()
    if visible is not None:
        differs = differs.masked_fill(~visible.any(-1, keepdim=True), 0.0)
    error = float(differs.amax())
    if error > allowed:
        allowed += _LOST * _lost_in_sums(call, expected)
    if error <= allowed or (isnan(error) and not bool(call.output.isfinite().all())):
        return ""
    made = f"{call.rule}(q·kᵀ·scale)·v"
    return f"{made} differs from its output by {error:.2g}, allowed {allowed:.2g}"


def _repeated(call: FlowCall) -> tuple[Tensor, Tensor]:
    """What the model made of q, k and v, and the logits before the mask."""
    weights, logits = weights_of(call)
    return (weights if call.weights is not None else mixed(weights, call.values)), logits


def _lost_in_sums(call: FlowCall, expected: Tensor) -> float:
    """How far sums over these rows round: alike ones all to the same side, more with each row."""
    if expected.dtype == torch.float64 or expected.device.type == "mps":  # which has no float64
        return 0.0
    wide = [x.to(torch.float64) for x in (call.queries, call.keys, call.values)]
    exact, _ = _repeated(replace(call, queries=wide[0], keys=wide[1], values=wide[2]))
    return largest_finite(expected.to(torch.float64) - exact)


def largest_finite(tensor: Tensor) -> float:
    """Largest finite |number|: sequences whose padding made them NaN say nothing of the others."""
    if not tensor.numel():
        return 0.0
    found = float(tensor.abs().amax())
    if isfinite(found):
        return found
    return float(torch.where(tensor.isfinite(), tensor, 0).abs().amax())
