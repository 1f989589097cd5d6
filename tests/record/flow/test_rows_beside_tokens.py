"""Rows of a model's own beside those of tokens: told from heads by the mask."""

import pytest
import torch
from torch import nn

import kvtrace

WIDTH, HEADS, VOCAB = 20, 2, 40


class Noting(nn.Module):
    """Writes what it read into rows behind the tokens, and reads those of before in front."""

    def __init__(self, notes, *, blind):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.notes = nn.Parameter(torch.randn(1, notes, WIDTH))
        self.qkv, self.blind = nn.Linear(WIDTH, 3 * WIDTH), blind

    def forward(self, ids):
        x = torch.cat((self.notes, self.embed(ids), self.notes), 1)
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if not self.blind:
            rows = x.shape[1]
            scores = scores.masked_fill(~torch.ones(rows, rows).tril().bool(), -torch.inf)
        return self.head((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("tokens", "notes"), [(6, 3), (4, 4), (1, 3), (5, 3)])
def test_rows_that_are_a_multiple_of_the_tokens_are_rows_where_each_sees_others(
    tokens, notes, tmp_path
):
    model = Noting(notes, blind=False).eval()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        model(torch.arange(tokens)[None])
    trace = kvtrace.open(tmp_path / "a.kvt")
    (site,) = trace.meta.sites
    assert (site.num_heads, trace.cache_layer(0).num_kv_heads) == (HEADS, HEADS)
    assert trace.cache(0, layer=0).keys.shape == (HEADS, tokens + 2 * notes, WIDTH // HEADS)


def test_where_all_rows_see_all_of_them_it_is_said_that_they_may_be_heads(tmp_path):
    model = Noting(3, blind=True).eval()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        model(torch.arange(6)[None])
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert "an axis of 12 holds 6 queries and heads in unknown order" in trace.meta.unseen[0]
