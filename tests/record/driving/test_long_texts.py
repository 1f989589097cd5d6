"""Models that take no few tokens: they are tried with longer texts, and it is said with which."""

import pytest

from builders.driven import forgotten, run_file
from kvtrace.errors import ModelError

MODEL = """
import torch
from torch import nn

class Long(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(256, 8), nn.Linear(8, 24), nn.Linear(8, 256)
        self.prefix_len = 20

    def _all(self, x):
        q, k, v = self.qkv(self.embed(x)).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
"""

BEHIND_A_PREFIX = """
    def forward(self, x):
        assert x.shape[1] > self.prefix_len, "longer than the prefix"
        return self._all(x)[:, self.prefix_len:]
"""

WHOLE = """
    def forward(self, x):
        assert x.shape[1] > self.prefix_len, "longer than the prefix"
        return self._all(x)
"""

OF_ONE_LENGTH = """
    def forward(self, x):
        return self._all(x + torch.zeros(20, dtype=torch.long))
"""

IN_BLOCKS = """
    def forward(self, x):
        return self._all(x.view(x.shape[0], -1, 16).flatten(1))
"""


@pytest.fixture
def driven(tmp_path):
    with forgotten():

        def run(forward, prompt):
            (tmp_path / "long.py").write_text(MODEL + forward)
            return run_file(f"{tmp_path / 'long.py'}:Long", prompt)

        yield run


@pytest.mark.parametrize("forward", [WHOLE, BEHIND_A_PREFIX])
def test_a_model_that_looks_back_over_a_prefix_is_driven_with_a_long_prompt(driven, forward):
    run = driven(forward, "a prompt of more than thirty letters")
    assert run.driven.call == "model(x [1, all])"
    assert len(run.tokens) == 6


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (BEHIND_A_PREFIX, "with 27 tokens, and the prompt has 5: give another one"),
        (OF_ONE_LENGTH, "with 20 tokens, but not with 21, and the prompt has 5"),
        (IN_BLOCKS, "with 16 tokens, but not with 17, and the prompt has 5"),
    ],
)
def test_it_is_said_with_how_many_tokens_a_model_can_be_called(driven, forward, told):
    with pytest.raises(ModelError, match=told):
        driven(forward, "hello")
