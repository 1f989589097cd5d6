"""Batches filled up at the right, whose masks and positions a caller makes for each call."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check
from kvtrace.record.lanes.given.extend import CannotExtendError, Extension

IDS = torch.tensor([[5, 9, 3, 7], [4, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


class Model(nn.Module):
    """One layer; every argument but the cache must be given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(20, 16), nn.Embedding(20, 16)
        self.mix, self.head = nn.Linear(16, 48), nn.Linear(16, 20)

    def forward(self, ids, attention_mask, position_ids, past=None):
        x = self.embed(ids) + self.places(position_ids)
        q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in self.mix(x).chunk(3, -1))
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        shown = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        shown = shown & attention_mask[:, None, None].bool()
        weights = (q @ k.mT / 8**0.5).masked_fill(~shown, -1e9).softmax(-1)
        return self.head((weights @ v).transpose(1, 2).flatten(2)), (k, v)


def judged(path, off=(0, 0)):
    """Three tokens after the prompts; `off`: from where their positions should be, each."""
    model, mask = Model().eval(), MASK
    with torch.no_grad(), kvtrace.record(model, path):
        _, past = model(IDS, mask, (mask.cumsum(1) - 1).clamp(min=0))
        for token in (6, 2, 11):
            places = mask.sum(1, keepdim=True) + torch.tensor(off)[:, None]
            mask = torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
            _, past = model(torch.full((2, 1), token), mask, places, past)
    return check(kvtrace.open(path))


def test_a_batch_that_is_filled_up_at_the_right_is_compared(tmp_path):
    report = judged(tmp_path / "a.kvt")
    assert (report.ok, report.findings, report.steps) == (True, (), 4)
    assert "sequence 1 is padded behind or within its text" in report.caveats[0]


def test_what_is_wrong_in_a_sequence_without_filling_is_found(tmp_path):
    found = judged(tmp_path / "a.kvt", off=(1, 0)).findings[0]
    assert (found.name, found.step, found.sequences) == ("POSITION-EMBEDDING", 1, (0,))


LONGER = Extension(new=4, rows=6, most=2, tables=False, paths=())


def test_what_follows_the_filling_is_seen_and_counts_on_where_the_text_ended():
    mask = LONGER.extended("attention_mask", MASK, opened=False)
    assert mask.tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1]]
    places = torch.tensor([[0, 1, 2, 3], [0, 1, 1, 1]])
    longer = LONGER.extended("position_ids", places, opened=False)
    assert longer.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 1, 1, 2, 3]]


def test_a_mask_with_a_gap_positions_that_jump_and_other_numbers_are_refused():
    others = {"mask": [1, 0, 1, 0], "position_ids": [0, 2, 2, 3], "kinds": [0, 1, 1, 1]}
    for name, numbers in others.items():
        with pytest.raises(CannotExtendError, match=f"`{name}` neither counts"):
            LONGER.extended(name, torch.tensor([numbers]), opened=False)
