"""Empty caches that look alike from afar: None may stand for no cache, a pair of it for one."""

from builders.driven import run_file

PAIRS = """
import torch
from torch import nn

class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(256, 8), nn.Linear(8, 256)
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))

    def forward(self, ids, cache=None):
        x, grown = self.embed(ids), []
        for place, layer in enumerate(self.layers):
            q, k, v = layer(x).chunk(3, -1)
            held = None if cache is None else cache[place]
            if held is not None and held[0] is not None:
                k, v = torch.cat((held[0], k), 1), torch.cat((held[1], v), 1)
            grown.append(None if held is None else (k, v))
            mask = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).bool()
            x = x + nn.functional.scaled_dot_product_attention(q, k, v, mask)
        return self.head(x), grown

    def generate(self, ids, count):
        logits, cache = self(ids, [(None, None)] * 2)
        for _ in range(count):
            ids = logits[:, -1:].argmax(-1)
            logits, cache = self(ids, cache)
"""


def test_a_list_of_none_is_not_taken_for_the_pairs_that_their_own_code_begins_with(tmp_path):
    (tmp_path / "pairs.py").write_text(PAIRS)
    driven = run_file(f"{tmp_path / 'pairs.py'}:Pairs").driven
    assert "as its own code does" in driven.said[0]
    assert "begins as a list of (None, None)" in driven.said[0]
    assert driven.said[1:] == ()
