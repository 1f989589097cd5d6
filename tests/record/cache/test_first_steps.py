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


class Heads(nn.Module):
    """Four heads, whose keys and values stand heads first or rows first; given single tokens."""

    def __init__(self, rows):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(20, 32), nn.Linear(32, 96), nn.Linear(32, 20)
        self.rows = rows

    def forward(self, ids, past=None):
        q, k, v = (x.unflatten(-1, (4, 8)) for x in self.qkv(self.embed(ids)).chunk(3, -1))
        if self.rows == 2:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if past is not None:
            k, v = (torch.cat(pair, self.rows) for pair in zip(past, (k, v), strict=True))
        heads = (x.transpose(1, 2) if self.rows == 1 else x for x in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(*heads)
        return self.head(out.transpose(1, 2).flatten(2)), (k, v)


@pytest.mark.parametrize("rows", [1, 2])
def test_heads_are_no_room_for_rows_where_one_row_does_not_tell_them_apart(tmp_path, rows):
    stores = []
    for steps in (1, 2, 6):
        model, past, path = Heads(rows).eval(), None, tmp_path / f"{steps}.kvt"
        with torch.no_grad(), kvtrace.record(model, path, recompute="off"):
            for token in range(steps):
                _, past = model(torch.tensor([[token]]), past)
        stores.append(kvtrace.open(path).meta.cache_layers[0])
    assert [(one.kind, one.capacity) for one in stores] == [("dynamic", None)] * 3
    assert ["rows" in one.where for one in stores] == [False, False, True]
    assert ("[1, rows, 4, 8]" if rows == 1 else "[1, 4, rows, 8]") in stores[2].where
