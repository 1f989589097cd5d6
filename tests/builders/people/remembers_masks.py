"""No cache of keys; what it keeps from call to call is masks."""

import torch
from parts import LAYERS, Core


class Masks:
    def __init__(self):
        self.made = {}

    def of(self, size):
        if size not in self.made:
            self.made[size] = torch.ones(size, size, dtype=torch.bool).tril()
        return self.made[size]


class Remembering(Core):
    def __init__(self):
        super().__init__()
        self.masks = Masks()

    def clear_mask_cache(self):
        self.masks.made.clear()

    def forward(self, x):
        h = self.embed(x, torch.arange(x.shape[1]))
        for n in range(LAYERS):
            h = self.mix(n, h, *self.project(n, h), self.masks.of(x.shape[1]))
        return self.head(h)


def build():
    return Remembering()
