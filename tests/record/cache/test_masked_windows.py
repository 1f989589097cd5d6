"""Windows with a mask over what lies behind: as wide as what is seen, not what is handed."""

import pytest
import torch
from torch import nn

import kvtrace

WIDTH, HEADS, VOCAB, WINDOW = 16, 2, 40, 6


class Model(nn.Module):
    """The last rows of the window are kept, and the new ones put behind them."""

    def __init__(self, behind):
        super().__init__()
        torch.manual_seed(0)
        self.behind = behind
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(64, WIDTH)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, VOCAB)

    def forward(self, ids, start, state):
        x = self.tokens(ids) + self.places(torch.arange(start, start + ids.shape[1]))
        q, *rows = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        held = state.get("rows", [one[:, :, :0] for one in rows])
        rows = [torch.cat(pair, 2) for pair in zip(held, rows, strict=True)]
        state["rows"] = [one[:, :, -WINDOW - self.behind + 1 :].clone() for one in rows]
        new, seq = q.shape[2], rows[0].shape[2]
        far = torch.arange(seq - new, seq)[:, None] - torch.arange(seq)
        y = nn.functional.scaled_dot_product_attention(q, *rows, (far >= 0) & (far < WINDOW))
        return self.head(x + y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_rows_that_no_query_sees_are_no_part_of_the_window(behind, tmp_path):
    model, state = Model(behind).eval(), {}
    with kvtrace.record(model, tmp_path / "a.kvt"), torch.no_grad():
        for start, ids in enumerate(torch.arange(3, 17)[None].split([1] * 14, 1)):
            model(ids, start, state)
    (layer,) = kvtrace.open(tmp_path / "a.kvt").meta.cache_layers

    assert (layer.kind, layer.window) == ("sliding", WINDOW)
