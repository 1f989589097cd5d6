"""Keys and values that are all zero look the same for all heads, and are as many as ever."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kvtrace

HEADS, DIM = 4, 8
WIDTH = HEADS * DIM


class Attention(nn.Module):
    """Repeats its keys and values for every query head."""

    def __init__(self, kv_heads, fused):
        super().__init__()
        self.kv_heads, self.fused = kv_heads, fused
        self.queries = nn.Linear(WIDTH, WIDTH, bias=False)
        self.keys = nn.Linear(WIDTH, kv_heads * DIM, bias=False)
        self.values = nn.Linear(WIDTH, kv_heads * DIM, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x, past):
        q, k, v = (
            made(x).unflatten(-1, (-1, DIM)).transpose(1, 2)
            for made in (self.queries, self.keys, self.values)
        )
        if past is not None:
            k, v = (torch.cat(two, 2) for two in zip(past, (k, v), strict=True))
        wide = [rows.repeat_interleave(HEADS // self.kv_heads, 1) for rows in (k, v)]
        seen = torch.ones(q.shape[2], k.shape[2]).tril(k.shape[2] - q.shape[2]).bool()
        if self.fused:
            y = F.scaled_dot_product_attention(q, *wide, attn_mask=seen)
        else:
            scores = (q @ wide[0].mT * DIM**-0.5).masked_fill(~seen, -torch.inf)
            y = scores.softmax(-1) @ wide[1]
        return self.out(y.transpose(1, 2).flatten(2)), (k, v)


class Model(nn.Module):
    """Its padding is all zero, and has no position."""

    def __init__(self, kv_heads, fused):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, WIDTH, padding_idx=0)
        self.layers = nn.ModuleList(Attention(kv_heads, fused) for _ in range(2))
        self.head = nn.Linear(WIDTH, 20)

    def forward(self, ids, cache=(None, None)):
        x, kept = self.embed(ids), []
        for layer, past in zip(self.layers, cache, strict=True):
            out, rows = layer(x, past)
            x, kept = x + out, [*kept, rows]
        return self.head(x), kept


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_zeros_have_as_many_kv_heads_as_the_rows_after_them(kv_heads, fused, tmp_path):
    model, path = Model(kv_heads, fused), tmp_path / "run.kvt"
    with torch.no_grad(), kvtrace.record(model, path):
        _, cache = model(torch.zeros(1, 3, dtype=torch.long))
        for token in (5, 7, 9, 11):
            _, cache = model(torch.tensor([[token]]), cache)
    trace = kvtrace.open(path)
    assert [site.num_kv_heads for site in trace.meta.sites] == [kv_heads] * 2
    for step, site in ((n, site) for n in range(5) for site in (0, 1)):
        view, (keys, values) = trace.cache(step, site, 0), cache[site]
        assert torch.equal(torch.from_numpy(view.keys.copy()), keys[0, :, : 3 + step])
        assert torch.equal(torch.from_numpy(view.values.copy()), values[0, :, : 3 + step])
