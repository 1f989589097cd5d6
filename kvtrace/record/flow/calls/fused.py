"""Attention in one call: scaled_dot_product_attention and flex_attention, from their arguments.

Semantics as in torch's documentation: `is_causal` is aligned to the top left, a bool mask is True
where a key takes part, a float mask is added, `enable_gqa` repeats kv heads. The flex kernel is a
higher-order operator that torch hands to function modes, so every alias of it is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kvtrace.record.flow.calls.explain import same_mask, seen_in
from kvtrace.record.flow.calls.prove import FlowCall, capped, products
from kvtrace.record.flow.plans.arrange import AmbiguousError, NotOverTokensError, Sizes

_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_FLEX = ("query", "key", "value", "score_mod", "block_mask", "scale")


def named(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def of_sdpa(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    out: Tensor,
    sizes: Sizes,
    place: str,
    heads: int | None = None,
) -> FlowCall:
    """The call behind `scaled_dot_product_attention`.

    Args:
        args: What it was given by place.
        kwargs: By name.
        out: What it gave.
        sizes: Of the step.
        place: In somebody's code.
        heads: As many as its code had when there were more or fewer tokens; None: not known.

    Raises:
        NotOverTokensError: Each token has queries of its own, which see no other token's rows.
    """
    given = named(_SDPA, args, kwargs)
    q, k, v = given["query"], given["key"], given["value"]
    tokens = sizes.tokens[-1] if sizes.tokens else 1
    # ids [tokens, sequences] are read the wrong way around: their attention shows it
    turned = q.dim() == 4 and (q.shape[0], q.shape[2]) == (tokens, sizes.batch)
    own = tokens > 1 and q.dim() > 3 and q.shape[-3] == tokens and q.shape[-2] != tokens
    if own and not turned and q.shape[-3] != heads:
        raise NotOverTokensError("each token attends to a set of its own")
    scale = given.get("scale")
    lead = q.shape[:-2]
    visible, bias = None, None
    mask = given.get("attn_mask")
    if given.get("is_causal"):
        visible = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        visible = visible[None, None]
    if mask is not None:
        if q.dim() != 4 and mask.dim() > 2:
            mask = mask.expand(*lead, *mask.shape[-2:])
        mask = as_four(mask[None] if q.dim() == 4 and mask.dim() == 3 else mask, sizes)
        seen, bias = split_mask(mask)
        visible = seen if visible is None else visible if seen is None else visible & seen
    if given.get("dropout_p"):
        raise AmbiguousError("dropout inside of the fused call can't be looked into")
    return FlowCall(
        as_four(q, sizes),
        as_four(k, sizes),
        as_four(v, sizes),
        as_four(out, sizes),
        1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale),
        visible=None if visible is None or bool(visible.all()) else same_mask(visible),
        bias=bias,
        level=2,
        place=place,
    )


def as_four(tensor: Tensor, sizes: Sizes) -> Tensor:
    """[…, rows, features] as [sequences, heads, rows, features]."""
    if tensor.dim() == 2:
        return tensor[None, None]
    if tensor.dim() == 4:
        return tensor
    if tensor.dim() > 4:
        return tensor.flatten(1, -3)
    lead, batch = tensor.shape[0], sizes.batch
    if batch == 1 and lead > 1:
        return tensor[None]
    if batch is None or lead in (batch, 1):
        return tensor[:, None]
    if lead % batch:
        raise AmbiguousError(f"{lead} is no multiple of the {batch} sequences")
    return tensor.reshape(batch, lead // batch, *tensor.shape[1:])


def split_mask(mask: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(visible, bias) of a mask as torch takes it; None where it changes nothing."""
    if mask.dtype == torch.bool:
        return mask, None
    visible = seen_in(mask)
    bias = torch.where(visible, mask, 0.0).float()
    shown = None if bool(visible.all()) else visible
    return shown, bias if bool((bias != 0).any()) else None


def of_flex(args: Sequence[Any], kwargs: Mapping[str, Any], out: object, place: str) -> FlowCall:
    """The call behind the flex_attention operator: (q, k, v, score_mod, block mask, scale, …)."""
    given = named(_FLEX, args, kwargs)
    q, k, v = given["query"], given["key"], given["value"]
    output = out[0] if isinstance(out, tuple) else out
    assert isinstance(output, Tensor)
    scale = float(given["scale"])
    mask_mod = given["block_mask"][-1]
    visible = _table(mask_mod, q, k)
    logits = products(q, k) * scale
    changed = _scored(given["score_mod"], logits)
    bias = None
    if not torch.equal(changed, logits):
        bias = (changed - capped(logits, None)).masked_fill(~visible, 0.0)
        hidden = ~seen_in(changed)
        visible, bias = visible & ~hidden, bias.masked_fill(hidden, 0.0)
    shown = None if bool(visible.all()) else same_mask(visible)
    return FlowCall(q, k, v, output, scale, None, shown, bias, level=2, place=place)


def _places(like: Tensor, new: int, seq: int, heads: int) -> list[Tensor]:
    """Indices (sequence, head, query, key) that broadcast to [sequences, heads, new, seq]."""
    counts = (like.shape[0], heads, new, seq)
    ranges = [torch.arange(n, device=like.device) for n in counts]
    return [x.view(*(-1 if n == at else 1 for n in range(4))) for at, x in enumerate(ranges)]


def _table(mask_mod: Callable[..., Tensor], q: Tensor, k: Tensor) -> Tensor:
    places = _places(q, q.shape[2], k.shape[2], q.shape[1])
    shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return _vectorised(mask_mod, places, shape).bool()


def _scored(score_mod: Callable[..., Tensor], logits: Tensor) -> Tensor:
    batch, heads, new, seq = logits.shape
    places = _places(logits, new, seq, heads)
    flat = [x.expand(batch, heads, new, seq).reshape(-1) for x in places]
    return torch.vmap(score_mod)(logits.reshape(-1), *flat).reshape(logits.shape)


def _vectorised(
    function: Callable[..., Tensor], places: list[Tensor], shape: tuple[int, ...]
) -> Tensor:
    """A function of single indices, at every place: masks may index tensors, as vmap allows."""
    flat = [x.expand(shape).reshape(-1) for x in places]
    found: Tensor = torch.vmap(function)(*flat)
    return found.reshape(shape)
