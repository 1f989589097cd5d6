"""Caches whose layers are rows in a table, or lie side by side in one long row each."""

import torch
from torch import nn

import kvtrace


class Table:
    """Looks like a cache of transformers; its layers are pairs in a dictionary."""

    def __init__(self):
        self.layers = {}

    def get_seq_length(self):
        return self.layers[0][0].shape[2] if self.layers else 0

    def update(self, k, v, layer):
        if layer in self.layers:
            k, v = (torch.cat(pair, 2) for pair in zip(self.layers[layer], (k, v), strict=True))
        self.layers[layer] = (k, v)
        return k, v


class Tabled(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.qkv, self.head = nn.Embedding(48, 32), nn.Linear(32, 96), nn.Linear(32, 48)

    def forward(self, input_ids, past_key_values=None):
        q, k, v = self.qkv(self.embed(input_ids)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, 0)
        hidden = torch.ones(q.shape[2], k.shape[2]).triu(k.shape[2] - q.shape[2] + 1).bool()
        weights = (q @ k.mT * 8**-0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        return self.head((weights @ v).transpose(1, 2).flatten(2))


@torch.no_grad()
def decode(model):
    past, new = Table(), torch.tensor([[5, 9, 30]])
    for _ in range(4):
        new = model(new, past)[:, -1:].argmax(-1)


def test_a_cache_whose_layers_are_pairs_in_a_dictionary_is_read():
    model = Tabled().eval()
    assert kvtrace.check(model, run=lambda: decode(model)).verdict == "equal within rounding"


class Flat(nn.Module):
    """Keeps the heads of a token side by side in one row of a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.qkv, self.head = nn.Embedding(48, 32), nn.Linear(32, 96), nn.Linear(32, 48)
        self.register_buffer("kv", torch.zeros(2, 40, 32))

    def forward(self, tokens, start_pos=0):
        q, *new = self.qkv(self.embed(tokens[0])).chunk(3, -1)
        end = start_pos + len(q)
        for one, rows in zip(self.kv, new, strict=True):
            one[start_pos:end] = rows
        k, v = self.kv[:, :end].view(2, end, 4, 8)
        weights = torch.einsum("thd,shd->hts", q.view(-1, 4, 8), k) * 8**-0.5
        hidden = torch.ones(len(q), end).triu(start_pos + 1).bool()
        weights = weights.masked_fill(hidden, -torch.inf).softmax(-1)
        return self.head(torch.einsum("hts,shd->thd", weights, v).flatten(1))[None]


def test_heads_side_by_side_in_a_buffer_are_found_from_a_single_token():
    assert kvtrace.check(Flat().eval(), [5], new_tokens=4).verdict == "equal within rounding"
