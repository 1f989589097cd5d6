"""Ways of generating, each as a function of a model that returns what to run."""

from __future__ import annotations

import torch

from builders.device import DEVICE
from builders.tiny_models import tiny_model

IDS = torch.tensor([[7, 3, 21, 9, 30, 14, 7, 3, 21, 9, 5, 40]], device=DEVICE)
PADDED = torch.ones(2, 12, dtype=torch.long, device=DEVICE)
PADDED[0, :4] = 0


def ready(model):
    """Without an end of the text, so that every run is as long as it was asked to be."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def generate(model, **options):
    return lambda: model.generate(IDS, **{"do_sample": False, "max_new_tokens": 6, **options})


def padded(model, **options):
    """Two sequences, the first with four hidden tokens at its left."""
    given = {"do_sample": False, "max_new_tokens": 5, "attention_mask": PADDED, **options}
    return lambda: model.generate(IDS.repeat(2, 1), **given)


def assisted(model, **options):
    return generate(model, assistant_model=another(model), max_new_tokens=12, **options)


def another(model):
    """A model of the same kind with other weights."""
    return ready(tiny_model(model.config.model_type, seed=3))


def own_loop(model, ids=IDS, **_):
    """A loop as people write it: it calls the model itself."""
    cache, now = None, ids
    for _ in range(4):
        out = model(now, past_key_values=cache, use_cache=True)
        cache, now = out.past_key_values, out.logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, now], dim=1)
    return ids


def rolled_back(model):
    """Six tokens, the last two taken back, another one."""
    cache = None
    for tokens in ([7, 3, 21], [9, 30, 14]):
        cache = model(IDS.new_tensor([tokens]), past_key_values=cache).past_key_values
    cache.crop(-2)
    return model(IDS.new_tensor([[5]]), past_key_values=cache).logits


def contrastive(model, candidates=3):
    """At each step all of the likeliest tokens are tried, and one sequence goes on."""
    from transformers import DynamicCache

    cache, ids = DynamicCache(config=model.config), IDS
    logits = model(ids, past_key_values=cache).logits[:, -1]
    for _ in range(3):
        tried = logits.topk(candidates).indices.reshape(candidates, 1)
        cache.batch_repeat_interleave(candidates)
        out = model(tried, past_key_values=cache).logits[:, -1]
        best = out.max(-1).values.argmax().reshape(1)
        cache.batch_select_indices(best)
        ids, logits = torch.cat([ids, tried[best]], dim=1), out[best]
    return ids


def two_turns(model):
    from transformers import DynamicCache

    cache, options = DynamicCache(config=model.config), {"do_sample": False, "max_new_tokens": 3}
    first = model.generate(IDS, past_key_values=cache, **options)
    more = torch.cat([first, IDS.new_tensor([[11, 12, 13]])], dim=1)
    return model.generate(more, past_key_values=cache, **options)


WAYS = {
    "greedy": generate,
    "sampling three": lambda m: generate(m, do_sample=True, num_return_sequences=3),
    "beams": lambda m: generate(m, num_beams=3),
    "beams of a padded batch": lambda m: padded(m, num_beams=3),
    "beam sampling": lambda m: generate(m, do_sample=True, num_beams=3, num_return_sequences=2),
    "assisted": assisted,
    "assisted sampling": lambda m: assisted(m, do_sample=True),
    "assisted by itself": lambda m: generate(m, assistant_model=m, max_new_tokens=12),
    "early exit": lambda m: generate(m, assistant_early_exit=2),
    "prompt lookup": lambda m: generate(m, prompt_lookup_num_tokens=3, max_new_tokens=12),
    "chunked prefill": lambda m: generate(m, prefill_chunk_size=5),
    "left padding": padded,
    "left padding, static": lambda m: padded(m, cache_implementation="static"),
    "left padding, no cache": lambda m: padded(m, use_cache=False),
    "two texts at once": lambda m: generate(m, guidance_scale=1.5),
    "no cache": lambda m: generate(m, use_cache=False),
    "static": lambda m: generate(m, cache_implementation="static"),
    "static, chunked": lambda m: generate(m, cache_implementation="static", prefill_chunk_size=5),
    "static beams": lambda m: generate(m, cache_implementation="static", num_beams=2),
    "a loop of one's own": lambda m: lambda: own_loop(m),
    "a loop handed to generate": lambda m: generate(m, custom_generate=own_loop),
    "contrastive": lambda m: lambda: contrastive(m),
    "rolled back": lambda m: lambda: rolled_back(m),
    "two turns": lambda m: lambda: two_turns(m),
}
