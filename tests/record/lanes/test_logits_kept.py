"""Logits of both lanes: how far apart they are, and which token each of them prefers."""

from __future__ import annotations

import torch

from builders.tiny_models import tiny_model
from kvtrace.record.lanes.compared.logits import KeptLogits
from kvtrace.record.lanes.given.cache_arguments import arguments_for
from kvtrace.record.lanes.passes.batch import Batch
from kvtrace.record.lanes.paths import Path


def difference(cached, lane):
    kept = KeptLogits()
    kept.keep(0, torch.tensor([[cached]]))
    return kept.compare(0, 0, torch.tensor(lane))


def test_lanes_whose_best_tokens_differ_prefer_different_ones():
    found = difference([1.0, 3.0, 2.5], [1.0, 2.0, 2.5])
    assert (found.best, found.lane_best) == (1, 2)
    assert (found.margin, found.max_abs) == (0.5, 1.0)


def test_lanes_with_the_same_tie_prefer_the_same_token():
    """Which of two equal ones a device calls the largest differs from call to call."""
    for cached in ([1.0, 3.0, 3.0], [3.0, 3.0, 1.0]):
        found = difference(cached, cached)
        assert found.best == found.lane_best
        assert (found.margin, found.max_abs) == (0.0, 0.0)


def test_a_lane_that_ties_where_the_other_does_not_prefers_the_same_token():
    found = difference([1.0, 3.0, 3.5], [1.0, 3.5, 3.5])
    assert found.best == found.lane_best == 2


def test_logits_of_the_last_rows_are_asked_for_by_their_number():
    path = Path([7, 3, 21, 9, 30])
    model, device = tiny_model("llama"), torch.device("cpu")
    last = arguments_for(model, Batch([path], [2, 3, 4]), device)
    assert last["logits_to_keep"] == 3
    apart = arguments_for(model, Batch([path], [0, 3, 4]), device)
    assert apart["logits_to_keep"].tolist() == [0, 3, 4]
