"""Attention by the difference of softmaxes: a call for each, with what it alone would have made."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import kvtrace
from builders.attentions import HEADS, token_ids
from builders.recorded import assert_attention_explains_itself
from builders.stacked import Stacked, decoded
from kvtrace.analysis.checks import check
from kvtrace.record.flow import FlowWatch

DIM, WIDE = 8, 16
TIMES = 0.8


def halves(weights):
    """Heads in two halves."""
    first, second = weights.chunk(2, dim=1)
    return first - TIMES * second


def pairs(weights):
    """The heads of a pair next to each other."""
    both = weights.view(weights.shape[0], HEADS, 2, *weights.shape[2:])
    return both[:, :, 0] - TIMES * both[:, :, 1]


def strided(weights):
    return weights[:, ::2] - weights[:, 1::2] * torch.tensor(TIMES)


def unbound(weights):
    first, second = weights.unflatten(1, (HEADS, 2)).unbind(2)
    return first.sub(second.mul(TIMES))


def apart(weights):
    """The second half is picked by a slice."""
    return weights[:, :HEADS] + weights[:, HEADS:] * -TIMES


class Differential(nn.Module):
    def __init__(self, combine):
        super().__init__()
        self.combine = combine
        width = HEADS * WIDE
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x, past=None):
        q, k = (one(x).unflatten(-1, (2 * HEADS, DIM)).transpose(1, 2) for one in (self.q, self.k))
        v = self.v(x).unflatten(-1, (HEADS, WIDE)).transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        new, seq = q.shape[2], k.shape[2]
        later = torch.ones(new, seq, dtype=torch.bool).triu(seq - new + 1)
        scores = (q @ k.mT * DIM**-0.5).masked_fill(later, float("-inf"))
        mixed = self.combine(scores.softmax(-1)) @ v
        return mixed.transpose(1, 2).flatten(2), (k, v)


def built(combine):
    return Stacked(lambda: Differential(combine), HEADS * WIDE)


def heads_of(combine, number):
    """Which of all heads each softmax has."""
    every = torch.arange(2 * HEADS)
    return every.view(2, HEADS)[number] if combine in (halves, apart) else every[number::2]


@pytest.mark.parametrize("combine", [halves, pairs, strided, unbound, apart])
def test_each_softmax_is_a_call_of_its_own(combine):
    model = built(combine)
    layer, ids = model.layers[0], token_ids(2, 6)
    with FlowWatch(model, sink=(calls := []).append) as watch, torch.no_grad():
        model(ids)
    assert watch.unseen == ()
    assert [(call.module, call.call) for call in calls] == [
        (f"layers.{n}", call) for n in (0, 1) for call in (0, 1)
    ]
    x = model.embed(ids)
    for number, call in enumerate(calls[:2]):
        mine = heads_of(combine, number)
        for rows, one in ((call.queries, layer.q), (call.keys, layer.k)):
            expected = one(x).unflatten(-1, (2 * HEADS, DIM)).transpose(1, 2)[:, mine]
            torch.testing.assert_close(rows, expected)
        scores = call.queries @ call.keys.mT * DIM**-0.5
        later = torch.ones(6, 6, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        torch.testing.assert_close(call.output, weights @ call.values)
    total = (calls[0].output - TIMES * calls[1].output).transpose(1, 2).flatten(2)
    torch.testing.assert_close(total, layer(x)[0], rtol=1e-4, atol=1e-5)
    assert any("2 softmaxes added up, times 1 and -0.8;" in note for note in watch.notes)


@pytest.mark.parametrize("combine", [halves, pairs])
def test_a_recording_of_it_changes_nothing_and_proves_itself(combine, tmp_path):
    model = built(combine)
    expected = decoded(model, 4)
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="once"):
        found = decoded(model, 4)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.meta.unseen == ()
    assert all(sum(len(group.sites) for group in step.sites) == 4 for step in trace)
    assert_attention_explains_itself(trace)
    assert check(trace).verdict == "equal within rounding"


@torch.no_grad()
def test_the_values_are_multiplied_once_and_counted_once(tmp_path):
    model, ids = built(pairs), token_ids(1, 6)
    with FlopCounterMode(display=False) as counter:
        model(ids)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        model(ids)
    cached = kvtrace.open(tmp_path / "a.kvt").step(0).cost.cached
    parts = (cached.qkv, cached.scores, cached.mix, cached.output, cached.mlp, cached.other)
    assert sum(parts) + cached.head_all == counter.get_total_flops()


def bent(weights):
    first, second = weights.chunk(2, dim=1)
    return first - (TIMES * second).square()


def crossed(weights):
    first, second = weights.chunk(2, dim=1)
    return first - second * first


@pytest.mark.parametrize("combine", [bent, crossed])
def test_weights_that_are_no_sum_of_softmaxes_are_told_of_and_not_reported(combine):
    model = built(combine)
    with FlowWatch(model, sink=(calls := []).append) as watch, torch.no_grad():
        model(token_ids(1, 6))
    assert calls == []
    assert len(watch.unseen) == 2
    assert all("differs from its output" in one for one in watch.unseen)
