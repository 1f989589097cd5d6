"""Batches that are filled at the right: each text goes on behind its own last token."""

import pytest
import torch
from torch import nn

import kvtrace

WIDTH, HEADS, VOCAB, ROOM = 16, 2, 40, 24
PROMPTS = ([3, 9, 4, 1, 7], [20, 21], [8, 30, 11])


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, cache, places):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).unbind(2)
        rows = torch.arange(len(x))[:, None]
        cache[0][rows, places], cache[1][rows, places] = k, v
        scores = torch.einsum("bqhd,bkhd->bhqk", q, cache[0]) * (WIDTH // HEADS) ** -0.5
        seen = torch.arange(ROOM) <= self.sees(places)[:, :, None]
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        return x + self.out(torch.einsum("bhqk,bkhd->bqhd", weights, cache[1]).flatten(2))

    def sees(self, places):
        return places


class SeesFilling(Layer):
    """Every text sees as far as the longest."""

    def sees(self, places):
        return places.amax(0, keepdim=True).expand_as(places)


class Model(nn.Module):
    layer = Layer

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(ROOM, WIDTH)
        self.layers = nn.ModuleList(self.layer() for _ in range(2))

    def forward(self, ids, caches, cache_seqlens):
        places = cache_seqlens[:, None] + torch.arange(ids.shape[1])
        x = self.tokens(ids) + self.places(self.counted(places))
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache, places)
        return x @ self.tokens.weight.T

    def counted(self, places):
        return places


class Untold(Model):
    """It counts by itself: no argument says how long a text is."""

    def forward(self, ids, caches):
        return super().forward(ids, caches, self.lengths)


class CountsTogether(Model):
    """Every text is given the positions of the longest."""

    def counted(self, places):
        return places.amax(0, keepdim=True).expand_as(places)


class WithFilling(Model):
    layer = SeesFilling


@torch.no_grad()
def decode(model, steps=5, stands_still=()):
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([one + [0] * (longest - len(one)) for one in PROMPTS])
    lengths, held = torch.tensor([len(one) for one in PROMPTS]), torch.zeros(3, dtype=torch.long)
    shape = (len(PROMPTS), ROOM, HEADS, WIDTH // HEADS)
    caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in model.layers]
    last = lengths - 1
    for _ in range(steps):
        model.lengths = held
        told = () if isinstance(model, Untold) else (held,)
        logits = model(ids, caches, *told)
        ids = logits[torch.arange(3), last].argmax(-1)[:, None]
        held, last = lengths.clone(), torch.zeros(3, dtype=torch.long)
        lengths = lengths + torch.tensor([row not in stands_still for row in range(3)])


def verdict(model, **options):
    return kvtrace.check(model, run=lambda: decode(model, **options))


@pytest.mark.parametrize("kind", [Model, Untold])
def test_texts_that_go_on_where_each_ends_are_compared(kind, tmp_path):
    model = kind()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        decode(model)
    trace = kvtrace.open(tmp_path / "a.kvt")

    assert [trace.step(1).positions, trace.step(2).positions] == [
        ((5,), (2,), (3,)),
        ((6,), (3,), (4,)),
    ]
    report = verdict(model)
    assert report.ok, report
    assert trace.compared(4) is not None


def test_positions_of_the_longest_text_are_wrong_for_the_others():
    (found, *_) = verdict(CountsTogether()).trials[0].report.findings

    assert (found.name, found.step, found.layer) == ("POSITION-EMBEDDING", 1, 0)
    assert found.sequences == (1, 2)


def test_filling_that_is_seen_is_padding():
    (found, *_) = verdict(WithFilling()).trials[0].report.findings

    assert (found.name, found.step, found.sequences) == ("PAD-VISIBLE", 1, (1, 2))


def test_a_text_whose_length_is_not_counted_on_is_no_filling():
    (found, *_) = verdict(Model(), stands_still=(1,)).trials[0].report.findings

    assert (found.step, found.sequences) == (2, (1,))
