"""From a raw call of the attention interface to an `AttentionCall`.

Modules differ in how they say scale, mask, window, sinks; the differences end here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvtrace.record.capture.attention.added import as_it_was_taken
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.attention.facts import ModuleFacts
from kvtrace.record.capture.attention.masks import MaskReader, over_keys
from kvtrace.record.capture.running import RawCall

_NAMES = ("query", "key", "value", "attention_mask")


def read(known: ModuleFacts, raw: RawCall, call: int, masks: MaskReader) -> AttentionCall | None:
    """Make the call; None when it was given nothing that its queries can have attended to."""
    _, kwargs, result, eager, _ = raw
    q, k, v, mask = _consumed(raw)
    if not (_is_four(q) and _is_four(k) and _is_four(v) and _fit(q.shape, k.shape, v.shape)):
        return None
    q_shape = q.shape
    if q_shape[0] != k.shape[0]:
        q, k, v = _one_batch(q, k, v)
    visible, bias = (None, None) if mask is None else masks.read(mask)
    causal = q_shape[2] > 1 and visible is None and not eager and _says_causal(known, kwargs)
    if causal and k.shape[2] != q_shape[2]:
        k, v, visible = _from_the_first_on(k, v, q_shape[2])
        causal = visible is None
    seq = k.shape[2]
    if visible is not None:
        visible, bias = over_keys(visible, bias, seq)
    position_bias = kwargs.get("position_bias")
    if position_bias is not None:
        part = position_bias[..., :seq]
        bias = part if bias is None else bias + part
    sinks, bias = _sinks(known, kwargs, bias)
    scale = kwargs.get("scaling")
    softcap = kwargs.get("softcap")
    window = kwargs.get("sliding_window", known.window)
    # by position: seventeen keywords cost more than all the rest
    made = AttentionCall(
        known.path,
        call,
        known.layer,
        known.kind,
        q,
        k,
        v,
        _output(result, q_shape[1]),
        q_shape[3] ** -0.5 if scale is None else float(scale),
        None if softcap is None else float(softcap),
        causal,
        visible,
        bias,
        None if sinks is None or sinks.numel() != q_shape[1] else sinks,
        window if type(window) is int else None,
        1,
        known.code,
    )
    boolean = eager and visible is not None and mask.dtype == torch.bool
    return as_it_was_taken(made) if boolean else made


def _consumed(raw: RawCall) -> Sequence[Any]:
    """Queries, keys, values and the mask, by place or by name."""
    given, kwargs = raw[0], raw[1]
    if len(given) >= 5:
        return given[1:5]
    named = dict(zip(_NAMES, given[1:], strict=False))
    return [named.get(name, kwargs.get(name)) for name in _NAMES]


def _says_causal(known: ModuleFacts, kwargs: dict[str, Any]) -> bool:
    """Whether a call without a mask, or else its module, says that later rows are hidden."""
    told = kwargs.get("is_causal")
    return known.causal if told is None else bool(told)


def _from_the_first_on(k: Tensor, v: Tensor, new: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and what is seen of them where kernels count both queries and keys from 0 on.

    Nothing is said of what is seen where the last query sees the last of those keys.
    """
    seq = k.shape[2]
    if seq > new:  # a static buffer in prefill: the kernel gets the first rows only
        return k[:, :, :new], v[:, :, :new], None
    # a cache that evicts in prefill
    return k, v, torch.ones(1, 1, new, seq, dtype=torch.bool, device=k.device).tril()


def _output(result: Any, heads: int) -> Tensor:
    """What was made, [sequences, heads, new, value_dim]."""
    output = result[0] if type(result) is tuple else result
    if output.dim() == 3:
        output = output.reshape(*output.shape[:2], heads, -1)
    made: Tensor = output.transpose(1, 2)
    return made


def _sinks(
    known: ModuleFacts, kwargs: dict[str, Any], bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Sinks, a logit per head, and the bias.

    A sink of each query, [sequences, heads, new, 1], is a sink of 0 with scores that much lower.
    """
    sinks = kwargs.get("s_aux")
    if sinks is None:
        sinks = kwargs.get("sinks", known.sinks)
    if sinks is None:
        return None, bias
    sinks = sinks.detach()
    if sinks.dim() < 4:
        return sinks.reshape(-1), bias
    zeros = torch.zeros(sinks.shape[1], dtype=sinks.dtype, device=sinks.device)
    return zeros, -sinks if bias is None else bias - sinks


def _is_four(part: object) -> bool:
    return isinstance(part, Tensor) and part.dim() == 4


def _fit(q: torch.Size, k: torch.Size, v: torch.Size) -> bool:
    """Whether there are rows, as wide as the queries: some caches hand out stand-ins or codes."""
    return k[1:3] == v[1:3] and k[2] > 0 < k[1] and k[3] == q[3] and not q[1] % k[1] and v[3] > 0


def _one_batch(query: Any, key: Any, value: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The three, with the same number of sequences: attention broadcasts a single one."""
    batch = max(query.shape[0], key.shape[0])
    if query.shape[0] != batch:
        query = query.expand(batch, -1, -1, -1)
    if key.shape[0] != batch:
        key, value = key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)
    return query, key, value
