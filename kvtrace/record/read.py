"""From a raw call of the attention interface to an `AttentionCall`.

Modules differ in how they say scale, mask, window, sinks; the differences end here. What a module
says once (path, layer, window) is read once.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.calls import AttentionCall
from kvtrace.record.running import RawCall

_NAMES = ("query", "key", "value", "attention_mask")
_CROSS = re.compile(r"cross|encoder_attn|encdec|enc_dec", re.IGNORECASE)
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


def facts(module: nn.Module, path: str, order: int, *, encoder: bool = False) -> ModuleFacts:
    """Read them off the module and its config.

    Args:
        module: It.
        path: Where it is in the model.
        order: Its layer if neither it nor its path says.
        encoder: Whether it ran in an encoder.
    """
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
        layer = int(number[1]) if number else order
    cross = bool(getattr(module, "is_cross_attention", False)) or bool(_CROSS.search(path))
    sinks = getattr(module, "sinks", None)
    return ModuleFacts(
        path,
        layer,
        "cross" if cross else "encoder" if encoder else "self",
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
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    named = isinstance(types, list) and layer < len(types) and types[layer] == "sliding_attention"
    return window if isinstance(window, int) and named else None


def _code(module: nn.Module) -> str:
    """Where its forward is written: "file.py:line"."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return f"{PurePath(code.co_filename).name}:{code.co_firstlineno}" if code else ""


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
    args, output = raw.args, raw.output
    kwargs: Mapping[str, Any] = raw.kwargs
    given = dict(zip(_NAMES, args, strict=False)) if len(args) < 4 else None
    if given is None:
        query, key, value, mask = args[:4]
    else:
        query, key, value, mask = (given.get(name, kwargs.get(name)) for name in _NAMES)
    if not _all_four(query, key, value):
        return None
    q, k, v = _one_batch(query, key, value)
    new, seq = q.shape[2], k.shape[2]
    visible, bias = masks.read(mask)
    causal = kwargs.get("is_causal")
    causal = known.causal if causal is None else bool(causal)
    causal = causal and visible is None and new > 1 and not raw.eager
    if causal and seq > new:
        # a static buffer in prefill: the kernel gets the first rows only
        k, v, seq = k[:, :, :new], v[:, :, :new], new
    if visible is not None and visible.shape[-1] > seq:
        visible = visible[..., :seq]
        bias = None if bias is None else bias[..., :seq]
    position_bias = kwargs.get("position_bias")
    if isinstance(position_bias, Tensor):
        part = position_bias[..., :seq]
        bias = part if bias is None else bias + part
    sinks = kwargs.get("s_aux")
    if sinks is None:
        sinks = kwargs.get("sinks", known.sinks)
    scale = kwargs.get("scaling")
    softcap = kwargs.get("softcap")
    window = kwargs.get("sliding_window", known.window)
    if output.dim() == 3:
        output = output.reshape(*output.shape[:2], q.shape[1], -1)
    return AttentionCall(
        module=known.path,
        call=call,
        layer=known.layer,
        kind=known.kind,
        queries=q,
        keys=k,
        values=v,
        output=output.transpose(1, 2),
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        softcap=None if softcap is None else float(softcap),
        causal=causal,
        visible=visible,
        bias=bias,
        sinks=sinks.detach().reshape(-1) if isinstance(sinks, Tensor) else None,
        window=window if isinstance(window, int) else None,
        level=1,
        code=known.code,
    )


def _all_four(*parts: object) -> bool:
    return all(isinstance(part, Tensor) and part.dim() == 4 for part in parts)


def _one_batch(query: Any, key: Any, value: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The three, with the same number of sequences: attention broadcasts a single one."""
    batch = max(query.shape[0], key.shape[0])
    if query.shape[0] != batch:
        query = query.expand(batch, -1, -1, -1)
    if key.shape[0] != batch:
        key, value = key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)
    return query, key, value
