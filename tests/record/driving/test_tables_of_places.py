"""Models that keep a table of places, which is none of the rows of a cache."""

import uuid

import torch
from torch import nn

from kvtrace.record.driving.trying.search import Search


class SelfAttention(nn.Module):
    """Looks ahead; might keep rows where somebody hands it a dictionary, which nobody does."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.init_incremental_state()
        self.turns = None

    def init_incremental_state(self):
        self.name = str(uuid.uuid4())

    def forward(self, x):
        if self.turns is None or len(self.turns) != x.shape[1]:
            self.turns = torch.outer(torch.arange(x.shape[1]), torch.ones(8) / 9)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        q, k = (self.turned(one) for one in (q, k))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + y.transpose(1, 2).flatten(2)

    def turned(self, rows):
        a, b = rows.chunk(2, -1)
        cos, sin = self.turns.cos(), self.turns.sin()
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class LooksAhead(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(50, 32), nn.Linear(32, 50)
        self.layers = nn.ModuleList(SelfAttention() for _ in range(2))

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


def test_a_table_that_grows_with_the_text_is_no_cache_that_forgets():
    found = Search(LooksAhead().eval()).run()
    assert "no cache was found" in found.said[0]
    assert "its rows change when tokens are added" in found.said[1]
