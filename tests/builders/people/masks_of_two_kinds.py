"""A causal mask that is added, and one of padding; both may be left out, and then all is seen."""

import torch
from parts import LAYERS, Core


class Masked(Core):
    def forward(self, tokens, attn_mask=None, padding_mask=None):
        h = self.embed(tokens, torch.arange(tokens.shape[1]))
        shown = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool)
        if attn_mask is not None:
            shown = ~attn_mask  # True hides, as in nn.MultiheadAttention
        if padding_mask is not None:
            shown = shown & ~padding_mask.view(1, 1, 1, tokens.shape[1])
        for n in range(LAYERS):
            h = self.mix(n, h, *self.project(n, h), shown)
        return self.head(h)


def build():
    return Masked()
