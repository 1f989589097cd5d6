"""Models that keep their newest rows alone, in a cache inside of them, in a single pass too."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check


class Rolling(nn.Module):
    """Keeps its newest eight rows; its keys know no positions.

    Attributes:
        lost: Its steps of one token forget the oldest row from so many rows on.
    """

    def __init__(self, lost=99):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(20, 8), nn.Linear(8, 24), nn.Linear(8, 20)
        self.held, self.lost = None, lost

    def forward(self, x):
        q, k, v = self.qkv(self.embed(x))[:, None].chunk(3, -1)
        if self.held is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(self.held, (k, v), strict=True))
            if k.shape[2] >= self.lost:
                k, v = k[:, :, 1:], v[:, :, 1:]
        k, v = k[:, :, -8:], v[:, :, -8:]
        self.held = (k, v)
        new, rows = q.shape[2], k.shape[2]
        seen = torch.ones(new, rows, dtype=torch.bool).tril(rows - new)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)[:, 0])


def run(model, path, prompt=5, steps=7, **options):
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 17, 11, 8, 7, 12]])[:, : prompt + steps]
    with torch.no_grad():
        model.qkv.weight.mul_(4)
    with torch.no_grad(), kvtrace.record(model, path, keep_rows=True, **options):
        for start, end in ((0, prompt), *((n, n + 1) for n in range(prompt, prompt + steps))):
            model(tokens[:, start:end])
    return check(kvtrace.open(path))


@pytest.mark.parametrize("recompute", ["once", "each"])
def test_a_model_that_drops_rows_by_itself_is_compared_up_to_its_room(recompute, tmp_path):
    report = run(Rolling(), tmp_path / "a.kvt", recompute=recompute)
    assert (report.findings, report.verdict) == ((), "could not check")
    assert report.reason.startswith("4 of 8 steps were compared and are equal within rounding")
    assert report.reason.count("the model drops older rows by itself") == 1


def test_what_is_lost_before_the_room_is_full_is_a_bug(tmp_path):
    report = run(Rolling(lost=7), tmp_path / "a.kvt")
    assert [one.name for one in report.findings] == ["EVICTED-EARLY"]
    assert report.findings[0].step == 2


def test_a_text_within_the_room_is_compared_whole(tmp_path):
    assert run(Rolling(), tmp_path / "a.kvt", steps=3).verdict == "equal within rounding"
