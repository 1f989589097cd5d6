"""Rows that a model makes of something else than ids, such as an image, and puts before a text."""

from __future__ import annotations

import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.report import EQUAL
from kvtrace.analysis.checks.verdict import check


class Seeing(nn.Module):
    """An image becomes four rows, which see each other; the text after them sees all before it."""

    skipped = 0
    """How many positions a later step is told too few."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.embed, self.head = nn.Linear(6, 16), nn.Embedding(20, 16), nn.Linear(16, 20)
        self.places = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))

    def forward(self, pixels, input_ids, past=None):
        x = self.embed(input_ids)
        start = 0 if past is None else past[0][0].shape[2]
        if past is None:
            x = torch.cat([self.eye(pixels), x], 1)
        new = x.shape[1]
        mask = torch.ones(new, start + new, dtype=torch.bool).tril(start)
        if past is None:
            mask[:4, :4] = True
        x = x + self.places(torch.arange(start, start + new) - (self.skipped if start else 0))
        kept = []
        for number, layer in enumerate(self.layers):
            q, k, v = layer(x).view(1, new, 3, 2, 8).permute(2, 0, 3, 1, 4)
            if past is not None:
                k, v = torch.cat([past[number][0], k], 2), torch.cat([past[number][1], v], 2)
            kept.append((k, v))
            weights = (q @ k.mT / 8**0.5).masked_fill(~mask, -torch.inf).softmax(-1)
            x = x + (weights @ v).transpose(1, 2).flatten(2)
        return self.head(x), kept


class Skipping(Seeing):
    """Forgets the image's first row when it counts on."""

    skipped = 1


def described(model, path):
    torch.manual_seed(0)
    model = model().eval()
    with torch.no_grad(), kvtrace.record(path):
        logits, past = model(torch.randn(1, 4, 6), torch.tensor([[3, 1, 4]]))
        for _ in range(3):
            logits, past = model(None, logits[:, -1:].argmax(-1), past)
    return kvtrace.open(path)


def test_they_are_rows_of_no_known_token_and_are_made_again_with_the_text(tmp_path):
    trace = described(Seeing, tmp_path / "a.kvt")
    assert trace.step(0).tokens == ((-1,) * 7,)
    assert [trace.cache_step(n, 1).length_after for n in range(4)] == [7, 8, 9, 10]
    assert check(trace).verdict == EQUAL
    compared = [trace.compared(n, "recomputed") for n in range(4)]
    assert all(one is not None and (one.max_abs >= 0).all() for one in compared)


def test_a_position_that_leaves_one_of_them_out_is_found(tmp_path):
    found = check(described(Skipping, tmp_path / "a.kvt")).findings[0]
    assert (found.name, found.step, found.layer) == ("POSITION-EMBEDDING", 1, 0)
