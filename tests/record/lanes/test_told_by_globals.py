"""Engines that tell a model by globals where its rows lie: a lane is told it for all tokens."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check

WIDTH, HEADS, VOCAB, ROWS = 16, 2, 40, 4
TABLE = [3, 1, 6, 2]


@dataclasses.dataclass
class Told:
    prompt: bool = False
    slots: object = None
    table: object = None
    length: object = None
    cu_seqlens: object = None


_MADE_ANEW = Told()
_OF_THREAD = threading.local()
_DICTIONARY: dict = {"prompt": False}
FORM = "made anew"


def tell(**given):
    global _MADE_ANEW
    if FORM == "made anew":
        _MADE_ANEW = Told(**given)
    elif FORM == "of a thread":
        vars(_OF_THREAD).update(dataclasses.asdict(Told(**given)))
    else:
        _DICTIONARY.clear()
        _DICTIONARY.update(dataclasses.asdict(Told(**given)))


def told():
    if FORM == "made anew":
        return _MADE_ANEW
    return _OF_THREAD if FORM == "of a thread" else Told(**_DICTIONARY)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.keys, self.values = (torch.zeros(8, ROWS, HEADS, WIDTH // HEADS) for _ in range(2))

    def forward(self, x):
        here = told()
        q, k, v = (one.view(-1, HEADS, WIDTH // HEADS) for one in self.qkv(x).chunk(3, -1))
        self.keys.flatten(0, 1)[here.slots], self.values.flatten(0, 1)[here.slots] = k, v
        if here.prompt:
            assert here.cu_seqlens.tolist() == [0, len(x)]
        else:
            k, v = (
                one[here.table[0]].flatten(0, 1)[: int(here.length[0])]
                for one in (self.keys, self.values)
            )
        q, k, v = (one.transpose(0, 1)[None] for one in (q, k, v))
        made = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=here.prompt)
        return x + made[0].transpose(0, 1).flatten(1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(64, WIDTH)
        self.layers, self.head = (
            nn.ModuleList(Attention() for _ in range(2)),
            nn.Linear(WIDTH, VOCAB),
        )

    def forward(self, input_ids, positions):
        x = self.embed(input_ids) + self.places(positions)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def slot(place):
    return TABLE[place // ROWS] * ROWS + place % ROWS


@torch.no_grad()
def serve(model, wrong=None):
    """A prompt of five tokens, and five more; one of them may be told another slot."""
    ids = [5, 9, 3, 7, 11]
    tell(
        prompt=True,
        slots=torch.tensor([slot(n) for n in range(5)]),
        cu_seqlens=torch.tensor([0, 5]),
    )
    out = model(torch.tensor(ids), torch.arange(5))
    tell()
    for place in range(5, 10):
        ids.append(int(out[-1].argmax()))
        tell(
            slots=torch.tensor([slot(place - (place == wrong))]),
            table=torch.tensor([TABLE[: place // ROWS + 1]]),
            length=torch.tensor([place + 1]),
        )
        out = model(torch.tensor(ids[-1:]), torch.tensor([place]))
        tell()


@pytest.mark.parametrize("form", ["made anew", "of a thread", "a dictionary"])
@pytest.mark.parametrize("mode", ["once", "each"])
def test_a_lane_is_told_for_all_tokens_what_each_call_was_told(form, mode, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "FORM", form)
    tell()
    model = Model().eval()
    with kvtrace.record(model, tmp_path / "a.kvt", recompute=mode):
        serve(model)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.steps) == ("equal within rounding", 6)
    assert told().slots is None


def test_a_row_that_was_written_to_another_slot_is_found(tmp_path):
    tell()
    model = Model().eval()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        serve(model, wrong=7)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert report.findings[0].step == 3
