"""From a raw call of the attention interface to an `AttentionCall`.

Modules differ in how they say scale, mask, window, sinks; the differences end here. What a module
says once (path, layer, window) is read once.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.capture.attention.added import as_it_was_taken
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.running import RawCall
from kvtrace.record.written import file_of
from kvtrace.settings import setting

_NAMES = ("query", "key", "value", "attention_mask")
# Masks in the wild: -inf, finfo.min, -1e9, -10000. No bias comes near.
HIDDEN_BELOW = -9000.0


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """What is true of an attention module in every call."""

    path: str
    layer: int
    kind: str
    causal: bool
    window: int | None
    sinks: Tensor | None
    code: str


def facts(module: nn.Module, path: str, order: int, kind: str = "self") -> ModuleFacts:
    """Read them off the module and its config.

    Args:
        module: It.
        path: Where it is in the model.
        order: Its layer if neither it nor its path says.
        kind: "self", "cross" or "encoder", as its place says; it may know better.
    """
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
        layer = int(number[1]) if number else order
    cross = bool(getattr(module, "is_cross_attention", False))
    sinks = getattr(module, "sinks", None)
    return ModuleFacts(
        path,
        layer,
        "cross" if cross else kind,
        bool(getattr(module, "is_causal", True)),
        _window(module, layer),
        sinks if isinstance(sinks, Tensor) else None,
        _code(module),
    )


def _window(module: nn.Module, layer: int) -> int | None:
    """The window a module declares; a config's window counts only for layers it names sliding."""
    own = getattr(module, "sliding_window", None)
    if own is not None or hasattr(module, "sliding_window"):
        return own if isinstance(own, int) and not isinstance(own, bool) else None
    config = getattr(module, "config", None)
    window = setting(config, "sliding_window")
    types = setting(config, "layer_types")
    named = isinstance(types, list) and layer < len(types) and types[layer] == "sliding_attention"
    return window if isinstance(window, int) and named else None


def _code(module: nn.Module) -> str:
    """Where its forward is written: "file.py:line"."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return f"{file_of(code)}:{code.co_firstlineno}" if code else ""


class MaskReader:
    """Takes masks apart, once per mask object: one serves all layers of a forward."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Tensor, Tensor | None, Tensor | None]] = {}

    def read(self, mask: object) -> tuple[Tensor | None, Tensor | None]:
        """(visible, bias) of a bool, integer or additive mask."""
        if not isinstance(mask, Tensor):
            return None, None
        found = self._seen.get(id(mask))
        if found is None:
            found = self._seen[id(mask)] = (mask, *_take_apart(mask))
        return found[1], found[2]


def _take_apart(mask: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if not mask.is_floating_point():
        visible = mask if mask.dtype == torch.bool else mask != 0
        return visible, None
    visible = mask > HIDDEN_BELOW
    rest = torch.where(visible, mask, torch.zeros((), dtype=mask.dtype, device=mask.device))
    return visible, rest if bool(rest.any()) else None


def read(known: ModuleFacts, raw: RawCall, call: int, masks: MaskReader) -> AttentionCall | None:
    """Make the call; None when it was not called with q, k and v of four dimensions."""
    _, kwargs, result, eager, _ = raw
    q, k, v, mask = _consumed(raw)
    if not (_is_four(q) and _is_four(k) and _is_four(v)):
        return None
    q_shape, k_shape = q.shape, k.shape
    if q_shape[0] != k_shape[0]:
        q, k, v = _one_batch(q, k, v)
    new, seq = q_shape[2], k_shape[2]
    visible, bias = (None, None) if mask is None else masks.read(mask)
    causal = False
    if new > 1 and visible is None and not eager:
        told = kwargs.get("is_causal")
        causal = known.causal if told is None else bool(told)
        if causal and seq > new:
            # a static buffer in prefill: the kernel gets the first rows only
            k, v, seq = k[:, :, :new], v[:, :, :new], new
        elif causal and seq < new:
            # a cache that evicts in prefill: the kernel counts both from the first on
            visible = torch.ones(1, 1, new, seq, dtype=torch.bool, device=q.device).tril()
            causal = False
    if visible is not None:
        visible, bias = _over(visible, bias, seq)
    position_bias = kwargs.get("position_bias")
    if position_bias is not None:
        part = position_bias[..., :seq]
        bias = part if bias is None else bias + part
    sinks, bias = _sinks(known, kwargs, bias)
    scale = kwargs.get("scaling")
    softcap = kwargs.get("softcap")
    window = kwargs.get("sliding_window", known.window)
    output = result[0] if type(result) is tuple else result
    if output.dim() == 3:
        output = output.reshape(*output.shape[:2], q_shape[1], -1)
    # by position: seventeen keywords cost more than all the rest
    made = AttentionCall(
        known.path,
        call,
        known.layer,
        known.kind,
        q,
        k,
        v,
        output.transpose(1, 2),
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


def _over(visible: Tensor, bias: Tensor | None, seq: int) -> tuple[Tensor | None, Tensor | None]:
    """Of a mask, the part that is over the keys there are.

    One of fewer keys than there are is none: another one was used, if any.
    """
    if visible.shape[-1] > seq:
        return visible[..., :seq], None if bias is None else bias[..., :seq]
    return (None, None) if 1 < visible.shape[-1] < seq else (visible, bias)


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


def _one_batch(query: Any, key: Any, value: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The three, with the same number of sequences: attention broadcasts a single one."""
    batch = max(query.shape[0], key.shape[0])
    if query.shape[0] != batch:
        query = query.expand(batch, -1, -1, -1)
    if key.shape[0] != batch:
        key, value = key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)
    return query, key, value
