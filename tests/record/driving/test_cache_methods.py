"""A cache class that can't be called with sizes, and has a method that makes its objects."""

import pytest

from builders.driven import run_file

CODE = """
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn


@dataclass
class Entries:
    keys: torch.Tensor
    values: torch.Tensor

    @{kind}
    def {name}({first}cfg, device, batch_size=1):
        none = torch.empty(batch_size, cfg.n_heads, 0, cfg.d_head, device=device)
        return {made}(none, none)

    def append(self, k, v):
        self.keys, self.values = torch.cat((self.keys, k), 2), torch.cat((self.values, v), 2)
        return self.keys, self.values


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.cfg = SimpleNamespace(n_heads=2, d_head=8)
        self.table, self.places = nn.Embedding(300, 16), nn.Embedding(64, 16)
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 300)

    def forward(self, ids, kv_cache: Entries | None = None):
        start = 0 if kv_cache is None else kv_cache.keys.shape[2]
        new = ids.shape[1]
        x = self.table(ids) + self.places(torch.arange(start, start + new))
        q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in self.qkv(x).chunk(3, -1))
        if kv_cache is not None:
            k, v = kv_cache.append(k, v)
        mask = torch.ones(new, start + new, dtype=torch.bool).tril(start)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.head(x + y.transpose(1, 2).flatten(2))


def make():
    torch.manual_seed(3)
    return Model().eval()
"""


@pytest.mark.parametrize("name", ["init_cache", "empty", "from_config"])
@pytest.mark.parametrize(
    ("kind", "first", "made"), [("classmethod", "cls, ", "cls"), ("staticmethod", "", "Entries")]
)
def test_the_method_makes_the_cache_that_is_passed(tmp_path, name, kind, first, made):
    named = {"{kind}": kind, "{name}": name, "{first}": first, "{made}": made}
    code = CODE
    for place, word in named.items():
        code = code.replace(place, word)
    (tmp_path / "lm.py").write_text(code)
    said = str(run_file(f"{tmp_path / 'lm.py'}:make").driven.said)
    assert "the cache begins as Entries(…) and is filled in place" in said
