"""Attributes that a program sets on a model between texts: each text has its own other lane."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import IDS as TEXT
from builders.ways import ready
from kvtrace.analysis.checks.report import DIVERGED, EQUAL, UNCHECKED
from kvtrace.analysis.checks.verdict import check
from kvtrace.record.lanes.as_it_was.attributes import Kept, Place
from kvtrace.record.lanes.as_it_was.settings import as_set

WIDTH, HEADS, VOCAB = 16, 2, 40
IDS = torch.arange(3, 12)[None]


@dataclasses.dataclass
class Wishes:
    scale: float = 1.0
    window: int = 99


class Attention(nn.Module):
    temperature = 1.0

    def __init__(self, wishes):
        super().__init__()
        self.wishes, self.window, self.slopes = wishes, 99, [0.1, 0.2]
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.register_buffer("factor", torch.ones(HEADS, 1, 1))
        self.kept, self.first = None, 0

    def forward(self, x):
        q, k, v = (
            one(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in (self.q, self.k, self.v)
        )
        if self.kept is not None:
            k, v = (torch.cat(two, 2) for two in zip(self.kept, (k, v), strict=True))
        self.kept = k, v
        rows, keys = torch.arange(k.shape[2])[-q.shape[2] :, None], torch.arange(k.shape[2])
        far = rows - keys
        scale = self.wishes.scale * self.factor / self.temperature
        scores = q @ k.mT * scale - far * torch.tensor(self.slopes)[:, None, None]
        window = min(self.window, self.wishes.window)
        hidden = (far < 0) | (far >= window)
        return (scores.masked_fill(hidden, -1e9).softmax(-1) @ v).transpose(1, 2).flatten(2)


class Own(nn.Module):
    """A cache inside; its own `begin` and `read` count the tokens for it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        wishes = Wishes()
        self.embed, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(60, WIDTH)
        self.layers = nn.ModuleList(Attention(wishes) for _ in range(2))
        self.head, self.read = nn.Linear(WIDTH, VOCAB), 0

    def begin(self):
        self.read = 0
        for layer in self.layers:
            layer.kept = None

    def forward(self, ids):
        x = self.embed(ids) + self.places(torch.arange(self.read, self.read + ids.shape[1]))
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)

    @torch.no_grad()
    def say(self, ids, count=4, at=None, change=None):
        self.begin()
        for number in range(count):
            if number == at:
                change(self)
            now = self(ids)
            self.read += ids.shape[1]
            ids = now[:, -1:].argmax(-1)


def scale(model):
    model.layers[1].wishes.scale = 3.0


def other_wishes(model):
    model.layers[0].wishes = Wishes(window=2)


def window(model):
    model.layers[0].window = 3


def slope(model):
    model.layers[1].slopes[0] = 0.9


def factor(model):
    model.layers[0].factor.mul_(4)


def of_the_instance(model):
    model.layers[0].temperature = 4.0


CHANGES = [scale, other_wishes, window, slope, factor, of_the_instance]


def recorded(path, change, mode="once"):
    model = Own().eval()
    with kvtrace.record(model, path, recompute=mode):
        model.say(IDS)
        change(model)
        model.say(IDS + 5)
    return kvtrace.open(path)


@pytest.mark.parametrize("mode", ["once", "each"])
@pytest.mark.parametrize("change", CHANGES)
def test_each_text_is_computed_again_with_what_was_set_then(change, mode, tmp_path):
    trace = recorded(tmp_path / "a.kvt", change, mode)
    report = check(trace)
    assert (report.verdict, report.steps) == (EQUAL, 8)
    assert any("as it was then: set at step 4" in note.text for note in trace.notes)


def test_the_class_of_a_module_is_looked_at_too_and_keeps_what_was_set(tmp_path, monkeypatch):
    trace = recorded(
        tmp_path / "a.kvt", lambda _: monkeypatch.setattr(Attention, "temperature", 5.0)
    )
    assert Attention.temperature == 5.0
    assert check(trace).verdict == EQUAL


@pytest.mark.parametrize("change", CHANGES)
def test_a_text_is_not_compared_from_where_something_was_set_in_its_middle(change, tmp_path):
    model = Own().eval()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        model.say(IDS)
        model.say(IDS + 5, count=6, at=3, change=change)
    trace = kvtrace.open(tmp_path / "a.kvt")
    report = check(trace)
    assert (report.verdict, report.findings, report.steps) == (UNCHECKED, (), 7)
    assert "set before step 7, within a text" in report.reason


def test_a_position_that_a_program_counts_and_does_not_reset_is_no_setting(tmp_path):
    model = Own().eval()

    def forget():
        for layer in model.layers:
            layer.kept = None

    with kvtrace.record(model, tmp_path / "a.kvt"):
        model.say(IDS)
        model.begin = forget
        model.say(IDS + 5)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert report.verdict == DIVERGED
    assert report.findings[0].step == 4


def test_a_model_that_keeps_nothing_has_each_text_with_what_it_had_and_is_left_as_it_is(tmp_path):
    model = ready(tiny_model("llama"))
    attention, rotary = model.model.layers[0].self_attn, model.model.rotary_emb
    with kvtrace.record(model, tmp_path / "a.kvt"):
        for number, scaling in enumerate((0.3, 0.9, 0.1)):
            attention.scaling = scaling
            rotary.inv_freq *= 0.5
            model.generate(TEXT + number, max_new_tokens=3, do_sample=False)
        attention.scaling = 7.0
    assert attention.scaling == 7.0
    assert check(kvtrace.open(tmp_path / "a.kvt")).verdict == EQUAL


def test_a_copy_of_another_module_is_run_without_what_it_has_no_place_for():
    there, elsewhere = Place("", "", "window"), Place("part", "", "window")
    model = nn.Linear(2, 2)
    with as_set(model, {elsewhere: Kept(7), there: Kept(9)}):
        assert model.window == 9
    assert not hasattr(model, "window")
