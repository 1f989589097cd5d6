"""What the logits of a softmax have that q·kᵀ alone does not explain: mask, bias, sinks, scale.

The logits are what the model gave to its softmax. Everything that scale and softcap do not account
for is either hidden (−inf, −1e9 …), a shift of a whole row (which a softmax does not see), an added
term, or a reason not to believe that this is attention.
"""

from __future__ import annotations

import math

import torch
from msgspec import Struct
from torch import Tensor

from kvtrace.record.flow.calls.prove import (
    HALF,
    FlowCall,
    capped,
    largest_finite,
    products,
    rounding,
)

# Masks in the wild: -inf, finfo.min, -1e9, -10000 (BERT), and -10000 divided by the root of the
# head size. exp() of any of them is exactly 0 beside a score that is not masked.
HIDDEN_BELOW = -800.0


class UnexplainedError(Exception):
    """The logits are not what q·kᵀ and the operations seen would make.

    Attributes:
        call: What was read all the same, where only the proof of it failed.
    """

    def __init__(self, why: str, call: FlowCall | None = None) -> None:
        super().__init__(why)
        self.call = call


class Explained(Struct, frozen=True):
    """How q·kᵀ became the logits.

    Attributes:
        scale, softcap: Factor and cap.
        visible: Bool, broadcasts to [sequences, heads, new, seq]; None: everything.
        bias: Additive, same shape; None without one.
        shift: What was taken off whole rows, [sequences, heads, new, 1]; None: nothing.
        head_scale: Another factor per head, [heads]; None without one.
    """

    scale: float
    softcap: float | None
    visible: Tensor | None
    bias: Tensor | None
    shift: Tensor | None = None
    head_scale: Tensor | None = None


def seen_in(logits: Tensor) -> Tensor:
    """Which logits are not masked; a row of nothing but finite masks counts as hidden."""
    return logits > HIDDEN_BELOW


def explain(
    queries: Tensor,
    keys: Tensor,
    logits: Tensor,
    scale: float,
    softcap: float | None,
    *,
    added: bool,
    shifts: bool = True,
) -> Explained:
    """Split logits into product, mask, bias and row shift.

    Args:
        queries: [sequences, heads, new, key_dim].
        keys: [sequences, kv_heads, seq, key_dim].
        logits: [sequences, heads, new, seq], as given to the softmax.
        scale: Factor on q·kᵀ, as seen.
        softcap: Cap, as seen.
        added: Whether an addition was seen, so that a bias may be there.
        shifts: What is taken off a whole row makes no difference, as to a softmax.

    Raises:
        UnexplainedError: A difference is left and no addition was seen.
    """
    visible = seen_in(logits)
    everything = bool(visible.all())
    raw = products(queries, keys)
    product = capped(raw * scale, softcap)
    rest = logits.to(product.dtype) - product
    if not everything:
        rest = torch.where(visible, rest, 0.0)
    largest = (logits if everything else torch.where(visible, logits, 0.0)).abs().amax()
    # padding that sees nothing may have made whole sequences NaN
    reach = largest_finite(queries.norm(dim=-1)) * largest_finite(keys.norm(dim=-1)) * abs(scale)
    # a bias is small beside 64 steps of 16 bits; product, scale and sum round to two at most
    half = added and any(one.dtype in HALF for one in (queries, keys, logits))
    steps = 4 if half else 64
    noise = float(steps * rounding(queries, keys, logits) * (reach + largest))
    mask = None if everything else same_mask(visible)
    if float(rest.abs().amax()) <= noise:
        return Explained(scale, softcap, mask, None)
    shift = _shift(rest, mask)
    if shifts and float((rest - shift).masked_fill(~visible, 0.0).abs().amax()) <= noise:
        return Explained(scale, softcap, mask, None, shift=shift)
    if added:
        return Explained(scale, softcap, mask, _compact(rest, noise))
    factor = _head_factor(product, logits, visible)
    rest = (logits.to(product.dtype) - product * factor).masked_fill(~visible, 0.0)
    if softcap is None and float(rest.abs().amax()) <= noise * float(factor.abs().amax().clamp(1)):
        return Explained(scale, None, mask, None, head_scale=factor[0, :, 0, 0])
    if not math.isfinite(noise):
        raise UnexplainedError("q·kᵀ has numbers that are not finite")
    raise UnexplainedError(f"logits differ from q·kᵀ·{scale:.4g} by {float(rest.abs().amax()):.2g}")


def _shift(rest: Tensor, mask: Tensor | None) -> Tensor:
    """The same number taken off every visible logit of a row: its mean difference."""
    if mask is None:
        return rest.mean(-1, keepdim=True)
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    return rest.sum(-1, keepdim=True) / count


def _head_factor(product: Tensor, logits: Tensor, visible: Tensor) -> Tensor:
    """Least squares factor per head, [1, heads, 1, 1]."""
    x = product.masked_fill(~visible, 0.0)
    y = logits.to(product.dtype).masked_fill(~visible, 0.0)
    over = (0, 2, 3)
    return (x * y).sum(over, keepdim=True) / (x * x).sum(over, keepdim=True).clamp(min=1e-30)


def same_mask(visible: Tensor) -> Tensor:
    """Without the axes of sequences and heads along which it stays the same."""
    for axis in range(2):
        first = visible.narrow(axis, 0, 1)
        if visible.shape[axis] > 1 and bool((visible == first).all()):
            visible = first
    return visible


def _compact(bias: Tensor, noise: float) -> Tensor:
    """Without the axes along which it stays the same."""
    for axis in range(3):
        first = bias.narrow(axis, 0, 1)
        if bias.shape[axis] > 1 and float((bias - first).abs().amax()) <= noise:
            bias = first
    return bias


def from_weights(queries: Tensor, keys: Tensor, weights: Tensor) -> Explained:
    """Scale and mask from the weights alone, where the softmax could not be looked into.

    log(weights) is the logits but for a shift of each row.

    Raises:
        UnexplainedError: No scale makes weights of q·kᵀ.
    """
    visible = weights > 0
    mask = None if bool(visible.all()) else visible
    raw = products(queries, keys)
    logs = torch.where(visible, weights, 1.0).to(raw.dtype).log()
    x = (raw - _shift(raw.masked_fill(~visible, 0.0), mask)).masked_fill(~visible, 0.0)
    y = (logs - _shift(logs, mask)).masked_fill(~visible, 0.0)
    square = float((x * x).sum())
    scale = float((x * y).sum()) / square if square else 1.0
    noise = 64 * rounding(queries, keys, weights) * float(1 + y.abs().amax())
    if float((y - x * scale).abs().amax()) > noise or scale <= 0:
        raise UnexplainedError("no scale makes its weights of q·kᵀ; a bias may be hidden")
    return Explained(scale, None, mask, None)
