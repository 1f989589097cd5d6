"""Layers of attention one over the other, decoded with a list of what each of them keeps."""

import torch
from torch import nn

from builders.attentions import token_ids


class Stacked(nn.Module):
    """Two layers of a kind between an embedding and a head."""

    def __init__(self, make, width):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, width)
        self.layers = nn.ModuleList(make() for _ in range(2))
        self.head = nn.Linear(width, 50)

    def forward(self, ids, past=None):
        x, cache = self.embed(ids), []
        for number, layer in enumerate(self.layers):
            out, kept = layer(x, None if past is None else past[number])
            x, cache = x + out, [*cache, kept]
        return self.head(x), cache


@torch.no_grad()
def decoded(model, steps):
    """Logits of a prompt of 6 tokens in 2 sequences, and of some single tokens after it."""
    logits, past = model(token_ids(2, 6))
    found = [logits]
    for _ in range(steps):
        logits, past = model(logits[:, -1:].argmax(-1), past)
        found.append(logits)
    return found
