"""Queries and outputs in whose memory a model goes on: other lanes keep what they were."""

import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import EQUAL, check


class GoesOn(nn.Module):
    """Adds to what came of attention, and to its queries, in their own memory."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.rows, self.head = (
            nn.Embedding(20, 16),
            nn.Linear(16, 48),
            nn.Linear(16, 20),
        )

    def forward(self, ids, past=None):
        x = self.embed(ids)
        q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in self.rows(x).chunk(3, -1))
        if past is not None:
            k, v = (torch.cat(two, 2) for two in zip(past, (k, v), strict=True))
        places = torch.arange(k.shape[2])
        hidden = places > places[-q.shape[2] :, None]
        mixed = (q @ k.mT * 8**-0.5).masked_fill(hidden, -1e9).softmax(-1) @ v
        mixed.add_(q)
        q.mul_(mixed)
        return self.head(x + (mixed + q).transpose(1, 2).flatten(2)), (k, v)


@torch.no_grad()
def test_what_is_added_to_an_output_in_place_is_no_part_of_it(tmp_path):
    model, ids = GoesOn().eval(), torch.arange(12)[None]
    with kvtrace.record(model, tmp_path / "a.kvt"):
        _, past = model(ids[:, :9])
        for end in (10, 11, 12):
            _, past = model(ids[:, end - 1 : end], past)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.steps, report.findings) == (EQUAL, 4, ())
