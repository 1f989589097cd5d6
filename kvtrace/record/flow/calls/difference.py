"""Attention by the difference of softmaxes: each of them, with the output that it alone would have.

Weights that are several softmaxes added up, each times a number (Ye et al., 2024, "Differential
Transformer"). The model makes one output of all; each softmax is told as a call of its own, whose
output is calculated here from the model's own weights. That the weights add up to what the model
multiplied with its values is checked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.flow.calls.explain import UnexplainedError
from kvtrace.record.flow.calls.prove import HALF
from kvtrace.record.flow.plans.mix import Mix

ROWS = 16
"""Query rows by which it is checked that weights add up."""


def mixes(mix: Mix) -> list[Mix]:
    """Each softmax with the values, as if it were alone.

    Raises:
        UnexplainedError: Its weights have another shape than the sum.
    """
    product, out = mix.product, []
    spelled = f"{product.left_axes},{product.right_axes}->{product.out_axes}"
    total, _ = mix.weights
    values, _ = mix.values
    for one in mix.mark.terms:
        if one.weights.shape != total.shape:
            raise UnexplainedError("what is added up has another shape than the sum")
        weights = one.weights.detach().to(values.dtype)
        sides = (weights, values) if mix.weights_left else (values, weights)
        made = torch.einsum(spelled, *sides)
        alone = replace(product, left=sides[0], right=sides[1], out=made)
        out.append(Mix(one.mark, alone, mix.weights_left, mix.place))
    return out


def factors(total: Tensor, parts: Sequence[Tensor]) -> list[list[float]]:
    """The number that each part counts with, per head.

    Args:
        total: Weights as the model multiplied them with its values, [sequences, heads, new, seq].
        parts: What each softmax made, the same.

    Raises:
        UnexplainedError: They do not add up.
    """
    rows = min(ROWS, total.shape[2])
    last = [one.detach()[:, :, -rows:].double() for one in (total, *parts)]
    low = any(one.dtype in HALF for one in (total, *parts))
    found = []
    for head in range(total.shape[1]):
        wanted, *columns = (one[:, head].reshape(-1) for one in last)
        table = torch.stack(columns, dim=1)
        numbers = torch.linalg.lstsq(table, wanted[:, None], driver="gelsd").solution
        error = float((table @ numbers - wanted[:, None]).abs().amax())
        if error > (2e-2 if low else 1e-4):
            raise UnexplainedError(f"its softmaxes do not add up to its weights, by {error:.2g}")
        found.append([float(one) for one in numbers[:, 0]])
    return found


def said(found: Sequence[Sequence[float]]) -> str:
    """What a reader must know of it."""
    ranges = []
    for numbers in zip(*found, strict=True):
        low, high = min(numbers), max(numbers)
        same = high - low < 1e-3
        ranges.append(f"{low:.3g}" if same else f"{low:.3g} to {high:.3g}")
    times = " and ".join(ranges)
    return (
        f"its weights are {len(ranges)} softmaxes added up, times {times}; each is shown as a call "
        "of its own, with the output that it alone would have, and values that they share are "
        "counted for each"
    )
