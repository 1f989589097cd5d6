"""Rows of a prompt after a cut that equal rows that were cut: they are the prompt's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kvtrace

FIRST = [1, 2, 3, 4, 5, 6]
"""The text that is cut to its first token."""


class OneLayer(nn.Module):
    """Values hold the token, keys the token rotated by its position: nothing of other tokens."""

    def __init__(self, rotary: bool) -> None:
        super().__init__()
        self.rotary = rotary
        self.embed, self.mix, self.head = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(16, 20)

    def forward(self, ids, past=None):
        start = 0 if past is None else past[0].shape[2]
        q, k, v = self.mix(self.embed(ids)).view(1, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        if self.rotary:
            angles = torch.arange(start, start + ids.shape[1])[:, None] / 10 ** torch.arange(4)
            turn = torch.polar(torch.ones_like(angles), angles)
            pairs = (torch.view_as_complex(x.reshape(*x.shape[:3], 4, 2)) for x in (q, k))
            q, k = (torch.view_as_real(x * turn).flatten(3) for x in pairs)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        shown = torch.ones(ids.shape[1], k.shape[2], dtype=torch.bool).tril(start)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=shown)
        return self.head(x.transpose(1, 2).flatten(2)), (k, v)


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("then", [[7, 3, 8], [3, 7, 8], [5, 6, 7], [2, 9, 4, 9]])
def test_rows_that_equal_rows_that_were_cut_are_new_all_the_same(tmp_path, rotary, then):
    torch.manual_seed(0)
    model = OneLayer(rotary).eval()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        _, past = model(torch.tensor([FIRST]))
        past = tuple(rows[:, :, :1] for rows in past)
        _, past = model(torch.tensor([then]), past)
        model(torch.tensor([[2]]), past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    steps = [trace.cache_step(n, 0) for n in range(3)]
    assert [(one.rows, one.rewritten, one.length_after) for one in steps] == [
        (6, 0, 6),
        (len(then), 0, 1 + len(then)),
        (1, 0, 2 + len(then)),
    ]
    assert trace.cache(2, 0, 0).positions.tolist() == list(range(2 + len(then)))
