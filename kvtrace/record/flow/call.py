"""One attention call as the data flow showed it: q, k, v, mask, bias and output in our shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrace.record.flow.arrange import Roles, arranged, roles
from kvtrace.record.flow.axes import Axes, Letters
from kvtrace.record.flow.contraction import Contraction
from kvtrace.record.flow.scores import Mark, Product, Scores, scale_and_softcap

# Masks in the wild: -inf, finfo.min, -1e9, -10000 (BERT). No real score comes near.
HIDDEN_BELOW = -9000.0


@dataclass(frozen=True, slots=True)
class FlowCall:
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
        seen_as: "sdpa", or the function that normalised the scores.
        place: "file.py:line" in the model's code.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    output: Tensor
    scale: float
    softcap: float | None
    visible: Tensor | None
    bias: Tensor | None
    sinks: Tensor | None
    seen_as: str
    place: str


def read(  # noqa: PLR0913 - everything one attention is made of
    mark: Mark, mix: Contraction, weights_left: bool, batch: int, new: int
) -> FlowCall | None:
    """Read an attention call off its last product, weights · values.

    None when the product does not contract the key axis (then it is not the mix).

    Raises:
        Ambiguous: Sizes coincide so that the axes can't be told apart.
    """
    scores = mark.scores
    weights, values = (mix.left, mix.right) if weights_left else (mix.right, mix.left)
    weight_letters = mix.left_axes if weights_left else mix.right_axes
    value_letters = mix.right_axes if weights_left else mix.left_axes
    if mark.axes is None or len(mark.axes) != weights.dim():
        return None
    letters = scores.letters
    named = dict(zip(weight_letters, mark.axes, strict=True))
    contracted = "".join(letters.whole(named[x]) for x in mix.contracted if x in named)
    if not contracted or contracted != letters.whole(scores.key):
        return None
    sides = [_sides(part, scores) for part in scores.products]
    if any(side is None for side in sides):
        return None
    (query, query_axes), (_, key_axes) = sides[0]  # type: ignore[misc]
    found = roles(mark.axes, query_axes, scores.key, key_axes, letters, batch, new)
    for letter, size in mix.sizes().items():
        named.setdefault(letter, letters.new(size))
    value_axes = tuple(named[x] for x in value_letters)
    out_axes = tuple(named[x] for x in mix.out_axes)
    features = "".join(letters.whole(named[x]) for x in value_letters if x not in weight_letters)
    queries = [_rows(t, a, scores, found, found.query) for (t, a), _ in sides]  # type: ignore[misc]
    keys = [_rows(t, a, scores, found, found.key) for _, (t, a) in sides]  # type: ignore[misc]
    del query
    q, k = _joined(queries), _joined(keys)
    logits = None
    if scores.logits is not None:
        groups = (found.batch, found.heads, found.query, found.key)
        logits = arranged(scores.logits, scores.logits_axes, letters, groups)
    v = arranged(values, value_axes, letters, (found.batch, found.heads, found.key, features))
    out = arranged(mix.out, out_axes, letters, (found.batch, found.heads, found.query, features))
    return _explained(scores, (q, k, v, out), logits)


def _sides(part: Product, scores: Scores) -> tuple[tuple[Tensor, Axes], tuple[Tensor, Axes]] | None:
    """(query operand, key operand): the keys are the side that has the softmax axis."""
    key = scores.letters.whole(scores.key)
    left = "".join(map(scores.letters.whole, part.left_axes))
    right = "".join(map(scores.letters.whole, part.right_axes))
    if key in right and key not in left:
        return (part.left, part.left_axes), (part.right, part.right_axes)
    if key in left and key not in right:
        return (part.right, part.right_axes), (part.left, part.left_axes)
    return None


def _rows(tensor: Tensor, axes: Axes, scores: Scores, found: Roles, rows: str) -> Tensor:
    """Queries or keys as [sequences, heads, rows, features]."""
    letters = scores.letters
    taken = found.batch + found.heads + rows
    features = "".join(
        x for axis in axes for x in letters.whole(axis) if x not in taken and letters.sizes[x] > 1
    )
    return arranged(tensor, axes, letters, (found.batch, found.heads, rows, features))


def _joined(parts: list[Tensor]) -> Tensor:
    """Several products summed are one product over the features side by side."""
    if len(parts) == 1:
        return parts[0]
    heads = max(part.shape[1] for part in parts)
    return torch.cat([part.expand(-1, heads, -1, -1) for part in parts], dim=-1)


def _explained(
    scores: Scores, rows: tuple[Tensor, Tensor, Tensor, Tensor], logits: Tensor | None
) -> FlowCall:
    """Add scale, softcap, mask, bias and sinks: what turns q·kᵀ into the logits."""
    q, k, v, out = rows
    scale, softcap = scale_and_softcap(scores)
    visible = bias = sinks = None
    if logits is not None:
        seq, extra = k.shape[2], logits.shape[-1] - k.shape[2]
        if extra == 1:
            sinks = logits[:, :, :, -1]
            sinks = sinks[0, :, 0] if bool((sinks == sinks[:1, :, :1]).all()) else None
            logits = logits[..., :seq]
        visible, bias = _mask_and_bias(q, k, scale, softcap, logits)
    return FlowCall(
        q, k, v, out, scale, softcap, visible, bias, sinks, scores.normaliser, scores.place
    )


def _mask_and_bias(
    q: Tensor, k: Tensor, scale: float, softcap: float | None, logits: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What the logits have that scale and softcap do not explain."""
    visible = logits > HIDDEN_BELOW
    product = q.float() @ k.float().repeat_interleave(q.shape[1] // k.shape[1], 1).mT * scale
    if softcap:
        product = softcap * torch.tanh(product / softcap)
    rest = torch.where(visible, logits.float() - product, 0.0)
    # rounding of the product in the model's own dtype is no bias
    noise = 32 * torch.finfo(logits.dtype).eps * product.abs().amax().clamp(min=1.0)
    bias = rest if bool(rest.abs().amax() > noise) else None
    return (None if bool(visible.all()) else visible), bias
