"""Models that draw random numbers in eval mode too: what differs tells of no cache."""

import pytest

from builders.driven import run_file

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(256, 8), nn.Linear(8, 24), nn.Linear(8, 256)

    def forward(self, ids{parameter}):
        q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
        if {cached}:
            if cache:
                k, v = torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1)
            cache[:] = [k, v]
        scores = (q @ k.mT).masked_fill(~torch.ones(q.shape[1], k.shape[1]).tril(
            k.shape[1] - q.shape[1]).bool(), -1e9)
        weights = nn.functional.dropout(scores.softmax(-1), 0.3)
        return self.head(nn.functional.dropout(weights @ v, 0.3))
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"parameter": "", "cached": "False"},
        {"parameter": ", cache=None", "cached": "cache is not None"},
    ],
    ids=["without a cache", "with one"],
)
def test_a_dropout_that_eval_does_not_turn_off_is_named_as_chance(tmp_path, changes):
    path = tmp_path / "net.py"
    path.write_text(MODEL.format(**changes))
    said = " ".join(run_file(f"{path}:Net").driven.said)
    assert "two passes over the same tokens differ" in said
    assert "dropout" in said
    assert "causal" not in said
    assert "has a bug" not in said


def test_without_random_numbers_nothing_is_said_of_them(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(MODEL.format(parameter="", cached="False").replace("0.3", "0.0"))
    assert "two passes" not in " ".join(run_file(f"{path}:Net").driven.said)
