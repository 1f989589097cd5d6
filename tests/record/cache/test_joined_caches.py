"""Caches of several prompts that are joined to those of one batch, shorter ones with padding."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import ready
from kvtrace.analysis.checks.verdict import check

SIDES = ["left", "right"]
PROMPTS = torch.randint(3, 40, (4, 9), generator=torch.Generator().manual_seed(0))


def padded(rows, length, side):
    more = rows.new_zeros(*rows.shape[:2], length - rows.shape[2], rows.shape[3])
    return torch.cat([more, rows] if side == "left" else [rows, more], 2)


def layers_of(caches, side):
    length = max(one.get_seq_length() for one in caches)
    for layers in zip(*(one.layers for one in caches), strict=True):
        yield tuple(
            torch.cat([padded(getattr(one, name), length, side) for one in layers])
            for name in ("keys", "values")
        )


def by_update(caches, side):
    made = DynamicCache()
    for number, (keys, values) in enumerate(layers_of(caches, side)):
        made.update(keys, values, number)
    return made


def of_tuples(caches, side):
    return DynamicCache(list(layers_of(caches, side)))


def into_the_first(caches, side):
    for layer, (keys, values) in zip(caches[0].layers, layers_of(caches, side), strict=True):
        layer.keys, layer.values = keys, values
    return caches[0]


class Batch:
    """Sequences with a cache in common, as whoever serves several prompts at once has them."""

    def __init__(self, model, side):
        self.model, self.side, self.cache = model, side, None

    def begin(self, ids):
        made = Batch(self.model, self.side)
        made.cache, made.mask, made.places = DynamicCache(), torch.ones_like(ids), None
        out = self.model(ids, past_key_values=made.cache)
        made.places, made.ids = torch.tensor([[ids.shape[1]]]), out.logits[:, -1:].argmax(-1)
        return made

    def join(self, batches, how):
        self.cache = how([one.cache for one in batches], self.side)
        length = max(one.mask.shape[1] for one in batches)
        masks = [padded(one.mask[:, None, :, None], length, self.side) for one in batches]
        self.mask = torch.cat(masks)[:, 0, :, 0]
        self.places, self.ids = (
            torch.cat([getattr(one, name) for one in batches]) for name in ("places", "ids")
        )
        return self

    def decode(self, steps):
        for _ in range(steps):
            self.mask = torch.cat([self.mask, torch.ones_like(self.ids)], 1)
            out = self.model(
                self.ids,
                past_key_values=self.cache,
                attention_mask=self.mask,
                position_ids=self.places,
            )
            self.places, self.ids = self.places + 1, out.logits[:, -1:].argmax(-1)
        return self


def begun(side, lengths, before=0):
    batch = Batch(ready(tiny_model("llama")), side)
    return batch, lambda: [
        batch.begin(PROMPTS[row : row + 1, :length]).decode(before)
        for row, length in enumerate(lengths)
    ]


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("how", [by_update, of_tuples, into_the_first])
@pytest.mark.parametrize("lengths", [(6, 6, 6), (7, 4, 6)])
def test_each_sequence_of_a_joined_cache_goes_on_with_its_own_prompt(lengths, how, side, tmp_path):
    batch, begin = begun(side, lengths, before=1)
    with kvtrace.record(batch.model, tmp_path / "a.kvt"):
        batch.join(begin(), how).decode(3)
    trace = kvtrace.open(tmp_path / "a.kvt")
    report = check(trace)
    assert (report.ok, report.findings, report.steps) == (True, (), len(trace))
    assert trace.step(6).positions == tuple((length + 1,) for length in lengths)


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
def test_a_prompt_may_join_a_batch_that_decodes(side, tmp_path):
    batch, begin = begun(side, (7, 4, 5))
    with kvtrace.record(batch.model, tmp_path / "a.kvt"):
        *first, late = begin()
        batch.join(first, by_update).decode(2)
        Batch(batch.model, side).join([batch, late], by_update).decode(3)
    trace = kvtrace.open(tmp_path / "a.kvt")
    report = check(trace)
    assert (report.ok, report.findings, report.steps) == (True, (), 8)


@torch.no_grad()
@pytest.mark.parametrize("how", [by_update, into_the_first])
def test_a_row_that_is_spoilt_in_a_joined_cache_is_found(how, tmp_path):
    batch, begin = begun("left", (7, 4, 6))
    with kvtrace.record(batch.model, tmp_path / "a.kvt"):
        batch.join(begin(), how)
        batch.cache.layers[1].keys[1, :, 4] += 1
        batch.decode(3)
    found = check(kvtrace.open(tmp_path / "a.kvt")).findings[0]
    assert (found.name, found.step, found.sequences) == ("CONTENT", 3, (1,))


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
def test_padding_of_a_joined_cache_that_is_not_hidden_is_found(side, tmp_path):
    batch, begin = begun(side, (7, 4, 6))
    with kvtrace.record(batch.model, tmp_path / "a.kvt"):
        batch.join(begin(), by_update)
        batch.mask[:] = 1
        batch.decode(3)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.findings[0].step, report.findings[0].sequences) == (3, (1, 2))
