"""Forwards that take one object: it is made of what its class asks for."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.report import DIVERGED, EQUAL
from kvtrace.record.driving import Wish, choose_drive
from kvtrace.record.driving.gathered import object_of

PROMPT = [3, 1, 4, 1, 5, 9]


@dataclass
class Batch:
    tokens: torch.Tensor
    start_pos: int = 0


class Given(NamedTuple):
    input_ids: torch.Tensor
    positions: torch.Tensor
    kv_cache: tuple | None = None


class Checked:
    """Takes its fields by name alone."""

    def __init__(self, *, tokens: torch.Tensor, start_pos: int = 0):
        self.tokens, self.start_pos = tokens, start_pos


class Small(nn.Module):
    ahead = 0

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(20, 16), nn.Embedding(64, 16)
        self.mix, self.head, self.kept = nn.Linear(16, 48), nn.Linear(16, 20), None

    def _attend(self, ids, places, past):
        x = self.embed(ids) + self.places(places)
        q, k, v = self.mix(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        seen = torch.ones(q.shape[2], k.shape[2]).tril(k.shape[2] - q.shape[2]) > 0
        out = nn.functional.scaled_dot_product_attention(q, k, v, seen)
        return self.head(out.transpose(1, 2).flatten(2)), (k, v)


class Inside(Small):
    """Keeps its cache inside."""

    def forward(self, batch: Batch):
        start = batch.start_pos
        past = self.kept if start else None
        places = torch.arange(start, start + batch.tokens.shape[1]) + self.ahead * bool(start)
        logits, self.kept = self._attend(batch.tokens, places, past)
        return logits


class OfChecked(Inside):
    def forward(self, batch: Checked):
        return super().forward(batch)


class Passed(Small):
    """Is given its cache."""

    def forward(self, batch: Given):
        return self._attend(batch.input_ids, batch.positions, batch.kv_cache)


class Skipping(Inside):
    ahead = 1


@pytest.mark.parametrize(
    ("model", "call"),
    [
        (Inside, "model of Batch(tokens [1, new], start_pos=start)"),
        (OfChecked, "model of Checked(tokens [1, new], start_pos=start)"),
        (
            Passed,
            "model of Given(input_ids [1, new], kv_cache=cache, positions=positions [new])",
        ),
    ],
)
def test_a_forward_is_driven_with_its_cache_by_the_fields_of_its_object(model, call):
    assert choose_drive(model(), Wish(PROMPT, 4, vocabulary=20)).call == call
    assert kvtrace.check(model(), [PROMPT], new_tokens=4).verdict == EQUAL


def test_a_bug_behind_an_object_is_found():
    report = kvtrace.check(Skipping(), [PROMPT], new_tokens=4)
    assert report.verdict == DIVERGED
    assert report.findings[0].name == "POSITION-EMBEDDING"


class Plain(Small):
    def forward(self, x: torch.Tensor):
        return self._attend(x, torch.arange(x.shape[1]), None)[0]


class Misspelt(Small):
    def forward(self, batch: "Nowhere"):  # noqa: F821 - that nobody can look up is the point
        return batch


class Several(Small):
    def forward(self, batch: Batch, other):
        return batch


def test_only_one_object_that_holds_ids_is_made():
    assert object_of(Inside()) is Batch
    assert [object_of(model()) for model in (Plain, Misspelt, Several)] == [None] * 3
