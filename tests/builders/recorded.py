"""A run recorded beside an independent witness of the caches, and what must agree with it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

import kvtrace
from kvtrace.trace import Tensor
from kvtrace.trace.weights import mix


@dataclass
class Witness:
    """Clones what the caches hold after every forward, by the model's own hooks only."""

    held: list[dict] = field(default_factory=list)

    def watch(self, model):
        entrances = [model]
        if getattr(model.config, "is_encoder_decoder", False):
            entrances.append(model.get_encoder())
        return [one.register_forward_hook(self._see, with_kwargs=True) for one in entrances]

    def _see(self, module, args, kwargs, result):
        cache = getattr(result, "past_key_values", None)
        if cache is None:
            cache = kwargs.get("past_key_values")
        found = {}
        for part in ("self_attention_cache", "cross_attention_cache"):
            half = getattr(cache, part, None)
            if half is not None:
                found |= _held(half, part == "cross_attention_cache")
        if cache is not None and not found:
            found = _held(cache, False)
        self.held.append(found)


def _held(cache, cross):
    found = {}
    for index, layer in enumerate(cache.layers):
        keys = getattr(layer, "keys", None)
        if isinstance(keys, torch.Tensor) and keys.dim() == 4 and keys.shape[2]:
            rows = min(int(layer.get_seq_length()), keys.shape[2])
            whole = (keys.detach(), layer.values.detach())
            pair = tuple(one[:, :, :rows].clone() for one in whole)
            found[index, cross] = pair
    return found


def record(model, run, path, **options):
    """Record `run()`; the open trace, what the witness saw, and what `run` returned."""
    witness = Witness()
    handles = witness.watch(model)
    try:
        with kvtrace.record(model, path, recompute="off", **options):
            result = run()
    finally:
        for handle in handles:
            handle.remove()
    return kvtrace.open(path), witness.held, result


def assert_caches_agree(trace, held):
    """Every cache layer rebuilt from the trace is, bit for bit, what the live cache held."""
    assert len(trace) == len(held)
    compared = 0
    for number, live in enumerate(held):
        step = trace.step(number)
        for (layer, cross), (keys, values) in live.items():
            store = _store(trace, layer, cross, keys, values)
            group = step.cache_step(store.index)
            if group is None:
                continue
            assert group.length_after == keys.shape[2], (number, layer)
            for sequence, runs in enumerate(group.kept):
                for tensor, rows in ((Tensor.KEYS, keys), (Tensor.VALUES, values)):
                    found = _cells(trace, store, tensor, runs)
                    np.testing.assert_array_equal(found, bits(rows[sequence]))
                compared += 1
    assert compared


def _store(trace, layer, cross, keys, values):
    fits = [
        store
        for store in trace.meta.cache_layers
        if store.layer == layer
        and (store.kind == "cross") == cross
        and store.kind != "state"
        and (store.key_dim, store.value_dim) == (keys.shape[3], values.shape[3])
    ]
    assert len(fits) == 1, fits
    return fits[0]


def _cells(trace, store, tensor, runs):
    parts = [trace.source.cells(store.index, tensor, run.cell, run.count, None) for run in runs]
    return np.concatenate(parts, axis=1)


def bits(tensor):
    """A torch tensor as the trace stores it."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view("<u2")
    return tensor.numpy()


def assert_attention_explains_itself(trace, tolerance=1e-5):
    """softmax(q·kᵀ·scale …)·v from the trace is the output in the trace, at every site and step."""
    checked = 0
    for step in trace:
        for group in step.sites:
            for site in group.sites:
                for sequence in range(step.num_sequences):
                    view = trace.cache(step.number, site, sequence)
                    weights = trace.weights(step.number, site, sequence=sequence).weights
                    output = trace.output(step.number, site, sequence)
                    seen = trace.visible(step.number, site, sequence).any(axis=-1)
                    error = np.abs(mix(weights, view.values) - output)
                    error = np.where(seen[..., None], error, 0)
                    scale = max(1.0, float(np.abs(output).max()))
                    assert error.max() <= tolerance * scale, (step.number, site, sequence)
                    checked += 1
    assert checked
