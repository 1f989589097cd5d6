"""Rows of one site that a model keeps in several tensors: none of them is taken for evicted."""

import torch
from torch import nn

import kvtrace

DIM, RECENT = 8, 4


class Parted(nn.Module):
    """One head; the last rows lie in one entry of what it returns, the others in another."""

    def __init__(self, *, forgets=False):
        super().__init__()
        self.embed, self.head = nn.Embedding(32, DIM), nn.Linear(DIM, 32)
        self.q, self.k, self.v = (nn.Linear(DIM, DIM) for _ in range(3))
        self.forgets = forgets

    def forward(self, ids, cache=None):
        x = self.embed(ids)
        new = self.k(x)[:, None], self.v(x)[:, None]
        if cache is not None:
            new = tuple(
                torch.cat((old, recent, rows), 2)
                for old, recent, rows in zip(cache["old"], cache["recent"], new, strict=True)
            )
        keys, values = new
        kept = {
            "old": tuple(one[:, :, :-RECENT].clone() for one in new),
            "recent": tuple(one[:, :, -RECENT:].clone() for one in new),
        }
        if self.forgets:
            kept["old"] = tuple(one[:, :, :2] for one in kept["old"])
        scores = self.q(x)[:, None] @ keys.transpose(2, 3) / DIM**0.5
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(
            scores.shape[3] - scores.shape[2]
        )
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return self.head((weights @ values)[:, 0]), kept


def held(path, **how):
    """Rows that its cache holds after each of three steps."""
    torch.manual_seed(0)
    model = Parted(**how).eval()
    ids, cache = torch.arange(3, 14)[None], None
    with kvtrace.record(model, path), torch.no_grad():
        for _ in range(3):
            logits, cache = model(ids, cache)
            ids = logits[:, -1:].argmax(-1)
    return [step.caches[0].length_after for step in kvtrace.open(path)]


def test_rows_that_lie_in_two_parts_are_all_kept(tmp_path):
    assert held(tmp_path / "a.kvt") == [11, 12, 13]


def test_of_rows_in_two_parts_those_that_neither_holds_are_evicted(tmp_path):
    assert held(tmp_path / "a.kvt", forgets=True)[0] == 6
