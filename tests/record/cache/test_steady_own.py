"""Steps of a cache of one's own that are like the one before: looked at, and kept back, as one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace

import kvtrace
from builders.custom_drives import ids
from kvtrace.record.cache.own.steady import SteadySites
from kvtrace_fixtures.custom.tuple_cat import GPT

STEPS, ODD = 24, 14


@torch.no_grad()
def run(model, held, *, change=None):
    """Greedy steps; before one of them somebody changes the cache."""
    new, cache = ids(6), None
    for step in range(STEPS):
        if step == ODD and change is not None:
            cache = change(cache)
        logits, cache = model(new, cache)
        held.append([(keys.clone(), values.clone()) for keys, values in cache])
        new = logits[:, -1].argmax(-1, keepdim=True)


def model():
    torch.manual_seed(0)
    return GPT(vocab=256, width=64, heads=2, layers=3).eval()


def changed(cache):
    cache[1][0][:, 1, 3, 5] += 1
    return cache


def cropped(cache):
    return [(keys[:, :, :-2], values[:, :, :-2]) for keys, values in cache]


def evicted(cache):
    return [(keys[:, :, 1:], values[:, :, 1:]) for keys, values in cache]


def swapped(cache):
    order = [1, 0, *range(2, cache[0][0].shape[2])]
    return [(keys[:, :, order], values[:, :, order]) for keys, values in cache]


def shortened(cache):
    return [*cache[:2], (cache[2][0][:, :, :-1], cache[2][1][:, :, :-1])]


@pytest.mark.parametrize("change", [None, changed, cropped, evicted, swapped, shortened])
def test_what_every_layer_attended_to_is_told_whatever_happens_between_like_steps(tmp_path, change):
    path, held, watched = tmp_path / "a.kvt", [], model()
    with kvtrace.record(watched, path, recompute="off"):
        run(watched, held, change=change)
    trace = kvtrace.open(path)
    assert len(trace) == STEPS
    for step, layers in zip(trace, held, strict=True):
        for layer, (keys, values) in enumerate(layers):
            view = trace.cache(step.number, layer, 0)
            where = f"step {step.number}, layer {layer}"
            np.testing.assert_array_equal(view.keys, keys[0].numpy(), where)
            np.testing.assert_array_equal(view.values, values[0].numpy(), where)


def test_a_changed_row_is_a_rewritten_one_and_only_in_its_step(tmp_path):
    path, watched = tmp_path / "a.kvt", model()
    with kvtrace.record(watched, path, recompute="off"):
        run(watched, [], change=changed)
    trace = kvtrace.open(path)
    rewritten = [[group.rewritten for group in step.caches if 1 in group.layers] for step in trace]
    assert rewritten == [[0]] * ODD + [[1]] + [[0]] * (STEPS - ODD - 1)


def test_like_steps_are_looked_at_as_one(tmp_path, monkeypatch):
    looked, watched = [], model()
    look = SteadySites.look
    monkeypatch.setattr(
        SteadySites, "look", lambda *args: (look(*args), looked.append(args[0].done))
    )
    with kvtrace.record(watched, tmp_path / "a.kvt", recompute="off"):
        run(watched, [])
    assert len(looked) > STEPS // 2
    assert None not in looked


def test_steps_that_wait_for_company_say_what_each_says_alone(tmp_path):
    traces = []
    for told in (None, lambda _: None):
        watched, path = model(), tmp_path / f"{told is None}.kvt"
        with kvtrace.record(watched, path, recompute="off", on_step=told):
            run(watched, [])
        traces.append(kvtrace.open(path))
    for one, other in zip(*traces, strict=True):
        assert replace(one, elapsed_ns=0, recorder_ns=0) == replace(
            other, elapsed_ns=0, recorder_ns=0
        )
        for layer in range(3):
            for read in ("queries", "output"):
                first, second = (getattr(trace, read)(one.number, layer) for trace in traces)
                np.testing.assert_array_equal(first, second)
