"""Caches that hold their newest row first, with a mask that is turned round as they are."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check


class Front(nn.Module):
    """Puts each new row in front of the older ones, in its prompt too.

    Attributes:
        lost: Its steps of one token do not see so many of the oldest rows.
    """

    def __init__(self, lost=0):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.lost = nn.Embedding(20, 8), nn.Linear(8, 20), lost
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))

    def forward(self, x, past=None):
        x, held = self.embed(x), []
        for at, layer in enumerate(self.layers):
            q, k, v = layer(x)[:, None].chunk(3, -1)
            k, v = k.flip(2), v.flip(2)
            if past is not None:
                k, v = (torch.cat(pair, 2) for pair in zip((k, v), past[at], strict=True))
            held.append((k, v))
            new, seq = q.shape[2], k.shape[2]
            hidden = torch.ones(new, seq).triu(seq - new + 1).flip(1).bool()
            if new == 1 and self.lost:
                hidden[:, -self.lost :] = True
            scores = (q @ k.mT / 8**0.5).masked_fill(hidden, -torch.inf)
            x = x + (scores.softmax(-1) @ v)[:, 0]
        return self.head(x), held


@pytest.mark.parametrize(
    ("lost", "steps", "names"),
    [
        (0, ((0, 5), (5, 6), (6, 7), (7, 8)), []),
        (0, ((0, 4), (4, 7), (7, 8)), []),
        (2, ((0, 5), (5, 6), (6, 7)), ["EVICTED-EARLY"]),
    ],
)
def test_rows_that_stand_newest_first_are_known_for_those_of_their_tokens(
    lost, steps, names, tmp_path
):
    model, tokens, past = Front(lost), torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]]), None
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.mul_(4)
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True):
        for start, end in steps:
            _, past = model(tokens[:, start:end], past)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert [one.name for one in report.findings] == names
    assert report.verdict == ("diverged" if names else "equal within rounding")
