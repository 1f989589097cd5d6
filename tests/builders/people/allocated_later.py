"""`kv_cache` is an object that gets its memory by a call of its own, before the first forward."""

import torch
from parts import HEADS, LAYERS, WIDTH, Core


class KVCache:
    def __init__(self, batch_size, num_heads, seq_len, head_dim, num_layers):
        self.shape = (num_layers, 2, batch_size, num_heads, seq_len, head_dim)
        self.rows, self.pos = None, 0

    def reset(self):
        self.pos = 0

    def init_cache(self, dtype, device):
        self.rows = torch.zeros(self.shape, dtype=dtype, device=device)

    def insert(self, layer, k, v):
        assert self.rows is not None, "call init_cache() first"
        end = self.pos + k.shape[2]
        self.rows[layer, 0, :, :, self.pos : end] = k
        self.rows[layer, 1, :, :, self.pos : end] = v
        return self.rows[layer, :, :, :, :end]


class GPT(Core):
    def __init__(self):
        super().__init__()
        self.n_head, self.n_layer, self.n_embd = HEADS, LAYERS, WIDTH

    def forward(self, idx, targets=None, kv_cache=None):
        start = 0 if kv_cache is None else kv_cache.pos
        x = self.embed(idx, torch.arange(start, start + idx.shape[1]))
        for n in range(LAYERS):
            q, k, v = self.project(n, x)
            if kv_cache is not None:
                k, v = kv_cache.insert(n, k, v)
            x = self.mix(n, x, q, k, v)
        if kv_cache is not None:
            kv_cache.pos += idx.shape[1]
        return self.head(x)


def build():
    return GPT()
