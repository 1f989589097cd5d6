"""A cache that is made of what is left of another one's rows, as whoever evicts by hand does."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import IDS, ready
from kvtrace.analysis.checks import UNCHECKED, check

TOKENS = IDS.shape[1]


def left(rows):
    """The first two rows, and the last four."""
    return torch.cat([rows[:, :, :2], rows[:, :, -4:]], dim=2)


def by_head(rows):
    """Other rows for the second half of the heads than for the first."""
    first, second = rows.chunk(2, dim=1)
    return torch.cat([first[:, :, :6], second[:, :, -6:]], dim=1)


def half(rows):
    return rows.half().to(rows.dtype)


def remade(cache, change):
    return DynamicCache([(change(layer.keys), change(layer.values)) for layer in cache.layers])


def decoded(model, path, change, steps=3):
    """A prompt, and a few tokens after it with what was made of its cache."""
    with torch.no_grad(), kvtrace.record(model, path):
        out = model(IDS)
        cache, token = remade(out.past_key_values, change), out.logits[:, -1:].argmax(-1)
        del out
        for step in range(steps):
            place = torch.tensor([[TOKENS + step]])
            logits = model(token, past_key_values=cache, position_ids=place).logits
            token = logits[:, -1:].argmax(-1)
    return kvtrace.open(path)


@pytest.mark.parametrize(
    ("change", "name"), [(left, "EVICTED-EARLY"), (by_head, "EVICTED-EARLY"), (half, "DTYPE")]
)
def test_what_was_done_to_the_rows_is_said_though_the_cache_is_new(change, name, tmp_path):
    trace = decoded(ready(tiny_model("llama")), tmp_path / "a.kvt", change)
    assert [step.parent for step in trace] == [None, 0, 1, 2]
    first = check(trace).findings[0]
    assert (first.name, first.step) == (name, 1)


def test_rows_that_are_left_are_the_cells_they_were(tmp_path):
    trace = decoded(ready(tiny_model("llama")), tmp_path / "a.kvt", left)
    for group in trace.step(1).caches:
        rows = [
            (run.cell + i, run.position + i) for run in group.attended[0] for i in range(run.count)
        ]
        places = [0, 1, *range(TOKENS - 4, TOKENS + 1)]
        assert rows == list(zip(places, places, strict=True))
        assert (group.length_before, group.length_after, group.rewritten) == (TOKENS, 7, 0)


def test_a_cache_that_is_made_anew_in_every_step_is_followed(tmp_path):
    model = ready(tiny_model("llama"))
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        out, token = model(IDS), IDS[:, :1]
        for step in range(4):
            cache = remade(out.past_key_values, left)
            out = model(token, past_key_values=cache, position_ids=torch.tensor([[TOKENS + step]]))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.parent for step in trace] == [None, 0, 1, 2, 3]
    # the first rows and the newest, in every step: a rule, and no slip
    assert check(trace).findings[0].name == "EVICTED-BY-CHOICE"


def test_rows_of_another_text_with_the_same_first_words_are_nobodys(tmp_path):
    model = ready(tiny_model("llama"))
    other = torch.cat([IDS[:, :2], IDS[:, 2:] + 1], dim=1)
    with torch.no_grad():
        unseen = model(other).past_key_values
        with kvtrace.record(model, tmp_path / "a.kvt"):
            model(IDS)
            model(IDS[:, :1], past_key_values=remade(unseen, left))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.parent for step in trace] == [None, None]
    report = check(trace)
    assert report.verdict == UNCHECKED
