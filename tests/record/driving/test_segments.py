"""Arguments that look like a cache and hold no row for the next step; and caches begun late."""

import pytest

from builders.driven import run_file

MODEL = """
import torch
from torch import nn

def evaluating(method):
    def inside(self, *args, **kwargs):
        self.eval()
        return method(self, *args, **kwargs)
    return inside

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(256, 8), nn.Linear(8, 24), nn.Linear(8, 256)

    def mix(self, x, before=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        if before is not None:
            k, v = torch.cat((before[0], k), 1), torch.cat((before[1], v), 1)
        mask = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).bool()
        return nn.functional.scaled_dot_product_attention(q, k, v, mask), (k, v)
"""

SEGMENTS = """
    def forward(self, x, states=()):
        x = self.embed(x)
        if len(states):
            x = x + states[0]
        y, _ = self.mix(x)
        return self.head(y), [y.mean(1, keepdim=True)]

    @evaluating
    def generate(self, prime, length, states=()):
        while prime.shape[1] < length:
            logits, _ = self.forward(prime, states=states)
            prime = torch.cat((prime, logits[:, -1:].argmax(-1)), 1)
        return prime
"""

LATE = """
    def forward(self, prev_tokens, incremental_state=None):
        if incremental_state is not None:
            prev_tokens = prev_tokens[:, -1:]
        before = None if incremental_state is None else incremental_state.get("rows")
        y, rows = self.mix(self.embed(prev_tokens), before)
        if incremental_state is not None:
            incremental_state["rows"] = rows
        return self.head(y), {"hidden": [y]}
"""

NOT_TO_BE_MADE = """
    def forward(self, x, kv_cache=None):
        y, rows = self.mix(self.embed(x), None if kv_cache is None else kv_cache.rows)
        if kv_cache is not None:
            kv_cache.keep_what_comes(rows)
        return self.head(y)
"""


@pytest.fixture
def made(tmp_path):
    """Drive a model with such methods."""

    def run(methods):
        file = tmp_path / "made.py"
        file.write_text(f"{MODEL}{methods}\n\ndef build():\n    return Model()\n")
        return run_file(f"{file}:build")

    return run


def test_what_their_own_generation_passes_no_rows_in_is_taken_for_no_cache(made):
    run = made(SEGMENTS)
    assert run.driven.call == "model(x [1, all])"
    assert len(run.driven.said) == 1
    assert "no cache was found" in run.driven.said[0]


def test_where_nothing_does_for_a_cache_it_is_said_how_to_make_one(made):
    run = made(NOT_TO_BE_MADE)
    assert "no cache was found" in run.driven.said[0]
    assert "as kv_cache did for a cache" in run.driven.said[-1]
    assert "make_cache(model, batch, max_len)" in run.driven.said[-1]


def test_what_a_step_leaves_nothing_of_is_a_state_and_no_cache_though_no_generation_says_so(made):
    run = made(SEGMENTS.partition("    @evaluating")[0])
    assert run.driven.call == "model(x [1, all])"
    assert "states is left empty: what comes back for it holds no rows" in run.driven.said[1]


def test_a_wrong_cache_whose_rows_stay_is_tried_as_one_whatever_its_name(made):
    grown = "[y.mean(1, keepdim=True)]"
    rows = "[torch.cat((states[0], x) if len(states) else (x,), 1)]"
    wrong = SEGMENTS.partition("    @evaluating")[0].replace(grown, rows)
    run = made(wrong.replace("x + states[0]", "x + states[0][:, :1]"))
    assert "states=cache" in run.driven.call
    assert "differ from a pass over all tokens" in run.driven.said[1]


def test_a_model_that_takes_the_last_token_once_it_has_a_cache_is_fed_one_after_the_other(made):
    run = made(LATE)
    assert run.driven.call == "model(prev_tokens [1, 1], incremental_state=cache)"
    assert run.driven.said == (
        f"called as {run.driven.call}: one token after the other, the prompt's too; the cache "
        "begins as an empty dict and is filled in place",
    )
