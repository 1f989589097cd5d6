"""Masks and positions that a caller hands a model in an object of a class of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check

IDS = torch.tensor([[0, 0, 3, 7, 11, 4], [1, 2, 3, 4, 5, 6], [0, 8, 3, 9, 5, 6]])


class Model(nn.Module):
    """Takes its cache along."""

    def __init__(self, read):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(20, 16), nn.Embedding(20, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.head, self.read = nn.Linear(16, 20), read

    def forward(self, ids, attn, past=None):
        mask, positions = self.read(attn)
        x, kept = self.embed(ids) + self.places(positions), []
        for number, layer in enumerate(self.layers):
            q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in layer(x).chunk(3, -1))
            if past is not None:
                k, v = (torch.cat(two, 2) for two in zip(past[number], (k, v), strict=True))
            kept.append((k, v))
            scores = (q @ k.mT / 8**0.5).masked_fill(~mask[:, None], -torch.inf)
            x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head(x), kept


@dataclass(frozen=True)
class Frozen:
    mask: torch.Tensor
    positions: torch.Tensor
    window: int = 0


class Named(NamedTuple):
    mask: torch.Tensor
    positions: torch.Tensor


class Slotted:
    __slots__ = ("mask", "positions")

    def __init__(self, mask, positions):
        self.mask, self.positions = mask, positions


class Nested:
    def __init__(self, mask, positions):
        self.inner, self.seq_len = Frozen(mask, positions), mask.shape[-1]

    @property
    def positions(self):
        return self.inner.positions

    @property
    def mask(self):
        assert self.seq_len == self.inner.mask.shape[-1]
        return self.inner.mask


class Enclosing:
    """What it holds is found by no one who looks at it."""

    def __init__(self, mask, positions):
        self.read = lambda: (mask, positions)


def of_attributes(attn):
    return attn.mask, attn.positions


MADE = {
    "frozen": (Frozen, of_attributes),
    "named": (Named, of_attributes),
    "slotted": (Slotted, of_attributes),
    "nested": (Nested, of_attributes),
    "dictionary": (lambda *both: dict(zip(("mask", "positions"), both, strict=True)), dict.values),
    "list": (lambda *both: {"masks": list(both)}, lambda one: one["masks"]),
}


@torch.no_grad()
def told(path, kind, read, pads):
    """The trace of a text, its first tokens at once and three more one by one."""
    model, pads, ids, past = Model(read).eval(), torch.tensor(pads)[:, None], IDS, None
    with kvtrace.record(model, path):
        for end in range(6, 10):
            own, keys = torch.arange(0 if end == 6 else end - 1, end), torch.arange(end)
            padded = (keys < pads)[:, None] == (own < pads)[:, :, None]
            mask = (keys <= own[:, None]) & padded
            logits, past = model(ids, kind(mask, (own - pads).clamp(min=0)), past)
            ids = logits[:, -1:].argmax(-1)
    return kvtrace.open(path)


@pytest.mark.parametrize("pads", [(0, 0, 0), (2, 0, 1)])
@pytest.mark.parametrize("made", MADE)
def test_what_an_object_holds_grows_with_the_tokens(made, pads, tmp_path):
    report = check(told(tmp_path / "a.kvt", *MADE[made], pads))
    assert (report.verdict, report.steps, report.findings) == ("equal within rounding", 4, ())


def test_an_object_that_shows_no_tensors_is_named(tmp_path):
    trace = told(tmp_path / "a.kvt", Enclosing, lambda attn: attn.read(), (0, 0, 0))
    assert check(trace).verdict == "could not check"
    (said,) = (note.text for note in trace.notes)
    assert "`attn` is of class Enclosing, which shows none of the tensors it makes" in said


def test_the_callers_own_object_stays_as_it_was(tmp_path):
    kept = []

    def kind(mask, positions):
        kept.append((Slotted(mask, positions), mask, positions))
        return kept[-1][0]

    told(tmp_path / "a.kvt", kind, of_attributes, (2, 0, 1))
    assert all(one.mask is mask and one.positions is places for one, mask, places in kept)
