"""All heads share one set of keys, which has no axis for them; a cached step has one query."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check

IDS = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(1))


class Attend(nn.Module):
    """Is given queries [batch, heads, new, dim] and keys [batch, rows, dim]."""

    def forward(self, q, k, v):
        scores = torch.einsum("bhid,bjd->bhij", q, k) * 8**-0.5
        later = torch.ones(q.shape[2], k.shape[1]).triu(1 + k.shape[1] - q.shape[2]).bool()
        weights = scores.masked_fill(later, -torch.finfo(scores.dtype).max).softmax(-1)
        return torch.einsum("bhij,bjd->bhid", weights, v)


class Attention(nn.Module):
    def __init__(self, heads, apart):
        super().__init__()
        self.query, self.rows = nn.Linear(16, heads * 8, bias=False), nn.Linear(16, 16, bias=False)
        self.attend = Attend() if apart else Attend().forward
        self.out, self.heads = nn.Linear(heads * 8, 16), heads

    def forward(self, x, past):
        q = self.query(x).unflatten(-1, (self.heads, 8)).transpose(1, 2)
        k, v = self.rows(x).chunk(2, -1)
        if past is not None:
            k, v = (torch.cat(two, 1) for two in zip(past, (k, v), strict=True))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2)), (k, v)


class Model(nn.Module):
    """Is given all tokens at every step, and takes the new ones itself."""

    def __init__(self, heads, apart):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(20, 16), nn.Embedding(20, 16)
        self.layers = nn.ModuleList(Attention(heads, apart) for _ in range(2))
        self.head = nn.Linear(16, 20)

    def forward(self, ids, cache=None):
        held = 0 if cache is None else cache[0][0].shape[1]
        x, kept = (self.embed(ids) + self.places(torch.arange(ids.shape[1])))[:, held:], []
        for number, layer in enumerate(self.layers):
            out, rows = layer(x, None if cache is None else cache[number])
            x, kept = x + out, [*kept, rows]
        return self.head(x), kept


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("heads", [3, 4, 6])
@torch.no_grad()
def test_heads_that_share_keys_are_no_queries_of_a_cached_step(heads, batch, apart, tmp_path):
    model, cache = Model(heads, apart).eval(), None
    with kvtrace.record(model, tmp_path / "a.kvt"):
        for end in (7, 8, 9, 10):
            _, cache = model(IDS[:batch, :end], cache)
    trace = kvtrace.open(tmp_path / "a.kvt")
    sites = [(one.num_heads, one.num_kv_heads) for one in trace.meta.sites]
    assert sites == [(heads, 1), (heads, 1)]
    assert [trace.queries(number, 0).shape[1] for number in trace.numbers] == [7, 1, 1, 1]
    report = check(trace)
    assert (report.verdict, report.steps, report.findings) == ("equal within rounding", 4, ())
