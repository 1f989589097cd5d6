"""`setup_caches(max_batch_size, max_seq_length)` must be called; then `forward(idx, input_pos)`."""

import torch
from parts import HEADS, LAYERS, WIDTH, Core
from torch import nn


class KVCache(nn.Module):
    def __init__(self, batch, length):
        super().__init__()
        self.register_buffer("k", torch.zeros(batch, HEADS, length, WIDTH // HEADS))
        self.register_buffer("v", torch.zeros(batch, HEADS, length, WIDTH // HEADS))

    def update(self, places, k, v):
        self.k[:, :, places], self.v[:, :, places] = k, v
        return self.k, self.v


class Transformer(Core):
    def __init__(self):
        super().__init__()
        self.caches = None

    def setup_caches(self, max_batch_size, max_seq_length):
        self.caches = nn.ModuleList(KVCache(max_batch_size, max_seq_length) for _ in range(LAYERS))
        self.mask = torch.ones(max_seq_length, max_seq_length, dtype=torch.bool).tril()

    def forward(self, idx, input_pos=None):
        assert self.caches is not None, "caches must be set up first"
        x = self.embed(idx, input_pos)
        for n in range(LAYERS):
            q, k, v = self.project(n, x)
            x = self.mix(n, x, q, *self.caches[n].update(input_pos, k, v), self.mask[input_pos])
        return self.head(x)


def build():
    return Transformer()
