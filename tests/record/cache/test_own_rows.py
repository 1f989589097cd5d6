"""Rows that models of people's own share, write over, pad, or make for several tokens."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import kvtrace
from builders.custom_drives import ids
from builders.recorded import assert_attention_explains_itself
from kvtrace.trace import Tensor


class Pooled(nn.Module):
    """Attends to every token so far and to the mean of each four: more rows than tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(40, 8), nn.Linear(8, 24), nn.Linear(8, 40)

    def forward(self, tokens):
        length = tokens.shape[1]
        q, k, v = self.qkv(self.embed(tokens)).chunk(3, -1)
        pooled = [rows[:, : length // 4 * 4].unflatten(1, (-1, 4)).mean(2) for rows in (k, v)]
        k, v = torch.cat((pooled[0], k), 1), torch.cat((pooled[1], v), 1)
        ends = torch.cat((torch.arange(3, length, 4), torch.arange(length)))
        mask = ends <= torch.arange(length)[:, None]
        return self.head(F.scaled_dot_product_attention(q, k, v, mask))


def test_rows_that_stand_for_several_tokens_are_not_taken_for_a_cache(tmp_path):
    model, tokens = Pooled(), ids(14) % 40
    with kvtrace.record(model, tmp_path / "a.kvt"):
        for end in range(10, 14):
            model(tokens[:, :end])
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.phase for step in trace] == ["prefill"] + ["decode"] * 3
    assert [step.parent for step in trace] == [None, 0, 1, 2]
    assert {layer.kind for layer in trace.meta.cache_layers} == {"uncached"}
    for step in trace:
        assert np.nanmax(trace.compared(step.number).max_abs[:, Tensor.QUERIES]) < 1e-5


class Query(nn.Module):
    """A layer with queries of its own, for keys and values of another."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(24, 24)

    def forward(self, x, keys, values):
        queries = self.q(x).unflatten(-1, (3, 8)).transpose(1, 2)
        causal = x.shape[1] == keys.shape[2]
        y = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
        return x + y.transpose(1, 2).flatten(2)


class Sharing(nn.Module):
    """Two layers attend to one set of keys and values."""

    def __init__(self):
        torch.manual_seed(3)
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 24), nn.Linear(24, 50)
        self.kv = nn.Linear(24, 48)
        self.layers = nn.ModuleList(Query() for _ in range(2))

    def forward(self, ids, past=None):
        x = self.embed(ids)
        rows = self.kv(x).unflatten(-1, (2, 3, 8)).permute(2, 0, 3, 1, 4)
        rows = rows if past is None else torch.cat([past, rows], dim=3)
        for layer in self.layers:
            x = layer(x, *rows)
        return self.head(x), rows


def test_layers_that_attend_to_the_same_tensors_share_a_cache_layer(tmp_path):
    model, past = Sharing().eval(), None
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        for tokens in ([[1, 2, 3]], [[4]], [[5]]):
            _, past = model(torch.tensor(tokens), past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert len(trace.meta.cache_layers) == 1
    assert [site.source for site in trace.meta.sites] == ["cache", "shared"]
    np.testing.assert_array_equal(trace.cache(2, 1).keys, past[0, 0].numpy())
    assert trace.step(2).cost.cache_bytes == past.nbytes


class Reusing(nn.Module):
    """Both layers use one workspace for their keys and values: the second writes over the first."""

    def __init__(self):
        torch.manual_seed(4)
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 24), nn.Linear(24, 50)
        self.qkv = nn.ModuleList(nn.Linear(24, 72) for _ in range(2))
        self.register_buffer("space", torch.zeros(2, 1, 3, 16, 8))
        self.made = []

    def forward(self, ids):
        x, count = self.embed(ids), ids.shape[1]
        for qkv in self.qkv:
            q, k, v = qkv(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
            self.space[0, :, :, :count], self.space[1, :, :, :count] = k, v
            self.made.append(k)
            rows = self.space[:, :, :, :count]
            y = F.scaled_dot_product_attention(q, rows[0], rows[1], is_causal=True)
            x = x + y.transpose(1, 2).flatten(2)
        return self.head(x)


def test_rows_that_the_model_writes_over_are_recorded_as_they_were_attended_to(tmp_path):
    model = Reusing().eval()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        model(torch.tensor([[1, 2, 3]]))
    trace = kvtrace.open(tmp_path / "a.kvt")
    for layer, keys in enumerate(model.made):
        np.testing.assert_array_equal(trace.cache(0, layer).keys, keys[0].numpy())
    assert_attention_explains_itself(trace)


class Padded(nn.Module):
    """A tuple cache, and a mask that hides padding at the left."""

    def __init__(self):
        torch.manual_seed(5)
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 24), nn.Linear(24, 50)
        self.qkv = nn.Linear(24, 72)

    def forward(self, ids, lengths, past=None):
        x = self.embed(ids)
        q, k, v = self.qkv(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        new, seq = q.shape[2], k.shape[2]
        shown = torch.ones(new, seq, dtype=torch.bool).tril(seq - new)
        pads = torch.arange(seq)[None, :] < (lengths.max() - lengths)[:, None]
        shown = (shown[None] & ~pads[:, None, :]) | torch.eye(new, seq, dtype=torch.bool)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=shown[:, None])
        return self.head(x + y.transpose(1, 2).flatten(2)), (k, v)


@torch.no_grad()
def test_padding_at_the_left_has_negative_positions(tmp_path):
    model, lengths = Padded().eval(), torch.tensor([5, 3])
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        _, past = model(ids(5, batch=2) % 50, lengths)
        _, past = model(ids(1, batch=2) % 50, lengths, past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.step(0).positions == ((0, 1, 2, 3, 4), (-2, -1, 0, 1, 2))
    assert trace.step(1).positions == ((5,), (3,))
    for sequence in range(2):
        np.testing.assert_array_equal(trace.cache(1, 0, sequence).keys, past[0][sequence].numpy())
    assert trace.cache(1, 0, 1).positions.tolist() == [-2, -1, 0, 1, 2, 3]


class HoldsItself(nn.Module):
    """Takes a table that holds itself, as objects that point to one another do."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.head = nn.Embedding(40, 8), nn.Linear(8, 24), nn.Linear(8, 40)

    def forward(self, tokens, state):
        q, k, v = self.qkv(self.embed(tokens)).chunk(3, -1)
        state["self"] = state
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_an_argument_that_holds_itself_ends_no_recording(tmp_path):
    model, state = HoldsItself(), {}
    with kvtrace.record(model, tmp_path / "a.kvt"), torch.no_grad():
        for end in (3, 4):
            model(ids(4)[:, :end] % 40, state)
    assert len(kvtrace.open(tmp_path / "a.kvt")) == 2
