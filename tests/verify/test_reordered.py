"""Models that put their caches into the order of the beams themselves, rightly or not."""

import pytest
import torch
from transformers import LlamaForCausalLM

import kvtrace
from verify.bugs import llama

PROMPT = torch.arange(10, 18)[None]


def taken(cache, chosen):
    for layer in cache.layers:
        layer.keys = layer.keys.index_select(0, chosen)
        layer.values = layer.values.index_select(0, chosen)
    return cache


class Right(LlamaForCausalLM):
    @staticmethod
    def _reorder_cache(past, chosen):
        return taken(past, chosen)


class Bound(LlamaForCausalLM):
    def _reorder_cache(self, past, chosen):
        past.reorder_cache(chosen)
        return past


class Idle(LlamaForCausalLM):
    @staticmethod
    def _reorder_cache(past, chosen):
        return past


class Flipped(LlamaForCausalLM):
    def _reorder_cache(self, past, chosen):
        return taken(past, chosen.flip(0))


def beams(cls):
    model = llama(cls)
    given = {"num_beams": 3, "max_new_tokens": 7, "do_sample": False}
    return kvtrace.check(model, run=lambda: model.generate(PROMPT, **given))


@pytest.mark.parametrize("cls", [Right, Bound])
def test_beams_that_a_model_orders_rightly_are_equal(cls):
    report = beams(cls)
    assert report.ok, report


@pytest.mark.parametrize("cls", [Idle, Flipped])
def test_beams_that_a_model_leaves_or_takes_otherwise_are_rows_of_another(cls):
    found = beams(cls).trials[0].report.findings[0]
    assert (found.name, found.layer, found.tensor) == ("WRONG-BATCH-ROW", 0, "k")


def test_the_method_is_as_it_was_afterwards():
    before = {cls: cls.__dict__["_reorder_cache"] for cls in (Right, Bound)}
    for cls in before:
        beams(cls)
    assert {cls: cls.__dict__["_reorder_cache"] for cls in before} == before
