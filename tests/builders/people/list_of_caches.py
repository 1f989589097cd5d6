"""A list with a cache object for each layer, told by the annotation only; `pos` is a number."""

from __future__ import annotations

import torch
from parts import LAYERS, Core


class LayerMemory:
    def __init__(self):
        self.k = self.v = None

    def extend(self, k, v):
        self.k = k if self.k is None else torch.cat((self.k, k), 2)
        self.v = v if self.v is None else torch.cat((self.v, v), 2)
        return self.k, self.v


class Listed(Core):
    def forward(self, tokens, pos=0, caches: list[LayerMemory] | None = None):
        x = self.embed(tokens, torch.arange(pos, pos + tokens.shape[1]))
        for n in range(LAYERS):
            q, k, v = self.project(n, x)
            if caches is not None:
                k, v = caches[n].extend(k, v)
            x = self.mix(n, x, q, k, v)
        return self.head(x)


def build():
    return Listed()
