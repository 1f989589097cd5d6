"""Encoder-decoders of one's own: which rows are of which text, where no name says it."""

import numpy as np
import pytest
import torch
from torch import nn

import kvtrace

WIDTH, HEADS, VOCAB = 16, 2, 40


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, values, keys, queries, mask):
        def split(x):
            return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        q, k, v = split(self.q(queries)), split(self.k(keys)), split(self.v(values))
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e20)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """Attention over its own text, then over the other one; the modules have the same name."""

    def __init__(self):
        super().__init__()
        self.attention, self.rest = Attend(), nn.ModuleDict({"attention": Attend()})

    def forward(self, x, memory, mask):
        x = x + self.attention(x, x, x, mask)
        return x + self.rest["attention"](memory, memory, x, None)


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(30, WIDTH)
        self.encoder = nn.ModuleList(Attend() for _ in range(1))
        self.decoder = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, src, trg):
        memory = self.wte(src) + self.wpe(torch.arange(src.shape[1]))
        for layer in self.encoder:
            memory = memory + layer(memory, memory, memory, None)
        x = self.wte(trg) + self.wpe(torch.arange(trg.shape[1]))
        mask = torch.ones(trg.shape[1], trg.shape[1], dtype=torch.bool).tril()
        for layer in self.decoder:
            x = layer(x, memory, mask)
        return self.head(x)


@pytest.fixture(scope="module", params=[5, 3])
def trace(request, tmp_path_factory):
    """Targets of 4, 5 and 6 tokens to a source that is longer at first, or shorter."""
    path = tmp_path_factory.mktemp("two") / "a.kvt"
    model, ids = Translator().eval(), torch.arange(3, 20)[None]
    with kvtrace.record(model, path, recompute="each"), torch.no_grad():
        for count in (4, 5, 6):
            model(ids[:, : request.param], ids[:, 7 : 7 + count])
    return request.param, kvtrace.open(path)


def test_attention_over_the_other_text_is_told_by_what_it_was_given(trace):
    kinds = {site.module: site.kind for site in trace[1].meta.sites}
    assert kinds == {
        "encoder.0": "encoder",
        "decoder.0.attention": "self",
        "decoder.0.rest.attention": "cross",
        "decoder.1.attention": "self",
        "decoder.1.rest.attention": "cross",
    }


def test_the_text_that_grows_is_the_one_that_is_recorded(trace):
    steps = list(trace[1])
    assert [step.phase for step in steps] == ["prefill", "decode", "decode"]
    assert steps[0].tokens == ((10, 11, 12, 13),)


def test_rows_of_the_other_text_count_from_its_own_beginning(trace):
    source, recorded = trace
    cross = next(site for site in recorded.meta.sites if site.kind == "cross")
    for step in recorded:
        view = recorded.cache(step.number, layer=cross.index)
        assert view.positions.tolist() == list(range(source))


def test_both_texts_are_computed_again_and_are_equal(trace):
    recorded = trace[1]
    for step in recorded:
        seen = recorded.compared(step.number)
        decoding = [site.index for site in recorded.meta.sites if site.kind != "encoder"]
        assert float(np.nanmax(seen.relative[decoding])) < 1e-5
    assert not [note for note in recorded.notes if note.kind == "finding"]
