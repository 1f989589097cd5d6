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
        if cache is None:  # from transformers 5.24 on it has another name
            cache = kwargs.get("past_key_values", kwargs.get("cache"))
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


def record(model, run, path, *, recompute="off", **options):
    """Record `run()`; the open trace, what the witness saw, and what `run` returned."""
    witness = Witness()
    with kvtrace.record(model, path, recompute=recompute, **options):
        handles = witness.watch(model)
        try:
            result = run()
        finally:
            for handle in handles:
                handle.remove()
    return kvtrace.open(path), witness.held, result


def assert_caches_agree(trace, held):
    """Every cache layer rebuilt from the trace is, bit for bit, what the live cache held."""
    compared, wrong = caches_disagree(trace, held)
    assert not wrong, wrong[0]
    assert compared


def caches_disagree(trace, held):
    """Rebuild every cache layer from the trace, after every step.

    Returns:
        How many layers and sequences were compared with the live cache, and a sentence for each
        that is not, bit for bit, what it held.
    """
    if len(trace) != len(held):
        return 0, [f"{len(trace)} steps, but {len(held)} forwards"]
    compared, wrong = 0, []
    kept: dict[int, tuple] = {}
    for number, live in enumerate(held):
        step = trace.step(number)
        for (layer, cross), rows in live.items():
            where = f"step {number}, {'cross ' if cross else ''}layer {layer}"
            stores = _stores(trace, layer, cross, *rows)
            if len(stores) != 1:
                wrong.append(f"{where}: {len(stores)} cache layers of that shape in the trace")
                continue
            group = step.cache_step(stores[0].index)
            if group is not None:
                kept[stores[0].index] = group.kept
            # a layer that the step did not touch holds what it held
            sequences = kept.get(stores[0].index, ())
            wrong += [f"{where}: {one}" for one in _others(trace, stores[0], sequences, rows)]
            compared += len(sequences)
    return compared, wrong


def _others(trace, store, sequences, rows):
    """What is not equal, as sentences."""
    held = rows[0].shape[2]
    if len(sequences) != len(rows[0]):
        return [f"{len(sequences)} sequences, but {len(rows[0])} are held"]
    wrong = []
    for sequence, runs in enumerate(sequences):
        count = sum(run.count for run in runs)
        if count != held:
            wrong.append(f"sequence {sequence}: {count} rows, but {held} are held")
            continue
        for tensor, live in zip((Tensor.KEYS, Tensor.VALUES), rows, strict=True):
            found = _cells(trace, store, tensor, runs)
            if not np.array_equal(found, bits(live[sequence])):
                wrong.append(f"sequence {sequence}: other {tensor.name.lower()}")
    return wrong


def _stores(trace, layer, cross, keys, values):
    return [
        store
        for store in trace.meta.cache_layers
        if store.layer == layer
        and (store.kind == "cross") == cross
        and store.kind != "state"
        and (store.key_dim, store.value_dim) == (keys.shape[3], values.shape[3])
    ]


def _cells(trace, store, tensor, runs):
    parts = [trace.source.cells(store.index, tensor, run.cell, run.count, None) for run in runs]
    return np.concatenate(parts, axis=1)


def bits(tensor):
    """A torch tensor as the trace stores it."""
    tensor = tensor.cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view("<u2")
    return tensor.numpy()


def assert_attention_explains_itself(trace, tolerance=1e-5):
    """softmax(q·kᵀ·scale …)·v from the trace is the output in the trace, at every site and step."""
    error = greatest_error(trace)
    assert error is not None
    assert error <= tolerance


def greatest_error(trace):
    """Of softmax(q·kᵀ·scale …)·v against the output, relative to it; None: nothing attended."""
    greatest = None
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
                    scale = float(np.abs(output).max()) or 1.0
                    greatest = max(greatest or 0.0, float(error.max()) / scale)
    return greatest
