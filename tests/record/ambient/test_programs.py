"""What programs do with a model while whatever runs is recorded."""

from __future__ import annotations

import functools
import weakref

import pytest
import torch

import kvtrace
from builders.custom_drives import build, ids, through_the_cache
from kvtrace.analysis.checks import EQUAL, check


@pytest.mark.parametrize(
    "way",
    [
        lambda model: model.forward,
        lambda model: functools.partial(model.forward),
        lambda model: type(model).forward.__get__(model),
        weakref.proxy,
    ],
)
def test_a_forward_that_is_bound_once_is_a_step_each_time(way, tmp_path):
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        model = build("tuple_cat")
        forward = way(model)
        through_the_cache("tuple_cat", forward, ids(9), 6)
    (found,) = recording.report.traces
    assert (found.steps, found.texts) == (4, 1)
    assert check(kvtrace.open(tmp_path / "a.kvt")).verdict == EQUAL


def test_what_somebody_puts_around_a_forward_runs_once_a_call(tmp_path, monkeypatch):
    model, calls = build("tuple_cat"), []
    with kvtrace.record(tmp_path / "a.kvt"):
        original = type(model).forward

        def counted(*args, **kwargs):
            calls.append(None)
            return original(*args, **kwargs)

        monkeypatch.setattr(type(model), "forward", counted)
        through_the_cache("tuple_cat", model.forward, ids(9), 6)
        monkeypatch.undo()
    assert len(calls) == 4


@pytest.mark.parametrize("part", [lambda model: model, lambda model: model.blocks[0]])
def test_texts_are_compared_with_the_weights_that_were_loaded_for_them(part, tmp_path):
    model, other = build("tuple_cat"), build("tuple_cat")
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
    with kvtrace.record(tmp_path / "a.kvt"):
        for loaded in (other, build("tuple_cat")):
            through_the_cache("tuple_cat", model, ids(9), 6)
            part(model).load_state_dict(part(loaded).state_dict())
        through_the_cache("tuple_cat", model, ids(9), 6)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert len(trace) == 12
    assert check(trace).verdict == EQUAL
