"""What the models here have in common, so that all must say the same: weights, and attention.

`Core.full` is the naive reference: no cache, all tokens at once.
"""

import torch
from torch import nn

VOCAB, WIDTH, HEADS, LAYERS, CONTEXT = 256, 32, 4, 2, 64


class Core(nn.Module):
    """Embeddings, two layers of attention, a head."""

    def __init__(self, vocab=VOCAB):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.wte, self.wpe = nn.Embedding(vocab, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(LAYERS))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, vocab, bias=False)
        for one in self.parameters():
            one.data = torch.randn(one.shape, generator=generator) * 0.3

    def embed(self, ids, places):
        return self.wte(ids) + self.wpe(places)

    def project(self, layer, x):
        """q, k, v of a layer, [batch, heads, new, dim]."""
        parts = self.qkv[layer](x).split(WIDTH, dim=-1)
        return [one.view(*x.shape[:2], HEADS, -1).transpose(1, 2) for one in parts]

    def mix(self, layer, x, q, k, v, mask=None):
        """Attention over all keys given, the last of which are the new tokens."""
        new, seq = q.shape[2], k.shape[2]
        if mask is None:
            mask = torch.ones(new, seq, dtype=torch.bool).tril(seq - new)
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return x + self.out[layer]((weights @ v).transpose(1, 2).flatten(2))

    def full(self, ids):
        """Logits of all rows, [batch, tokens, vocab]."""
        x = self.embed(ids, torch.arange(ids.shape[1]))
        for layer in range(LAYERS):
            x = self.mix(layer, x, *self.project(layer, x))
        return self.head(x)

    def grown(self, ids, past, start):
        """Logits, and the (k, v) of each layer with the new rows at the end of `past`."""
        x = self.embed(ids, torch.arange(start, start + ids.shape[1]))
        rows = []
        for layer in range(LAYERS):
            q, k, v = self.project(layer, x)
            if past is not None and past[layer] is not None:
                k = torch.cat((past[layer][0], k), 2)
                v = torch.cat((past[layer][1], v), 2)
            x = self.mix(layer, x, q, k, v)
            rows.append((k, v))
        return self.head(x), rows


def length(past):
    """Rows in a list of (k, v)."""
    return past[0][0].shape[2] if past and past[0] is not None else 0
