"""Models of one's own that take ids as [tokens, sequences]."""

import numpy as np
import pytest
import torch
from torch import nn

import kvtrace

VOCAB, WIDTH = 40, 16


class TimeFirst(nn.Module):
    """torch's own layers as they are by default: the first dimension is time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(30, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.0)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, src):
        hidden = torch.full((len(src), len(src)), -torch.inf).triu(1)
        x = self.wte(src) + self.wpe(torch.arange(len(src)))[:, None]
        return self.head(self.layer(x, src_mask=hidden))


@pytest.mark.parametrize("sequences", [1, 2])
def test_tokens_that_come_down_a_column_are_one_sequence_that_goes_on(tmp_path, sequences):
    model, ids = TimeFirst().eval(), torch.arange(3, 3 + 7 * sequences).view(sequences, 7)
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="each"), torch.no_grad():
        for count in (4, 5, 6):
            model(ids[:, :count].t())
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.phase for step in trace] == ["prefill", "decode", "decode"]
    assert [step.parent for step in trace] == [None, 0, 1]
    assert trace.step(2).tokens == tuple(tuple(row) for row in ids[:, :6].tolist())
    assert all(float(trace.compared(step.number).relative.max()) < 1e-5 for step in trace)


class Shared(nn.Module):
    """Ids come sequences first and go on tokens first; all heads share one key."""

    def __init__(self, heads):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(VOCAB, 24), nn.Embedding(30, 24)
        self.mix = nn.ModuleList(Mixing(heads) for _ in range(2))
        self.head = nn.Linear(24, VOCAB)

    def forward(self, ids, past):
        start = 0 if past[0] is None else past[0].shape[1]
        places = torch.arange(start, start + ids.shape[1])
        x = self.wte(ids.t()) + self.wpe(places)[:, None]
        for n, mix in enumerate(self.mix):
            x, past[n] = mix(x, past[n])
        return self.head(x).transpose(0, 1)


class Mixing(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.heads, self.q, self.kv = heads, nn.Linear(24, heads * 8), nn.Linear(24, 16)
        self.out = nn.Linear(heads * 8, 24)

    def forward(self, x, past):
        q = self.q(x).unflatten(-1, (self.heads, 8))
        rows = torch.stack(self.kv(x).chunk(2, -1))
        rows = rows if past is None else torch.cat([past, rows], 1)
        scores = torch.einsum("ibhd,jbd->bhij", q, rows[0]) * 8**-0.5
        i, j = scores.shape[2:]
        hidden = torch.ones(i, j, dtype=torch.bool).triu(j - i + 1)
        weights = scores.masked_fill(hidden, -1e30).softmax(-1)
        return x + self.out(torch.einsum("bhij,jbd->ibhd", weights, rows[1]).flatten(2)), rows


@pytest.mark.parametrize("heads", [6, 2])
def test_sequences_in_the_place_of_tokens_are_no_queries(tmp_path, heads):
    model, ids = Shared(heads).eval(), torch.arange(3, 17).view(2, 7)
    past = [None, None]
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="each"), torch.no_grad():
        for ids_in in ids.split([4, 1, 1, 1], 1):
            model(ids_in, past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert {(site.num_heads, site.num_kv_heads) for site in trace.meta.sites} == {(heads, 1)}
    assert trace.queries(3, 0, 1).shape == (heads, 1, 8)
    assert all(np.nanmax(trace.compared(step.number).relative) < 1e-5 for step in trace)


class Remembering(nn.Module):
    """One head by hand over [tokens, sequences, features]; what it made goes back in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.q, self.head = nn.Embedding(VOCAB, 24), nn.Linear(24, 24), nn.Linear(24, 40)

    def forward(self, x, mems=None):
        h = self.wte(x)
        rows = h if mems is None else torch.cat([mems, h])
        hidden = torch.full((len(h), len(rows)), -torch.inf).triu(1 + len(rows) - len(h))
        q, k = (t.transpose(0, 1)[:, None] for t in (self.q(h), rows))
        weights = (q @ k.transpose(-1, -2) / 24**0.5 + hidden.view(1, 1, *hidden.shape)).softmax(-1)
        y = (weights @ k).transpose(1, 2).flatten(2).transpose(0, 1)
        return self.head(h + y), rows


def test_one_text_that_comes_tokens_first_is_no_batch_of_single_tokens(tmp_path):
    model, mems = Remembering().eval(), None
    with kvtrace.record(model, tmp_path / "a.kvt"), torch.no_grad():
        for ids in torch.arange(3, 11)[:, None].split([5, 1, 1, 1]):
            _, mems = model(ids, mems)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [(site.num_heads, site.num_kv_heads) for site in trace.meta.sites] == [(1, 1)]
    assert trace.queries(0, 0).shape == (1, 5, 24)
    assert trace.cache(3, layer=0).keys.shape == (1, 8, 24)
    assert all(np.nanmax(trace.compared(step.number).relative) < 1e-5 for step in trace)
