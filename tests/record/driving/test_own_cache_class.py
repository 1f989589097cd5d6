"""A cache class beside the model is the one that is asked about, whatever else would do."""

import pytest

from builders.driven import run_file

CODE = """
import torch
from torch import nn


class Cache:
    def __init__(self):
        self.rows = []

    def get_seq_length(self):
        return 0 if not self.rows else self.rows[0][0].shape[-2]

    def update(self, k, v, layer_idx):
        if len(self.rows) <= layer_idx:
            self.rows.append((k, v))
        else:
            old_k, old_v = self.rows[layer_idx]
            self.rows[layer_idx] = (torch.cat([old_k, k], -2), {joined})
        return self.rows[layer_idx]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.places = nn.Embedding(300, 16), nn.Embedding(64, 16)
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 300)

    def forward(self, input_ids, past_key_values=None):
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        new = input_ids.shape[1]
        x = self.table(input_ids) + self.places(torch.arange(past, past + new))
        q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in self.qkv(x).chunk(3, -1))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, 0)
        mask = torch.ones(new, past + new, dtype=torch.bool).tril(past)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.head(x + y.transpose(1, 2).flatten(2)), past_key_values


def make():
    torch.manual_seed(3)
    return Model().eval()


def generate(model, prompts, n):
    width = max(map(len, prompts))
    tokens, cache = torch.tensor([[0] * (width - len(one)) + one for one in prompts]), Cache()
    for _ in range(n):
        tokens = model(tokens, cache)[0][:, -1:].argmax(-1)
"""


@pytest.mark.parametrize("joined", ["torch.cat([old_v, v], -2)", "torch.cat([v, old_v], -2)"])
@pytest.mark.parametrize("loop", [True, False])
def test_a_cache_class_beside_the_model_goes_before_that_of_transformers(tmp_path, joined, loop):
    code = CODE if loop else CODE[: CODE.index("def generate")]
    (tmp_path / "lm.py").write_text(code.replace("{joined}", joined))
    said = str(run_file(f"{tmp_path / 'lm.py'}:make").driven.said)
    assert "Cache(…)" in said
    assert "DynamicCache" not in said
    assert ("as its own code does" in said) == loop
