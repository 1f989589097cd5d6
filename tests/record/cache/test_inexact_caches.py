"""Caches of one's own that compress or evict: what they do to rows is said to be their doing."""

import pytest
import torch
from transformers import DynamicCache

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import ready
from kvtrace.analysis.checks import EQUAL, check
from kvtrace.trace import INEXACT

PROMPT = torch.arange(3, 15)[None]


class Turned(DynamicCache):
    """Rows are rounded in another basis, so that they take no few values in this one."""

    def update(self, key_states, value_states, *args, **kwargs):
        return super().update(_lossy(key_states), _lossy(value_states), *args, **kwargs)


class Exact(DynamicCache):
    def update(self, key_states, value_states, *args, **kwargs):
        return super().update(key_states.clone(), value_states.clone(), *args, **kwargs)


class NewestFirst(DynamicCache):
    """Keeps rows exactly, and hands them back in another order than they came in."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return keys.roll(key_states.shape[2], 2), values.roll(key_states.shape[2], 2)


def _lossy(rows):
    basis = torch.linalg.qr(torch.randn(rows.shape[-1], rows.shape[-1], generator=seeded()))[0]
    step = rows.abs().amax() / 20
    return ((rows @ basis) / step).round() * step @ basis.T


def seeded():
    return torch.Generator().manual_seed(5)


def decoded(cache, path):
    """Three tokens after the prompt, with this cache."""
    model = ready(tiny_model("llama"))
    ids = PROMPT
    with kvtrace.record(model, path), torch.no_grad():
        for _ in range(4):
            logits = model(ids, past_key_values=cache).logits
            ids = logits[:, -1:].argmax(-1)
    return kvtrace.open(path)


def test_a_cache_that_compresses_is_named_as_what_changes_rows(tmp_path):
    trace = decoded(Turned(), tmp_path / "a.kvt")
    assert {one.remark for one in trace.meta.cache_layers} == {INEXACT}
    first = check(trace).findings[0]
    assert (first.name, first.step, first.layer) == ("DTYPE", 0, 0)
    assert INEXACT in first.evidence


@pytest.mark.parametrize("kind", [Exact, NewestFirst])
def test_a_cache_that_keeps_rows_exactly_is_not_said_to_change_them(kind, tmp_path):
    trace = decoded(kind(), tmp_path / "a.kvt")
    assert {one.remark for one in trace.meta.cache_layers} == {""}
    if kind is Exact:
        assert check(trace).verdict == EQUAL


class DropsBefore(DynamicCache):
    """Lets go of its third row before its fourteenth is handed back."""

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        if keys.shape[2] == 14:
            keys, values = (torch.cat((r[:, :, :2], r[:, :, 3:]), 2) for r in (keys, values))
            layer.keys, layer.values = keys, values
        return keys, values


def test_rows_that_a_cache_drops_before_it_answers_are_called_evicted(tmp_path):
    first = check(decoded(DropsBefore(), tmp_path / "a.kvt")).findings[0]
    assert (first.name, first.step, first.tensor) == ("EVICTED-EARLY", 2, "k")
    assert "does not see place 2" in first.evidence
    assert first.evidence.endswith("in step 2 its cache kept 13 of 14 rows")


class SinksAndRecent(DynamicCache):
    """Hands back all it has, and then keeps the first two rows and the last four."""

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        layer.keys, layer.values = (
            torch.cat((rows[:, :, :2], rows[:, :, -4:]), 2) for rows in (keys, values)
        )
        return keys, values


def test_rows_that_a_cache_was_seen_to_drop_are_called_evicted(tmp_path):
    model, cache, path = ready(tiny_model("llama")), SinksAndRecent(), tmp_path / "a.kvt"
    with kvtrace.record(model, path), torch.no_grad():
        logits = model(PROMPT, past_key_values=cache).logits
        model(
            logits[:, -1:].argmax(-1),
            past_key_values=cache,
            position_ids=torch.tensor([[PROMPT.shape[1]]]),
            attention_mask=torch.ones(1, 7),
        )
    first = check(kvtrace.open(path)).findings[0]
    assert (first.name, first.step, first.tensor) == ("EVICTED-EARLY", 1, "k")
    assert "does not see places 2 to 7" in first.evidence
    assert first.evidence.endswith("in step 0 its cache kept 6 of 12 rows")
