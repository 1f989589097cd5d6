"""What the cache of each custom model really holds, read from its own objects and nothing else.

A reader gives, per layer, keys and values [sequences, kv_heads, rows, dim] as the next attention
will be given them, in slot order, with the positions of the rows.
"""

from __future__ import annotations

import torch


def own_cache(style, model, cache, past, batch=1):
    """Per layer (keys, values, positions) after `past` tokens."""
    found = READERS[style](model, cache, past)
    return [(keys[:batch], values[:batch], positions) for keys, values, positions in found]


def _plain(keys, values, past):
    return keys.clone(), values.clone(), list(range(past))


def _tuples(model, cache, past):
    return [_plain(keys, values, past) for keys, values in cache]


def _merged(model, cache, past):
    heads = model.attention[0].heads
    split = [[x.unflatten(0, (-1, heads)) for x in pair] for pair in cache]
    return [_plain(keys, values, past) for keys, values in split]


def _buffers(model, cache, past):
    found = []
    for layer in model.layers:
        own = layer.attention
        pair = [x[:, :past].transpose(1, 2) for x in (own.cache_k, own.cache_v)]
        found.append(_plain(*pair, past))
    return found


def _index_copy(model, cache, past):
    owns = [layer.attention.kv_cache for layer in model.layers]
    return [_plain(own.k_cache[:, :, :past], own.v_cache[:, :, :past], past) for own in owns]


def _ring(model, cache, past):
    found = []
    for layer in model.layers:
        own = layer.attention
        filled = own.slot_pos >= 0
        pair = [x[:, :, filled].clone() for x in (own.keys, own.values)]
        found.append((*pair, own.slot_pos[filled].tolist()))
    return found


def _named(model, cache, past):
    count = len(model.attn)
    return [_plain(cache[f"layer{n}.k"], cache[f"layer{n}.v"], past) for n in range(count)]


def _inside(model, cache, past):
    pairs = [[x.transpose(1, 2) for x in own.kept] for own in model.attention]
    return [_plain(*pair, past) for pair in pairs]


def _latent(model, cache, past):
    """Keys are the latent and the rotary key side by side, values the latent: one kv head."""
    return [_plain(torch.cat(pair, -1)[:, None], pair[0][:, None], past) for pair in cache]


def _unrotated(model, cache, past):
    from kvtrace_fixtures.custom.unrotated_keys import rope

    found = []
    for keys, values in cache:
        count = keys.shape[2]
        rotated = rope(keys, torch.arange(count))
        found.append((rotated, values.clone(), list(range(past - count, past))))
    return found


def _hooked(model, cache, past):
    """Keys are scaled after they are read from the cache."""
    found = []
    for block in model.blocks:
        own = block.attn
        keys, values = (
            cache[part].unflatten(-1, (own.n_head, -1)).transpose(1, 2)
            for part in (own.key, own.value)
        )
        scale = (own.n_head * keys.shape[-1] // own.n_head) ** -0.25
        found.append(_plain(keys * scale, values, past))
    return found


def _prealloc(model, cache, past):
    return [_plain(*layer[:, :, :past].transpose(2, 3), past) for layer in cache]


def _trees(model, cache, past):
    return [_plain(layer["k"][None], layer["v"][None], past) for layer in cache]


READERS = {
    "tuple_cat": _tuples,
    "gqa_interleave": _tuples,
    "relative_bias": _tuples,
    "alibi": _merged,
    "latent_mla": _latent,
    "buffers_start_pos": _buffers,
    "index_copy": _index_copy,
    "ring_window": _ring,
    "softcap": _named,
    "einsum_heads": _inside,
    "unrotated_keys": _unrotated,
    "hooked_dict": _hooked,
    "sinks_prealloc": _prealloc,
    "plain_functions": _trees,
}
