"""Cache layers of people's own: what they hold, in which form, and whose rows they hand out."""

from __future__ import annotations

import pytest
import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import IDS, ready
from kvtrace.analysis.checks import check

ROOM = 16


class _Narrow(DynamicLayer):
    """Keeps half the bits, hands out all of them."""

    def update(self, key_states, value_states, *args, **kwargs):
        rows = super().update(key_states.half(), value_states.half(), *args, **kwargs)
        return tuple(one.float() for one in rows)

    def nbytes(self):
        return self.keys.nbytes + self.values.nbytes


class _Grown(DynamicLayer):
    """Rows in a buffer with room left; what is handed out is a part of it."""

    def update(self, key_states, value_states, *args, **kwargs):
        before, after = self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        if not before:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:2], ROOM, key_states.shape[3])
            self.buffer = key_states.new_zeros(2, *shape)
        self.buffer[0, :, :, before:after] = key_states
        self.buffer[1, :, :, before:after] = value_states
        self.keys, self.values = self.buffer[:, :, :, :after]
        return self.keys, self.values

    def nbytes(self):
        return self.buffer.nbytes


class _Chunks(DynamicLayer):
    """A list of what came in, joined whenever somebody asks."""

    def __init__(self, *args, **kwargs):
        self.parts = []
        super().__init__(*args, **kwargs)

    keys = property(lambda self: self._joined(0), lambda self, _: None)
    values = property(lambda self: self._joined(1), lambda self, _: None)

    def _joined(self, which):
        return torch.cat([part[which] for part in self.parts], dim=2) if self.parts else None

    def get_seq_length(self):
        return sum(part[0].shape[2] for part in self.parts)

    def update(self, key_states, value_states, *args, **kwargs):
        self.is_initialized = True
        self.parts.append((key_states, value_states))
        return self.keys, self.values

    def nbytes(self):
        return sum(one.nbytes for part in self.parts for one in part)


class _NewestFirst(DynamicLayer):
    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([key_states, self.keys], dim=2)
        self.values = torch.cat([value_states, self.values], dim=2)
        return self.keys, self.values


class _Lists(Cache):
    """Two lists, and no objects for its layers."""

    def __init__(self):
        super().__init__(layers=[])
        self.key_cache, self.value_cache = {}, {}

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        for rows, new in ((self.key_cache, key_states), (self.value_cache, value_states)):
            rows[layer_idx] = torch.cat([rows[layer_idx], new], 2) if layer_idx in rows else new
        return self.key_cache[layer_idx], self.value_cache[layer_idx]

    def get_seq_length(self, layer_idx=0):
        return self.key_cache[layer_idx].shape[2] if layer_idx in self.key_cache else 0

    def get_mask_sizes(self, query_length, layer_idx=0):
        return self.get_seq_length(layer_idx) + query_length, 0


class _Borrowed(Cache):
    """Every second layer is handed the rows of the one before."""

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        found = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        before = self.layers[layer_idx - 1]
        return (before.keys, before.values) if layer_idx % 2 else found


def recorded(cache, path, name="llama", ids=IDS):
    """Three steps with a cache, and the bytes that it held after each of them."""
    model, live = ready(tiny_model(name)), []
    with kvtrace.record(model, path), torch.no_grad():
        for _ in range(3):
            out = model(ids, past_key_values=cache, use_cache=True)
            ids = out.logits[:, -1:].argmax(-1)
            if isinstance(cache, _Lists):
                rows = [*cache.key_cache.values(), *cache.value_cache.values()]
                live.append(sum(one.nbytes for one in rows))
            elif all(hasattr(layer, "nbytes") for layer in cache.layers):
                live.append(sum(layer.nbytes() for layer in cache.layers))
    return kvtrace.open(path), live


@pytest.mark.parametrize("kind", [_Narrow, _Grown, _Chunks, _Lists])
def test_the_bytes_of_any_form_are_those_it_takes(kind, tmp_path):
    cache = _Lists() if kind is _Lists else Cache(layers=[kind() for _ in range(4)])
    trace, live = recorded(cache, tmp_path / "a.kvt")
    assert [step.cost.cache_bytes for step in trace] == live


def test_rows_in_a_narrower_type_are_kept_and_not_written_again(tmp_path):
    trace, _ = recorded(Cache(layers=[_Narrow() for _ in range(4)]), tmp_path / "a.kvt")
    for step, rows in zip(trace, (12, 13, 14), strict=True):
        assert {(group.length_after, group.rewritten) for group in step.caches} == {(rows, 0)}


def test_rows_of_another_layer_out_of_a_cache_are_named(tmp_path):
    cache = _Borrowed(layers=[DynamicLayer() for _ in range(4)])
    trace, _ = recorded(cache, tmp_path / "a.kvt")
    first = check(trace).findings[0]
    assert (first.name, first.step, first.layer, first.tensor) == ("WRONG-LAYER", 0, 1, "k")
    assert trace.site(1).source == "cache"


def test_nearly_equal_rows_in_another_order_are_kept_exactly(tmp_path):
    cache = Cache(layers=[_NewestFirst() for _ in range(4)])
    trace, _ = recorded(cache, tmp_path / "a.kvt", "xglm", torch.full((1, 12), 7))
    assert {layer.remark for layer in trace.meta.cache_layers} == {""}
    assert check(trace).findings == ()
