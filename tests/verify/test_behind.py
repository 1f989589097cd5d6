"""Buffers of which more is seen than they count, and caches whose own methods reorder them."""

import types

import pytest
import torch
from transformers import DynamicCache, StaticCache

import kvtrace
from verify.bugs import llama

ROOM = 20


@torch.no_grad()
def decode(model, cache, ids, steps, seen=()):
    """A prompt and single tokens in a buffer; every query sees the slots `seen` besides."""
    start = 0
    for _ in range(steps):
        end = start + ids.shape[1]
        mask = torch.full((1, 1, ids.shape[1], ROOM), float("-inf")).triu(start + 1)
        mask[..., list(seen)] = 0
        given = {"position_ids": torch.arange(start, end)[None], "attention_mask": mask}
        ids = model(ids, past_key_values=cache, **given).logits[:, -1:].argmax(-1)
        start = end


def first(model, run):
    return kvtrace.check(model, run=run).trials[0].report.findings[0]


def test_rows_behind_a_shorter_prompt_that_are_seen_are_of_the_text_before():
    model = llama()

    def run():
        cache = StaticCache(config=model.config, max_cache_len=ROOM)
        decode(model, cache, torch.arange(10, 22)[None], 2)
        for layer in cache.layers:
            layer.cumulative_length.zero_()
        decode(model, cache, torch.arange(40, 45)[None], 3, seen=range(9, 12))

    found = first(model, run)
    assert (found.name, found.step, found.layer) == ("STALE-CACHE", 2, 0)
    assert "3 rows that are no token of this prompt, slots 9, 10, 11" in found.evidence


def test_slots_that_nobody_wrote_are_zero_rows_where_a_mask_covers_them():
    model = llama()
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    prompt = torch.arange(10, 18)[None]
    found = first(model, lambda: decode(model, cache, prompt, 3, seen=range(14, ROOM)))
    assert (found.name, found.step, found.layer) == ("ZERO-ROWS-VISIBLE", 0, 0)


def test_slots_that_a_right_mask_hides_are_no_rows():
    model = llama()
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    prompt = torch.arange(10, 18)[None]
    report = kvtrace.check(model, run=lambda: decode(model, cache, prompt, 4))
    assert report.ok, report


def reordered(self, chosen):
    """The values stay where they are."""
    self.keys = self.keys.index_select(0, chosen)


@pytest.mark.parametrize("whole", [True, False])
def test_a_layer_whose_own_method_reorders_half_of_it_is_followed_by_its_rows(whole):
    model = llama()
    cache = DynamicCache(config=model.config)
    for layer in () if whole else cache.layers:
        layer.reorder_cache = types.MethodType(reordered, layer)
    prompt = torch.arange(10, 18)[None]
    given = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "past_key_values": cache}
    report = kvtrace.check(model, run=lambda: model.generate(prompt, **given))
    assert report.ok is whole
    assert {(one.name, one.tensor) for one in report.findings} <= {("WRONG-BATCH-ROW", "v")}
