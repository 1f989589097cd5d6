"""Scores that are two products: queries with keys, and queries with a table of distances."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check

IDS = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(1))


class Relative(nn.Module):
    """Time first; a row of the table for each distance, made anew at each call."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.table = nn.ModuleList(nn.Linear(8, 16) for _ in range(2))
        self.content, self.distance = (nn.Parameter(torch.randn(2, 8)) for _ in range(2))

    def forward(self, ids, past=None):
        x, kept = self.embed(ids).transpose(0, 1), []
        start = 0 if past is None else len(past[0][0])
        new, rows = len(x), start + len(x)
        angles = torch.arange(rows - 1, -1, -1.0)[:, None] / 10 ** torch.arange(4)
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        for number, (layer, table) in enumerate(zip(self.layers, self.table, strict=True)):
            q, k, v = (one.unflatten(-1, (2, 8)) for one in layer(x).chunk(3, -1))
            if past is not None:
                k, v = (torch.cat(two) for two in zip(past[number], (k, v), strict=True))
            kept.append((k, v))
            far = table(waves).unflatten(-1, (2, 8))
            scores = torch.einsum("ibnd,jbnd->ijbn", q + self.content, k)
            beside = torch.einsum("ibnd,jnd->ijbn", q + self.distance, far)
            scores = (scores + self.shifted(beside)) * 8**-0.5
            later = torch.ones(new, rows).triu(1 + start).bool()
            weights = scores.masked_fill(later[..., None, None], -1e30).softmax(1)
            x = x + torch.einsum("ijbn,jbnd->ibnd", weights, v).flatten(2)
        return self.head(x.transpose(0, 1)), kept

    @staticmethod
    def shifted(scores):
        padded = torch.cat([torch.zeros_like(scores[:, :1]), scores], 1)
        turned = padded.view(scores.shape[1] + 1, scores.shape[0], *scores.shape[2:])
        return turned[1:].view_as(scores)


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_a_table_of_distances_is_a_bias_and_its_rows_are_no_keys(batch, tmp_path):
    model, ids, seen = Relative().eval(), IDS[:batch], []
    with kvtrace.record(model, tmp_path / "a.kvt"):
        _, past = model(ids[:, :9])
        for end in (10, 11, 12):
            _, past = model(ids[:, end - 1 : end], past)
            seen.append([one.clone() for one in past[1]])
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [(one.num_heads, one.key_dim) for one in trace.meta.sites] == [(2, 8), (2, 8)]
    for number, (keys, values) in enumerate(seen, start=1):
        given = trace.cache(number, 1, batch - 1)
        for rows, held in ((given.keys, keys), (given.values, values)):
            assert torch.equal(torch.tensor(rows), held[:, -1].transpose(0, 1))
    report = check(trace)
    assert (report.verdict, report.steps, report.findings) == ("equal within rounding", 4, ())
