"""Attention in blocks of a padded text: the rows of a block are no tokens in turn."""

import torch
from torch import nn
from torch.nn import functional as F

import kvtrace
from kvtrace.trace import stands_for_none

BLOCK = 4


class Blocks(nn.Module):
    """Every block sees itself and the one before; the text is padded to whole blocks inside."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.qkv = nn.Linear(8, 24)

    def forward(self, ids):
        count = ids.shape[1]
        x = F.pad(self.embed(ids), (0, 0, 0, -count % BLOCK))
        q, k, v = (one.unflatten(1, (-1, BLOCK)) for one in self.qkv(x).chunk(3, -1))
        k, v = (torch.cat([F.pad(one, (0, 0, 0, 0, 1, 0))[:, :-1], one], 2) for one in (k, v))
        mask = torch.ones(BLOCK, 2 * BLOCK).tril(BLOCK).bool()
        scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~mask, -torch.inf)
        return self.head((scores.softmax(-1) @ v).flatten(1, 2)[:, :count])


def test_all_tokens_are_a_steps_and_no_row_of_a_block_claims_one(tmp_path):
    model, tokens = Blocks(), torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        for end in (5, 6, 7):
            model(tokens[:, :end])
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.tokens for step in trace] == [
        ((3, 1, 4, 1, 5),),
        ((3, 1, 4, 1, 5, 9),),
        ((3, 1, 4, 1, 5, 9, 2),),
    ]
    assert [step.positions[0][0] for step in trace] == [0, 0, 0]
    assert [layer.kind for layer in trace.meta.cache_layers] == ["uncached"]
    for step in trace:
        for group in step.caches:
            assert all(stands_for_none(run.position) for run in group.attended[0])
