"""Models that hide later tokens only where a mask is given, which they take without one, too."""

import pytest
import torch

import kvtrace
from builders.driven import run_file

MODEL = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(256, 8), nn.Linear(8, 24), nn.Linear(8, 256)

    def forward(self, ids, mask=None, cache=None):
        q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
        if cache is not None:
            if "k" in cache:
                k, v = torch.cat((cache["k"], k), 1), torch.cat((cache["v"], v), 1)
            cache["k"], cache["v"] = k, v
        scores = q @ k.transpose(1, 2) / 8**0.5
        if mask is not None:
            assert mask.shape[0] == ids.shape[1]
            scores = scores.masked_fill(mask == 0, -torch.inf)
        return self.head(scores.softmax(-1) @ v)

    def init_cache(self):
        return {}
"""


@pytest.fixture
def driven(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MODEL)
    return run_file(f"{file}:Mine").driven


def test_a_mask_that_a_prompt_needs_is_given_though_no_step_shows_that_it_is_missing(driven):
    assert "mask=causal [new, all]" in driven.call
    assert len(driven.said) == 1


def test_one_new_row_of_a_mask_is_no_batch_of_it(driven):
    calls = driven.drive.again(8, (), [[5, 6, 7, 8]])
    calls.step([1, 2, 3])
    assert calls.step([1, 2, 3, 4]).shape == (256,)


class Last(torch.nn.Module):
    """The last rows of a text ask all and one more key; after that all rows ask all before."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.null = torch.nn.Embedding(20, 8), torch.nn.Embedding(1, 8)
        self.few, self.all = torch.nn.Linear(8, 24), torch.nn.Linear(8, 24)
        self.head = torch.nn.Linear(8, 20)

    def mix(self, q, k, v):
        hidden = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(
            1 + k.shape[1] - q.shape[1]
        )
        return (q @ k.transpose(1, 2)).masked_fill(hidden, -torch.inf).softmax(-1) @ v

    def forward(self, ids):
        x = self.embed(ids)
        q, k, v = self.few(torch.cat((self.null.weight[None], x), 1)).chunk(3, -1)
        x = torch.cat((x[:, :-4], x[:, -4:] + self.mix(q[:, -4:], k, v)), 1)
        return self.head(self.mix(*self.all(x).chunk(3, -1)))


def test_attention_of_fewer_rows_than_tokens_ends_no_recording(tmp_path):
    with torch.no_grad(), kvtrace.record(model := Last(), tmp_path / "a.kvt"):
        model(torch.arange(9)[None])
    assert kvtrace.open(tmp_path / "a.kvt").step(0).number == 0
