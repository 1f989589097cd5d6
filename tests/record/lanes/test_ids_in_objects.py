"""Token ids that a caller hands a model within an object, beside what else belongs to them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check

IDS = torch.tensor([[3, 7, 11, 4, 9, 2, 5, 13], [1, 2, 3, 4, 5, 6, 0, 8]])


class Model(nn.Module):
    """Keeps its cache inside; the caller says where a batch's tokens begin."""

    def __init__(self, read, window=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(20, 16), nn.Embedding(20, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.head, self.read, self.window = nn.Linear(16, 20), read, window
        self.kept = [torch.zeros(2, 2, 2, 16, 8) for _ in self.layers]

    def forward(self, batch):
        ids, start = self.read(batch)
        end = start + ids.shape[1]
        own, keys = torch.arange(start, end), torch.arange(end)
        mask = keys <= own[:, None]
        if self.window and start == 0:
            mask &= keys > own[:, None] - self.window
        x = self.embed(ids) + self.places(own)
        for layer, kept in zip(self.layers, self.kept, strict=True):
            q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in layer(x).chunk(3, -1))
            kept[:, : len(ids), :, start:end] = torch.stack([k, v])
            k, v = kept[:, : len(ids), :, :end]
            scores = (q @ k.mT / 8**0.5).masked_fill(~mask, -torch.inf)
            x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return SimpleNamespace(logits=self.head(x))


@dataclass(frozen=True)
class Batch:
    tokens: torch.Tensor
    start_pos: int
    image: torch.Tensor | None = None


class Named(NamedTuple):
    input_ids: torch.Tensor
    offset: int


MADE = {
    "dataclass": (Batch, lambda one: (one.tokens, one.start_pos)),
    "named tuple": (Named, lambda one: (one.input_ids, one.offset)),
    "dictionary": (
        lambda ids, start: {"offset": start, "token_ids": ids},
        lambda one: (one["token_ids"], one["offset"]),
    ),
}


@torch.no_grad()
def generate(model, make, ids=IDS, prompt=5):
    ends = range(prompt, ids.shape[1] + 1)
    starts = (0, *ends)
    return [
        model(make(ids[:, start:end], start)).logits
        for start, end in zip(starts, ends, strict=False)
    ]


@pytest.mark.parametrize("made", MADE)
def test_ids_are_found_within_what_a_model_is_given(made, tmp_path):
    make, read = MADE[made]
    plain = generate(Model(read).eval(), make)
    with kvtrace.record(tmp_path / "a.kvt"):
        seen = generate(Model(read).eval(), make)
    assert all(torch.equal(one, other) for one, other in zip(plain, seen, strict=True))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [trace.step(number).tokens[1][-1] for number in trace.numbers] == [5, 6, 0, 8]
    report = check(trace)
    assert (report.verdict, report.steps, report.findings) == ("equal within rounding", 4, ())


def test_a_window_that_only_a_prompt_of_such_a_model_has_is_found(tmp_path):
    make, read = MADE["dataclass"]
    with kvtrace.record(tmp_path / "a.kvt"):
        generate(Model(read, window=4).eval(), make, IDS[:1])
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert [one.kind.name for one in report.findings] == ["WINDOW"]
    assert report.findings[0].step == 1


def test_numbers_in_a_cache_or_beside_rows_are_no_ids(tmp_path):
    layer = nn.TransformerEncoderLayer(16, 2, batch_first=True)

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, batch):
            return self.layer(x)

    with kvtrace.record(tmp_path / "a.kvt") as recording, torch.no_grad():
        Beside().eval()(torch.randn(1, 5, 16), {"tokens": IDS[:1, :5]})
    assert not recording.report.silent
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.step(0).tokens[0][0] < 0
