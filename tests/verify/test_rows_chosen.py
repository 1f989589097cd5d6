"""Caches that score rows and keep some for each head, as SnapKV does, and what is wrong beside."""

import pytest
import torch
from torch import nn

import kvtrace

PROMPT = [5, 9, 30, 7, 41, 2, 44, 18, 3, 26, 37, 12]


class Scored(nn.Module):
    """Its prompt sees all; each head then keeps five rows that it likes, and the last three.

    Attributes:
        lag: New tokens of a step are placed so many behind where they stand.
    """

    def __init__(self, lag=0):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.qkv, self.head = nn.Embedding(48, 32), nn.Linear(32, 96), nn.Linear(32, 48)
        self.places, self.lag = nn.Embedding(64, 32), lag

    def forward(self, ids, past=None, start=0):
        lag = self.lag if start else 0
        x = self.embed(ids) + self.places(torch.arange(start - lag, start - lag + ids.shape[1]))
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        weights = q @ k.mT * 8**-0.5
        hidden = torch.ones(q.shape[2], k.shape[2]).triu(k.shape[2] - q.shape[2] + 1).bool()
        weights = weights.masked_fill(hidden, -torch.inf).softmax(-1)
        out = (weights @ v).transpose(1, 2).flatten(2)
        if past is None:
            liked = weights[:, :, -3:, :-3].sum(2).topk(5).indices.sort(-1).values[..., None]
            k, v = (
                torch.cat((one.gather(2, liked.expand(-1, -1, -1, 8)), one[:, :, -3:]), 2)
                for one in (k, v)
            )
        return self.head(out), (k, v)


def decode(model):
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        logits, past = model(ids)
        for step in range(4):
            new = logits[:, -1:].argmax(-1)
            logits, past = model(new, past, len(PROMPT) + step)


def checked(lag=0):
    model = Scored(lag).eval()
    with torch.no_grad():
        model.qkv.weight.mul_(3)
    return kvtrace.check(model, run=lambda: decode(model))


def test_rows_that_each_head_chose_are_told_and_pass_for_neither_equal_nor_a_bug():
    report = checked()
    assert [one.name for one in report.findings] == ["EVICTED-BY-CHOICE"]
    assert report.verdict == "could not check"
    assert report.reason.startswith("before step 1 all is equal within rounding; from there on")


@pytest.mark.parametrize("lag", [1, 12])
def test_a_bug_in_the_step_that_first_reads_chosen_rows_is_found(lag):
    report = checked(lag)
    assert report.verdict == "diverged"
    assert report.findings[0].name in ("POSITION-EMBEDDING", "ROW-OVERWRITTEN")
