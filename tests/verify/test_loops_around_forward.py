"""Loops that call the parts of a model by hand: only they have its cache, its forward has none."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL, UNCHECKED
from kvtrace.analysis.checks.report import Report, Trial, together

PROMPT = [5, 9, 30, 7, 21, 14, 2, 12, 3, 17]


class Layer(nn.Module):
    """Attention over what it is handed, and its own rows after that."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.qkv.weight.data *= 3

    def forward(self, x, past=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        mask = torch.ones(q.shape[2], k.shape[2]).tril(k.shape[2] - q.shape[2]).bool()
        seen = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        return x + self.out(seen.transpose(1, 2).flatten(2)), (k, v)


class ByHand(nn.Module):
    """Its forward reads whole texts; its loop calls the layers, and keeps their rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(40, 32), nn.Embedding(64, 32)
        self.layers, self.head = nn.ModuleList([Layer(), Layer()]), nn.Linear(32, 40)

    def embed(self, ids, start):
        return self.tokens(ids) + self.places(torch.arange(start, start + ids.shape[1]))

    def forward(self, ids):
        x = self.embed(ids, 0)
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x)

    def start(self, length):
        return length

    @torch.no_grad()
    def generate(self, ids, max_new_tokens):
        caches = [None for _ in self.layers]
        new, start = ids, 0
        for _ in range(max_new_tokens):
            x = self.embed(new, start)
            for at, layer in enumerate(self.layers):
                x, caches[at] = layer(x, caches[at])
            start = self.start(ids.shape[1])
            new = self.head(x[:, -1]).argmax(-1, keepdim=True)
            ids = torch.cat((ids, new), 1)
        return ids


class OffByOne(ByHand):
    def start(self, length):
        return length - 1


def own(report):
    return next(one for one in report.trials if one.name.startswith("its own"))


def test_what_only_a_loop_keeps_is_checked_in_that_loop():
    report = kvtrace.check(ByHand().eval(), [PROMPT])
    assert own(report).report.ok, own(report)
    assert report.verdict == EQUAL
    assert report.trials[0].report.keeps_nothing


def test_what_is_wrong_in_a_loop_around_forward_is_named():
    report = kvtrace.check(OffByOne().eval(), [PROMPT])
    assert report.verdict == DIVERGED
    assert (report.findings[0].name, report.findings[0].step) == ("POSITION-EMBEDDING", 1)


@pytest.mark.parametrize("essential", [True, False])
def test_no_cache_at_all_is_no_pass(essential):
    nothing = Report(UNCHECKED, reason="no cache", keeps_nothing=True)
    trials = [Trial("a", nothing), Trial("b", nothing, essential=essential)]
    assert together(trials).verdict == UNCHECKED


def test_a_run_that_failed_is_no_pass_whatever_another_one_says():
    trials = [Trial("a", Report(UNCHECKED, reason="it raised")), Trial("b", Report(EQUAL))]
    assert together(trials).verdict == UNCHECKED


def test_who_watches_a_forward_that_nobody_calls_is_told_what_sees_its_parts(tmp_path):
    model, ids = ByHand().eval(), torch.tensor([PROMPT])
    with kvtrace.record(model, tmp_path / "forward.kvt"):
        model.generate(ids, 3)
    with kvtrace.record(tmp_path / "parts.kvt"):
        model.generate(ids, 3)
    assert (
        "no call of the model was seen"
        in kvtrace.open(tmp_path / "forward.kvt").meta.not_recorded[0]
    )
    assert len(kvtrace.open(tmp_path / "parts.kvt")) == 3
