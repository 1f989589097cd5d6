"""Masks that a caller makes for each call: of one token they tell little, and still they grow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check

IDS = torch.tensor([[5, 9, 3, 7, 11, 4], [1, 2, 3, 4, 5, 6]])


def shown(mask):
    return mask


def hidden(mask):
    return ~mask


def added(mask):
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


def of_four_axes(mask):
    return added(mask)[None, None]


def whole_numbers(mask):
    return mask.long()[None, None]


FORMS = [shown, hidden, added, of_four_axes, whole_numbers]


class Model(nn.Module):
    """A cache inside; who sees whom is an argument."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places, self.form = nn.Embedding(20, 16), nn.Embedding(20, 16), form
        self.layers, self.head = (
            nn.ModuleList(nn.Linear(16, 48) for _ in range(2)),
            nn.Linear(16, 20),
        )
        self.kept = {}

    def forward(self, ids, start_pos, mask):
        return self.run(ids, start_pos, mask)

    def run(self, ids, start_pos, mask):
        x = self.embed(ids) + self.places(torch.arange(start_pos, start_pos + ids.shape[1]))
        for number, layer in enumerate(self.layers):
            q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in layer(x).chunk(3, -1))
            if start_pos:
                k, v = (torch.cat(two, 2) for two in zip(self.kept[number], (k, v), strict=True))
            self.kept[number] = k, v
            weights = self.masked(q @ k.mT / 8**0.5, mask).softmax(-1)
            x = x + (weights @ v).transpose(1, 2).flatten(2)
        return self.head(x)

    def masked(self, scores, mask):
        if mask is None:
            return scores
        if mask.is_floating_point():
            return scores + mask
        return scores.masked_fill((mask == 0) == (self.form is not hidden), -torch.inf)


class Optional(Model):
    def forward(self, ids, start_pos=0, mask=None):
        return self.run(ids, start_pos, mask)


class OfKeys(Model):
    def masked(self, scores, mask):
        new, seq = scores.shape[-2:]
        later = torch.ones(new, seq, dtype=torch.bool).triu(seq - new + 1)
        return (scores + mask).masked_fill(later, -torch.inf)


@torch.no_grad()
def judged(model, path, first, sequences, mask_of):
    """The verdict on a text whose first call has so many tokens, and the next ones one each."""
    with kvtrace.record(model.eval(), path):
        for end in range(first, 7):
            start = 0 if end == first else end - 1
            model(IDS[:sequences, start:end], start, mask_of(end - start, end))
    report = check(kvtrace.open(path))
    return report.verdict, report.steps


@pytest.mark.parametrize("sequences", [1, 2])
@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("kind", [Model, Optional])
@pytest.mark.parametrize("form", FORMS)
def test_a_table_of_who_sees_whom_grows_with_the_tokens(form, kind, first, sequences, tmp_path):
    def mask_of(new, seq):
        return form(torch.ones(new, seq, dtype=torch.bool).tril(seq - new))

    found = judged(kind(form), tmp_path / "a.kvt", first, sequences, mask_of)
    assert found == ("equal within rounding", 7 - first)


@pytest.mark.parametrize("first", [1, 3])
def test_a_mask_of_keys_of_four_axes_grows_with_the_tokens(first, tmp_path):
    found = judged(
        OfKeys(None), tmp_path / "a.kvt", first, 2, lambda _, seq: torch.zeros(2, 1, 1, seq)
    )
    assert found == ("equal within rounding", 7 - first)
