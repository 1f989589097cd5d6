"""The caller makes the mask, True where a token may look; no cache."""

import torch
from parts import LAYERS, Core


class Masked(Core):
    def forward(self, x, mask):
        h = self.embed(x, torch.arange(x.shape[1]))
        everything = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        for n in range(LAYERS):
            h = self.mix(n, h, *self.project(n, h), everything if mask is None else mask)
        return self.head(h)


def build():
    return Masked()
