"""Drafts that are taken back and fed once more: rows of the same numbers are no earlier ones."""

import torch
from torch import nn

import kvtrace

WIDTH, HEADS, VOCAB = 16, 2, 40


class Model(nn.Module):
    """Its weights are small whole numbers: a row has the same digits, whatever goes in beside."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(30, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        for one in self.parameters():
            one.data = (one.data * 8).round()

    def forward(self, ids, kept):
        start = kept[0].shape[2] if kept else 0
        x = self.tokens(ids) + self.places(torch.arange(start, start + ids.shape[1]))
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if start:
            k, v = torch.cat((kept[0], k), 2), torch.cat((kept[1], v), 2)
        kept[:] = k, v
        hidden = torch.full((q.shape[2], k.shape[2]), -torch.inf).triu(start + 1)
        weights = (q @ k.mT / 1e5 + hidden).softmax(-1)
        return (x + (weights @ v).transpose(1, 2).flatten(2)) @ self.tokens.weight.T


@torch.no_grad()
def draft(model):
    kept = []
    model(torch.tensor([[3, 1, 4]]), kept)
    for token in (7, 8, 9):
        model(torch.tensor([[5, token]]), kept)
        kept[:] = (one[:, :, :-2] for one in kept)
    model(torch.tensor([[5]]), kept)
    model(torch.tensor([[2]]), kept)


def test_a_token_that_makes_the_row_it_made_before_stands_where_it_stood(tmp_path):
    model = Model()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        draft(model)
    trace = kvtrace.open(tmp_path / "a.kvt")

    assert [trace.step(n).positions[0] for n in trace.numbers[1:]] == [(3, 4)] * 3 + [(3,), (4,)]
    report = kvtrace.check(model, run=lambda: draft(model))
    assert report.ok, report
