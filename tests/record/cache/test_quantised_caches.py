"""Caches that keep their rows quantised: what they hand out, and what is rounded again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.cache_utils import (
    Cache,
    QuantizedCache,
    QuantizedLayer,
)

from builders.recorded import (
    assert_attention_explains_itself,
    bits,
    record,
)
from builders.tiny_models import tiny_model
from builders.ways import generate, ready


def model_of(model_type):
    return ready(tiny_model(model_type))


class Eighths(QuantizedLayer):
    """Rounds to eighths, packed in bytes: a backend of one's own under transformers' layer."""

    def __init__(self, residual_length=4):
        super().__init__(residual_length=residual_length)

    def _quantize(self, tensor, axis):
        scale = tensor.abs().amax() / 127
        return (tensor / scale).round().to(torch.int8), scale

    def _dequantize(self, qtensor):
        packed, scale = qtensor
        return packed.float() * scale


def quantised(name, config):
    if name == "fp8":
        return QuantizedCache("fp8", config)
    return Cache(layers=[Eighths() for _ in range(config.num_hidden_layers)])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["fp8", "eighths"])
def test_what_a_quantised_cache_hands_out_is_recorded_at_every_step(name, beams, tmp_path):
    model = model_of("llama")
    cache = quantised(name, model.config)
    handed = []
    for layer in cache.layers:
        update = type(layer).update

        def told(self, *args, _update=update, **kwargs):
            out = _update(self, *args, **kwargs)
            handed.append(tuple(part.clone() for part in out))
            return out

        layer.update = told.__get__(layer)
    run = generate(model, past_key_values=cache, num_beams=beams, max_new_tokens=8)
    trace, _, _ = record(model, run, tmp_path / "a.kvt")
    assert_attention_explains_itself(trace)
    seen = iter(handed)
    for step in trace:
        for site in trace.meta.sites:
            keys, values = next(seen)
            for sequence in range(step.num_sequences):
                view = trace.cache(step.number, site.index, sequence)
                np.testing.assert_array_equal(view.keys, bits(keys[sequence]))
                np.testing.assert_array_equal(view.values, bits(values[sequence]))
    assert next(seen, None) is None
    layer = trace.cache_layer(0)
    assert (layer.kind, layer.dtype) == ("quantised", "float32")
    assert "packed" in layer.remark


def test_rows_are_new_cells_whenever_they_are_rounded_again(tmp_path):
    model = model_of("llama")
    cache = quantised("eighths", model.config)
    run = generate(model, past_key_values=cache, max_new_tokens=8)
    trace, _, _ = record(model, run, tmp_path / "a.kvt")
    rewritten = [step.caches[0].rewritten for step in trace]
    # the prompt is rounded after it was used; of four more rows each is rounded once
    assert rewritten[:2] == [0, 12]
    assert sum(rewritten[2:]) >= 4
    packed = [one for layer in cache.layers for one in (layer._quantized_keys, layer.keys)]
    values = [one for layer in cache.layers for one in (layer._quantized_values, layer.values)]
    nbytes = 0
    for one in packed + values:
        parts = one if isinstance(one, tuple) else (one,)
        nbytes += sum(part.nbytes for part in parts)
    assert trace.step(trace.numbers[-1]).cost.cache_bytes == nbytes
