"""Models that are told to keep a cache by a method whose name does not say so."""

import pytest

from builders.driven import greedy, run_file
from kvtrace.verify.own_loops import own_loops

ROLLING = """
import torch
from torch import nn

class Rolling(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(256, 8), nn.Linear(8, 24), nn.Linear(8, 256)
        self.rows = None

    def begin(self):
        self.rows = torch.zeros(2, 1, 0, 8)

    def end(self):
        self.rows = None

    def forward(self, ids):
        q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
        if self.rows is not None:
            self.rows = torch.cat((self.rows, torch.stack((k, v))), 2)
            k, v = self.rows
        mask = torch.ones(ids.shape[1], k.shape[1]).tril(k.shape[1] - ids.shape[1]).bool()
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v, mask))

    @torch.no_grad()
    def write(self, ids, count):
        self.begin()
        out = new = ids
        for _ in range(count):
            new = self(new)[:, -1].argmax(-1, keepdim=True)
            out = torch.cat((out, new), 1)
        self.end()
        return out
"""


@pytest.mark.parametrize("name", ["write", "generate"])
def test_what_their_loop_calls_before_the_model_begins_the_cache(tmp_path, name):
    (tmp_path / "rolling.py").write_text(ROLLING.replace("def write", f"def {name}"))
    run = run_file(f"{tmp_path / 'rolling.py'}:Rolling")
    assert run.driven.call == "model(ids [1, new])"
    assert "as its own code does" in run.driven.said[0]
    assert "first model.begin()" in run.driven.said[0]
    run.loaded.model.end()
    assert run.tokens == greedy(run.loaded.model, run.loaded.prompt.ids, 6)


def test_a_method_that_takes_ids_and_a_number_is_run_as_a_loop(tmp_path):
    (tmp_path / "rolling.py").write_text(ROLLING)
    model = run_file(f"{tmp_path / 'rolling.py'}:Rolling").loaded.model
    assert [name for name, _ in own_loops(model, None, [3, 1, 4], 3)] == ["write"]
