"""A model driven by another method than its forward is held against that forward."""

import importlib
import itertools

import pytest
import torch
from torch import nn

import kvtrace
from builders.driven import forgotten
from kvtrace.analysis.checks.report import DIVERGED, EQUAL

PROMPT = [3, 1, 4, 1, 5, 9]


class Stepping(nn.Module):
    """Trained with a whole text at once, and run by a method that takes one token."""

    skipped = 0
    """How many positions a step is told too many, once there are five tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(20, 16), nn.Embedding(64, 16)
        self.mix, self.head = nn.ModuleList(nn.Linear(16, 48) for _ in range(2)), nn.Linear(16, 20)

    def forward(self, ids):
        new = ids.shape[1]
        return self.run(ids, None, 0, torch.ones(new, new).tril() > 0)[0]

    def step(self, token, cache, pos):
        logits, cache = self.run(token[:, None], cache, pos + self.skipped * (pos > 4), None)
        return logits[:, -1], cache

    def run(self, ids, past, pos, mask):
        x, kept = self.embed(ids) + self.places(torch.arange(pos, pos + ids.shape[1])), []
        for layer, mix in enumerate(self.mix):
            q, k, v = mix(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            if past is not None:
                k, v = torch.cat((past[layer][0], k), 2), torch.cat((past[layer][1], v), 2)
            kept.append((k, v))
            scores = q @ k.mT * 8**-0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head(x), kept


class Masked(Stepping):
    """Its forward hides later tokens only where a mask says so."""

    def forward(self, ids, mask=None):
        return self.run(ids, None, 0, mask)[0]


class LookingAhead(Stepping):
    """Its forward hides nothing, and takes no mask: a text was trained in sight of its end."""

    def forward(self, ids):
        return self.run(ids, None, 0, None)[0]


class Skipping(Stepping):
    skipped = 1


class Upward(Masked):
    skipped = 1


@pytest.mark.parametrize("model", [Stepping, Masked])
def test_steps_of_one_token_equal_the_forward_over_all(model):
    report = kvtrace.check(model(), [PROMPT], new_tokens=4)
    assert report.verdict == EQUAL


def test_a_step_that_counts_wrongly_is_found():
    for model in (Skipping, Upward):
        report = kvtrace.check(model(), [PROMPT], new_tokens=4)
        first = report.findings[0]
        assert report.verdict == DIVERGED
        assert (first.name, first.step) == ("POSITION-EMBEDDING", 5)


def test_the_mask_that_its_forward_was_given_is_told(tmp_path):
    model = Masked()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        cache = None
        for pos, token in enumerate(PROMPT):
            _, cache = model.step(torch.tensor([token]), cache, pos)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert kvtrace.check(trace).verdict == EQUAL
    assert any("given mask (causal [new, all])" in note.text for note in trace.notes)


def test_a_forward_that_sees_what_no_step_can_see_is_told():
    report = kvtrace.check(LookingAhead(), [PROMPT], new_tokens=4)
    assert {one.name for one in report.findings} == {"NOT-CAUSAL"}


ADAPTER = """
from {module} import {kind}

class Own({kind}):
    step = None
    one = {kind}.step

def step(model, ids, cache, pos):
    for place, token in enumerate(ids[0]):
        logits, cache = model.one(token[None], cache, pos + place)
    return logits, cache
"""


@pytest.mark.parametrize(("kind", "verdict"), [(Stepping, EQUAL), (Skipping, DIVERGED)])
def test_an_adapter_that_feeds_its_tokens_one_by_one_is_fed_so(
    tmp_path, monkeypatch, kind, verdict
):
    (tmp_path / "adapted.py").write_text(ADAPTER.format(module=__name__, kind=kind.__name__))
    monkeypatch.syspath_prepend(tmp_path)
    with forgotten():
        report = kvtrace.check(importlib.import_module("adapted").Own(), [PROMPT], new_tokens=4)
    assert report.verdict == verdict


class Heedless(LookingAhead):
    """Takes masks, and hides nothing whatever they say."""

    called = 0

    def forward(self, ids, own_mask, other_mask, third_mask):
        Heedless.called += 1
        return self.run(ids, None, 0, None)[0]


def test_masks_are_not_tried_for_long_where_a_pass_takes_long(tmp_path, monkeypatch):
    called = []
    for seconds in (0, 1):
        clock = itertools.count(step=seconds)
        name = "kvtrace.record.lanes.passes.recompute.monotonic"
        monkeypatch.setattr(name, lambda clock=clock: next(clock))
        Heedless.called = 0
        model, cache = Heedless(), None
        with torch.no_grad(), kvtrace.record(tmp_path / f"{seconds}.kvt"):
            for pos, token in enumerate(PROMPT):
                cache = model.step(torch.tensor([token]), cache, pos)[1]
        called.append(Heedless.called)
    assert called[1] < called[0] / 2
