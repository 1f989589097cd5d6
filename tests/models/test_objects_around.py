"""What a factory returns that is no module, but holds some and computes with them."""

import pytest
from torch import nn

from builders.driven import greedy, run_file
from kvtrace.models.scripts.functional import around

CODE = '''
import torch
from torch import nn


class Engine:
    """Takes tokens in, and keeps what it read in a list that whoever calls it hands back."""

    def __init__(self):
        torch.manual_seed(0)
        self.table, self.qkv = nn.Embedding(300, 16), nn.Linear(16, 48)
        self.out = nn.Linear(16, 300)
        self.calls = 0

    def forward(self, ids, past=None):
        self.calls += 1
        q, k, v = self.qkv(self.table(ids)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return self.out(y.transpose(1, 2).flatten(2)), (k, v)


def build():
    return Engine()
'''


def test_an_object_is_driven_by_its_own_methods(tmp_path):
    path = tmp_path / "engine.py"
    path.write_text(CODE)
    run = run_file(f"{path}:build", prompt="hello", new_tokens=4)
    assert "past=cache" in run.driven.call
    assert run.loaded.card.class_name == "Engine"
    space = {}
    exec(CODE, space)
    engine = space["build"]()
    assert list(run.tokens) == greedy(lambda ids: engine.forward(ids)[0], b"hello", 4)


class Bare:
    def decode_step(self, ids):
        return ids


class Settings(Bare):
    def __init__(self):
        self.net = nn.Linear(2, 2)

    decode_step = None

    def describe(self):
        return "a network"


@pytest.mark.parametrize("kind", [Bare, Settings])
def test_one_without_modules_or_without_anything_that_computes_is_no_model(kind):
    assert around(kind()) is None
