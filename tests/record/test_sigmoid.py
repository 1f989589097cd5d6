"""Attention whose weights are sigmoids of their scores: recorded, proved, and said to be that."""

import numpy as np
import pytest
import torch
from torch import nn

import kvtrace
from builders.attentions import HEADS, token_ids
from builders.recorded import assert_attention_explains_itself
from builders.stacked import Stacked, decoded
from kvtrace.analysis.checks import check
from kvtrace.analysis.nature import attention_is
from kvtrace.analysis.selfcheck import self_check
from kvtrace.record.flow import FlowWatch

DIM, BIAS = 8, -1.5


def masked(scores, later):
    return torch.sigmoid((scores + BIAS).masked_fill(later, float("-inf")))


def afterwards(scores, later):
    return (scores + BIAS).sigmoid() * ~later


def in_place(scores, later):
    scores += BIAS
    return scores.masked_fill_(later, -1e9).sigmoid_()


class Sigmoid(nn.Module):
    def __init__(self, weigh):
        super().__init__()
        self.weigh = weigh
        self.qkv = nn.Linear(HEADS * DIM, 3 * HEADS * DIM)

    def forward(self, x, past=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, DIM)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        new, seq = q.shape[2], k.shape[2]
        later = torch.ones(new, seq, dtype=torch.bool).triu(seq - new + 1)
        weights = self.weigh(q @ k.mT * DIM**-0.5, later)
        return (weights @ v).transpose(1, 2).flatten(2), (k, v)


def built(weigh):
    return Stacked(lambda: Sigmoid(weigh), HEADS * DIM)


@pytest.mark.parametrize("weigh", [masked, afterwards, in_place])
def test_sigmoid_attention_is_recorded_with_its_rows_and_repeats_its_output(weigh, tmp_path):
    model = built(weigh)
    expected = decoded(model, 3)
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="once"):
        found = decoded(model, 3)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.meta.unseen == ()
    assert {(site.rule, site.level) for site in trace.meta.sites} == {("sigmoid", 3)}
    assert [len(step.sites[0].sites) for step in trace] == [2, 2, 2, 2]
    assert_attention_explains_itself(trace)
    assert self_check(trace, 3, 1).passed
    assert max(trace.step(0).sites[0].check_error) < 1e-5
    assert "sigmoid of each score, no softmax" in attention_is(trace, 0)
    assert check(trace).verdict == "equal within rounding"


def test_weights_are_sigmoids_of_the_recorded_scores_and_sum_to_anything(tmp_path):
    model = built(masked)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        decoded(model, 3)
    trace = kvtrace.open(tmp_path / "a.kvt")
    weights = trace.weights(1, 0, 0).weights[0, 0]
    q = trace.rows(1, 0, kvtrace.trace.Tensor.QUERIES)[0, 0]
    keys = trace.cache(1, 0).keys[0]
    naive = [1 / (1 + np.exp(-(float(q @ key) * DIM**-0.5 + BIAS))) for key in keys]
    np.testing.assert_allclose(weights, naive, rtol=1e-5)
    assert abs(weights.sum() - 1) > 0.1


def test_a_bug_in_a_cache_of_sigmoid_attention_is_found(tmp_path):
    model = built(masked)
    forward = Sigmoid.forward

    def crops(self, x, past=None):
        return forward(self, x, past and (past[0][:, :, 1:], past[1][:, :, 1:]))

    model.layers[1].forward = crops.__get__(model.layers[1])
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="once"):
        decoded(model, 3)
    found = check(kvtrace.open(tmp_path / "a.kvt")).findings[0]
    assert (found.name, found.layer) == ("EVICTED-EARLY", 1)


class Features(nn.Module):
    """A layer over weights that were made on the way: a sigmoid between two products."""

    def __init__(self):
        super().__init__()
        self.into, self.out = (nn.Parameter(torch.randn(32, 24)) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(24))

    def forward(self, x):
        gain = self.scale * x.mean()  # so that they are no parameters any more
        return torch.sigmoid(x @ (self.into * gain)) @ (self.out * gain).mT


@pytest.mark.parametrize("tokens", [6, 24])
def test_a_layer_of_features_with_sigmoids_is_no_attention(tokens):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 32), Features(), nn.Linear(32, 50))
    with torch.no_grad(), FlowWatch(model, sink=(calls := []).append) as watch:
        model(token_ids(1, tokens))
        model(token_ids(1, 1))
    assert watch.unseen == ()
    assert calls == []
