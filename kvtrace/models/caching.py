"""Whether a model keeps keys and values between steps: asked by running it on one token.

Knows the caches of transformers; a model that fails on one token is left for the recorder to
name.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn
from transformers import DynamicCache

from kvtrace.errors import ModelError

_NAMES = ("cache", "past_key_values")
"""What a cache is called that a forward is handed or hands back."""


def check_caches(model: nn.Module) -> None:
    """Run one token and look for rows that were kept.

    Raises:
        ModelError: Nothing was kept but a recurrent state, or nothing at all, or it can't be
            called.
    """
    if type(model).forward is nn.Module.forward:
        raise ModelError(
            f"{type(model).__name__} has no forward: it joins several models, each of its own; "
            "record a program that generates with it: kvtrace run script.py"
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return
    try:
        output = _one_token(model)
    except Exception:
        return
    if _keys(_made(output, *_NAMES)) or _fills(model) or _makes_its_own(model):
        return
    state = _made(output, "cache", "cache_params", "state")
    what = (
        "a recurrent state of constant size"
        if state is not None
        else "nothing that is kept between steps"
    )
    raise ModelError(
        f"has no KV cache (found: {type(model).__name__}, {what}); use a model with attention"
    )


def _one_token(model: nn.Module, **options: object) -> object:
    device = next(model.parameters()).device
    with torch.no_grad():
        return model(torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=True, **options)


def _fills(model: nn.Module) -> bool:
    """Whether it writes into a cache that it is given; some models do not return theirs."""
    try:
        cache = DynamicCache(config=getattr(model, "config", None))
        _one_token(model, **{_name(model): cache})
    except Exception:  # a configuration of one's own need not say how many layers there are
        return False
    return _keys(cache)


def _makes_its_own(model: nn.Module) -> bool:
    """Whether its preparation of a step, as `generate` calls it, brings a cache that holds rows."""
    prepare = getattr(model, "prepare_inputs_for_generation", None)
    if prepare is None:
        return False
    ids = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    told = {"past_key_values": None, "attention_mask": torch.ones_like(ids), "use_cache": True}
    try:
        given = dict(prepare(ids, **told))
        with torch.no_grad():
            output = model(**given)
    except Exception:  # written for another transformers
        return False
    return any(_keys(_made(one, *_NAMES)) for one in (output, given))


def _name(model: nn.Module) -> str:
    """What its forward calls a cache: `cache` since transformers 5.24."""
    names = inspect.signature(model.forward).parameters
    return "past_key_values" if "past_key_values" in names else "cache"


def _made(output: object, *names: str) -> object:
    """What came back under the first of some names; old ones are not asked for as attributes.

    They would make transformers warn.
    """
    there = output if isinstance(output, dict) else getattr(output, "__dict__", {})
    return next((there[name] for name in names if dict.get(there, name) is not None), None)


def _keys(cache: object) -> bool:
    """Whether a cache holds keys in any layer; a kind unknown to us counts as holding some."""
    if cache is None:
        return False
    layers = getattr(cache, "layers", None)
    if layers is None or type(cache).__module__.partition(".")[0] != "transformers":
        return True
    return any(getattr(layer, "keys", None) is not None for layer in layers)
