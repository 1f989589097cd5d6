"""A model that gives logits of one row: of the one that it is told, or of the last."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check

IDS = torch.randint(0, 20, (1, 7), generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """Its cache is written in place; with `wrong` its head looks at the cache."""

    def __init__(self, wrong):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.rows, self.head = (
            nn.Embedding(20, 16),
            nn.Linear(16, 48),
            nn.Linear(16, 20),
        )
        self.wrong = wrong

    def forward(self, ids, cache, places, wanted=None):
        x = self.embed(ids)
        q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in self.rows(x).chunk(3, -1))
        cache[0].index_copy_(2, places, k)
        cache[1].index_copy_(2, places, v)
        scores = q @ cache[0].mT / 8**0.5
        later = torch.arange(cache[0].shape[2]) > places[:, None]
        weights = scores.masked_fill(later, -1e9).softmax(-1)
        x = x + (weights @ cache[1]).transpose(1, 2).flatten(2)
        last = x[:, -1:] if wanted is None else x.index_select(1, wanted)
        if self.wrong and places[0] == 9:
            last = last + 1
        return self.head(last)[:, 0]


def run(path, told, wrong):
    model, cache = Model(wrong).eval(), torch.zeros(2, 1, 2, 16, 8).unbind(0)
    ids, places = IDS, torch.arange(7)
    with torch.no_grad(), kvtrace.record(path):
        for _ in range(4):
            wanted = torch.tensor([ids.shape[1] - 1]) if told else None
            ids = model(ids, cache, places, wanted).argmax(-1, keepdim=True)
            places = places[-1:] + 1
    return check(kvtrace.open(path))


def test_logits_of_the_row_that_a_prompt_asked_for_are_not_taken_for_the_last(tmp_path):
    assert run(tmp_path / "run.kvt", told=True, wrong=False).verdict == "equal within rounding"


@pytest.mark.parametrize(("wrong", "found"), [(False, []), (True, ["UPSTREAM"])])
def test_logits_of_the_last_row_are_compared(tmp_path, wrong, found):
    report = run(tmp_path / "run.kvt", told=False, wrong=wrong)
    assert [one.name for one in report.findings] == found
