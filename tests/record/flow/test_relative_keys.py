"""Rows for the distance of a query to each key, added to keys and values: they are neither."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check

IDS = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(1))


def with_table(rows, table):
    """Rows of queries [batch, heads, new, size] times those of a table for each query."""
    batch, heads, new, size = rows.shape
    turned = rows.permute(2, 0, 1, 3).reshape(new, batch * heads, size) @ table
    return turned.view(new, batch, heads, -1).permute(1, 2, 0, 3)


def in_einsum(rows, table):
    return torch.einsum("bhqd,qdk->bhqk", rows, table)


class Distances(nn.Module):
    """A table with rows for distances up to 4, whose rows stand beside keys, and values."""

    def __init__(self, product, *, values, first=False):
        super().__init__()
        torch.manual_seed(0)
        self.product, self.values, self.first = product, values, first
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.near, self.mixed = (nn.Embedding(9, 8) for _ in range(2))

    def forward(self, ids, past=None):
        x, kept = self.embed(ids), []
        start = 0 if past is None else past[0][0].shape[2]
        rows = start + ids.shape[1]
        places = torch.arange(rows)
        far = (places - places[start:, None]).clamp(-4, 4) + 4
        for number, layer in enumerate(self.layers):
            q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in layer(x).chunk(3, -1))
            if past is not None:
                k, v = (torch.cat(two, 2) for two in zip(past[number], (k, v), strict=True))
            kept.append((k, v))
            content, beside = q @ k.mT, self.product(q, self.near(far).mT)
            scores = beside + content if self.first else content + beside
            scores = (scores * 8**-0.5).masked_fill(places > places[start:, None], -1e18)
            weights = scores.softmax(-1)
            mixed = weights @ v
            if self.values:
                mixed.add_(self.product(weights, self.mixed(far)))
            x = x + mixed.transpose(1, 2).flatten(2)
        return self.head(x), kept


@pytest.mark.parametrize(("values", "first"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("product", [with_table, in_einsum])
@pytest.mark.parametrize(("batch", "prompt"), [(1, 9), (1, 1), (2, 9)])
@torch.no_grad()
def test_rows_of_distances_to_a_single_query_are_no_rows_of_the_cache(
    batch, prompt, product, values, first, tmp_path
):
    model, ids = Distances(product, values=values, first=first).eval(), IDS[:batch]
    with kvtrace.record(model, tmp_path / "a.kvt"):
        _, past = model(ids[:, :prompt])
        for end in range(prompt + 1, 13):
            _, past = model(ids[:, end - 1 : end], past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [(one.num_heads, one.key_dim) for one in trace.meta.sites] == [(2, 8), (2, 8)]
    for layer, held in enumerate(past):
        given = trace.cache(trace.numbers[-1], layer, batch - 1)
        for rows, kept in zip((given.keys, given.values), held, strict=True):
            assert torch.equal(torch.tensor(rows), kept[-1])
    report = check(trace)
    assert (report.verdict, report.findings) == ("equal within rounding", ())
