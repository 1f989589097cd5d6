"""What becomes of a first step's rows, where nothing that holds them can be recognised."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.rows.changes import changes


class Latent(nn.Module):
    """Keeps latents, from which keys and values are made anew at each step, or nothing."""

    def __init__(self, keeps):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.down, self.up, self.ask = nn.Linear(8, 3), nn.Linear(3, 16), nn.Linear(8, 8)
        self.keeps, self.latents = keeps, None

    def forward(self, ids):
        x = self.embed(ids)
        rows = self.down(x)
        if self.keeps:
            self.latents = rows = rows if self.latents is None else self.joined(rows)
        k, v = self.up(rows).chunk(2, -1)
        mask = torch.ones(x.shape[1], k.shape[1]).tril(k.shape[1] - x.shape[1]).bool()
        return self.head(nn.functional.scaled_dot_product_attention(self.ask(x), k, v, mask))

    def joined(self, rows):
        return torch.cat((self.latents, rows), 1)


@pytest.mark.parametrize(
    ("keeps", "said"),
    [
        (True, ["+4 rows, 0 → 4", "+1 row, 4 → 5"]),
        (False, ["4 rows, computed anew: no KV cache", "5 rows, computed anew: no KV cache"]),
    ],
)
def test_a_later_step_shows_whether_they_were_kept(tmp_path, keeps, said):
    model, ids = Latent(keeps).eval(), torch.tensor([[3, 1, 4, 1]])
    with torch.no_grad(), kvtrace.record(model, tmp_path / "first.kvt"):
        model(ids)
        model(torch.tensor([[5]]) if keeps else torch.tensor([[3, 1, 4, 1, 5]]))
    trace = kvtrace.open(tmp_path / "first.kvt")
    assert [changes(trace, number)[0].text for number in range(2)] == said
