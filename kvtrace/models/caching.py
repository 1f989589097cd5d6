"""Whether a model keeps keys and values between steps: asked by running it on one token.

Knows the shapes that transformers' outputs take; a model that fails on one token is left for
the recorder to name.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from kvtrace.errors import ModelError

_INSIDE = re.compile(r"(past_|cached?_)?(k|key)s?(_cache|_states|_cached)?")


def check_caches(model: nn.Module) -> None:
    """Run one token and look for rows that were kept.

    Raises:
        ModelError: Nothing was kept but a recurrent state, or nothing at all.
    """
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            output = model(torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=True)
    except Exception:
        return
    if _keys(getattr(output, "past_key_values", None)) or _kept_inside(model):
        return
    kept = [name for name in ("cache_params", "state") if getattr(output, name, None) is not None]
    what = "a recurrent state of constant size" if kept else "nothing that is kept between steps"
    raise ModelError(
        f"has no KV cache (found: {type(model).__name__}, {what}); use a model with attention"
    )


def _keys(cache: object) -> bool:
    """Whether a cache holds keys in any layer; anything unknown to us counts as holding some."""
    if cache is None:
        return False
    layers = getattr(cache, "layers", None)
    if layers is None:
        return True
    return any(getattr(layer, "keys", None) is not None for layer in layers)


def _kept_inside(model: nn.Module) -> bool:
    """Whether a module itself holds a tensor that is called keys."""
    return any(
        isinstance(value, torch.Tensor) and _INSIDE.fullmatch(name)
        for module in model.modules()
        for name, value in (vars(module) | dict(module.named_buffers(recurse=False))).items()
    )
