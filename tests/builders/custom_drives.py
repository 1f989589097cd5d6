"""How each custom model wants to be called: a prompt, then token by token through its cache."""

from __future__ import annotations

import importlib

import torch

STYLES = (
    "tuple_cat",
    "buffers_start_pos",
    "index_copy",
    "ring_window",
    "gqa_interleave",
    "alibi",
    "softcap",
    "einsum_heads",
    "latent_mla",
    "unrotated_keys",
    "hooked_dict",
    "multihead_module",
    "head_modules",
    "sinks_prealloc",
    "plain_functions",
    "relative_bias",
    "recurrent",
)

PAST = ("tuple_cat", "alibi", "latent_mla", "relative_bias", "recurrent")
FILLED = ("softcap", "unrotated_keys", "hooked_dict", "plain_functions")
UNCACHED = ("multihead_module", "head_modules")


def build(style):
    """A new model of that style."""
    return importlib.import_module(f"kvtrace_fixtures.custom.{style}").build()


def ids(tokens, seed=5, batch=1):
    return torch.randint(0, 256, (batch, tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def through_the_cache(style, model, tokens, prompt, *, ends=(), witness=None):
    """Logits of each step: the prompt, then one token at a time.

    `ends` cuts the tokens into other steps; `witness(cache, tokens so far)` looks on after each.
    """
    ends = [*ends, *range(max([prompt, *ends]) + (1 if ends else 0), tokens.shape[1] + 1)]
    cache, start, found = _empty(style, model, len(tokens)), 0, []
    for end in ends:
        new = tokens[:, start:end]
        if style in PAST:
            logits, cache = model(new, cache)
        elif style == "gqa_interleave":
            out = model(new, cache)
            logits, cache = out.logits, out.past_key_values
        elif style in FILLED:
            logits = model(new, cache)
        elif style == "buffers_start_pos":
            logits = model(new, start)
        elif style in ("index_copy", "ring_window"):
            logits = model(new, torch.arange(start, end))
        elif style == "einsum_heads":
            logits = model(new, use_cache=True)
        elif style == "sinks_prealloc":
            logits = model(new, cache, start)
        else:
            logits = _first(model(tokens[:, :end]))[:, start:]
        found.append(logits)
        start = end
        if witness is not None:
            witness(cache, end)
    return found


def _empty(style, model, batch=1):
    if style == "softcap":
        return {}
    if style in ("unrotated_keys", "plain_functions"):
        return model.new_cache()
    if style == "hooked_dict":
        return model.install_kv_cache_hooks()[0]
    return model.make_cache(batch, 40) if style == "sinks_prealloc" else None


@torch.no_grad()
def at_once(style, model, tokens):
    """Logits of the whole sequence without a cache."""
    if style == "buffers_start_pos":
        return model(tokens, 0)
    if style == "ring_window":
        return model(tokens, torch.arange(tokens.shape[1]))
    return _first(model(tokens))


def _first(result):
    if isinstance(result, tuple):
        return result[0]
    return getattr(result, "logits", result)
