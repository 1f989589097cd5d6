"""Passes without the cache of a model that has one: they keep none of their rows."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check
from kvtrace.analysis.rows.changes import changes
from kvtrace.analysis.summary import summary

WIDTH, HEADS, VOCAB = 16, 2, 40
PROMPT = torch.tensor([[3, 1, 4]])


class Model(nn.Module):
    """Hands its cache back, or keeps it in itself, or does neither."""

    def __init__(self, inside):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(30, WIDTH)
        self.qkv, self.inside, self.kept = nn.Linear(WIDTH, 3 * WIDTH), inside, None

    def forward(self, ids, past=None, use_cache=True):
        past = self.kept if self.inside and use_cache else past
        start = 0 if past is None else past[0].shape[2]
        x = self.tokens(ids) + self.places(torch.arange(start, start + ids.shape[1]))
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        if use_cache and self.inside:
            self.kept = k, v
        hidden = torch.full((q.shape[2], k.shape[2]), -torch.inf).triu(start + 1)
        y = ((q @ k.mT / 3 + hidden).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return (x + y) @ self.tokens.weight.T, (k, v) if use_cache and not self.inside else None


@torch.no_grad()
def decode(model, cached, prompt=PROMPT, steps=3):
    ids, past = prompt, None
    given = ids
    for _ in range(steps):
        logits, past = model(given, past, use_cache=cached)
        token = logits[:, -1:].argmax(-1)
        ids = torch.cat((ids, token), 1)
        given = token if cached else ids
    model.kept = None


@pytest.mark.parametrize("inside", [True, False])
def test_a_text_without_the_cache_of_a_model_that_has_one_keeps_nothing(inside, tmp_path):
    model = Model(inside)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        for cached in (True, False, True):
            decode(model, cached)
    trace = kvtrace.open(tmp_path / "a.kvt")

    lengths = [change.length_after for n in trace.numbers for change in changes(trace, n)]
    assert lengths == [3, 4, 5, 0, 0, 0, 3, 4, 5]
    assert "computed 3 rows of Q, K, V and kept none of them" in summary(trace, 3).sentence
    assert "computed 4 rows of Q, K, V though only 1 row was new" in summary(trace, 4).sentence
    assert "into an empty cache" in summary(trace, 6).sentence
    assert changes(trace, 4)[0].text == "4 rows, none kept"
    assert trace.meta.cache_layers[0].kind == "dynamic"


def test_texts_without_the_cache_count_as_right(tmp_path):
    model = Model(False)
    report = kvtrace.check(model, run=lambda: [decode(model, cached) for cached in (True, False)])
    assert report.ok, report


@pytest.mark.parametrize("first", [(False, True), (False,), (True, False)])
def test_a_benchmark_that_decodes_one_text_twice_without_a_cache_is_right(first, tmp_path):
    model = Model(False)
    model.tokens.weight.data.mul_(2)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        for cached in (*first, False, True):
            decode(model, cached, PROMPT[:, :1], 8)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings) == ("equal within rounding", ())


class Told(Model):
    """Keeps rows in a buffer, and is told by a method where the tokens it is given begin."""

    def __init__(self):
        super().__init__(inside=True)
        self.register_buffer("rows", torch.zeros(2, 1, HEADS, 30, WIDTH // HEADS))

    def feed(self, ids, start):
        end = start + ids.shape[1]
        x = self.tokens(ids) + self.places(torch.arange(start, end))
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        self.rows[0, :, :, start:end], self.rows[1, :, :, start:end] = k, v
        k, v = self.rows[:, :, :, :end]
        hidden = torch.full((q.shape[2], end), -torch.inf).triu(start + 1)
        y = ((q @ k.mT / 3 + hidden).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return (x + y) @ self.tokens.weight.T

    def forward(self, ids):
        return self.feed(ids, 0)


@torch.no_grad()
def fed_again(model):
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    model.feed(ids[:, :4], 0)
    model.feed(ids[:, :5], 0)
    model.feed(ids, 1)


def test_a_text_that_is_fed_again_one_place_later_stands_behind_the_row_that_stays(tmp_path):
    model = Told()
    with kvtrace.record(tmp_path / "a.kvt"):
        fed_again(model)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert changes(trace, 1)[0].text == "5 rows, none kept"
    assert trace.step(2).positions[0] == (1, 2, 3, 4, 5, 6)
    (change,) = changes(trace, 2)
    assert (change.length_after, change.appended) == (7, 6)
    assert kvtrace.check(model, run=lambda: fed_again(model)).ok
