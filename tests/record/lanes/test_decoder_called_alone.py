"""A decoder that is called alone, with what its encoder said, and ids in one row."""

import pytest
import torch
from torch import nn

import kvtrace

WIDTH, HEADS, VOCAB = 16, 2, 40


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x, heard=None, cache=None):
        q, read = self.q(x), x if heard is None else heard
        if heard is not None and cache is not None and self.k in cache:
            k, v = cache[self.k], cache[self.v]
        else:
            k, v = self.k(read), self.v(read)
            if heard is None and cache is not None and self.k in cache:
                k, v = torch.cat((cache[self.k], k), 1), torch.cat((cache[self.v], v), 1)
            if cache is not None:
                cache[self.k], cache[self.v] = k, v
        q, k, v = (one.unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in (q, k, v))
        scores = q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5
        if heard is None:
            new, rows = scores.shape[-2:]
            scores = scores + torch.full((new, rows), -torch.inf).triu(rows - new + 1)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(30, WIDTH)
        self.own = nn.ModuleList(Attend() for _ in range(2))
        self.across = nn.ModuleList(Attend() for _ in range(2))

    def forward(self, x, heard, cache=None):
        start = cache[self.own[0].k].shape[1] if cache else 0
        x = self.tokens(x) + self.places(torch.arange(start, start + x.shape[1]))
        for own, across in zip(self.own, self.across, strict=True):
            x = x + own(x, cache=cache)
            x = x + across(x, heard, cache)
        return x @ self.tokens.weight.T


class Listener(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(3, WIDTH), Decoder()

    def forward(self, sound, x):
        return self.decoder(x, self.encoder(sound))


class Flat(nn.Module):
    """Tokens in one row with no axis of sequences, under the name that transformers gives them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inside = Decoder()

    def forward(self, input_ids, heard, cache=None):
        return self.inside(input_ids[None], heard, cache)[0]


def write(listener, frames, cache, seed=0):
    sound = torch.randn(1, frames, 3, generator=torch.Generator().manual_seed(seed))
    heard, ids = listener.encoder(sound), torch.tensor([[3, 1, 4, 1]])
    for _ in range(4):
        ids = listener.decoder(ids, heard, cache)[:, -1:].argmax(-1)


@torch.no_grad()
def verdict(model, run):
    return kvtrace.check(model, run=run)


def test_a_decoder_that_is_called_alone_with_arguments_by_place_is_compared():
    listener = Listener()
    report = verdict(listener, lambda: write(listener, 7, {}))

    assert report.ok, report
    assert report.trials[0].name == "prefill of 4, 3 decode steps"


def test_two_texts_are_each_compared_with_what_was_heard_for_them():
    listener = Listener()
    report = verdict(listener, lambda: [write(listener, n, {}, n) for n in (7, 5)])

    assert report.ok, report


def test_what_was_heard_for_the_text_before_is_a_stale_cache():
    listener = Listener()

    def run():
        cache = {}
        write(listener, 7, cache)
        for own in listener.decoder.own:
            del cache[own.k], cache[own.v]
        cache[listener.decoder.own[0].k] = torch.zeros(1, 0, WIDTH)
        cache[listener.decoder.own[0].v] = torch.zeros(1, 0, WIDTH)
        write(listener, 5, cache, 5)

    (found, *_) = verdict(listener, run).trials[0].report.findings

    assert (found.name, found.step) == ("STALE-CACHE", 4)
    assert "cross" in found.where


@pytest.mark.parametrize("seed", [0, 1])
def test_ids_in_one_row_are_recorded_whatever_their_name(seed, tmp_path):
    model, cache = Flat(), {}
    heard = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(seed))

    def run():
        ids = torch.tensor([3, 1, 4, 1])
        for _ in range(4):
            ids = model(ids, heard, cache)[-1:].argmax(-1)

    report = verdict(model, run)

    assert report.ok, report
