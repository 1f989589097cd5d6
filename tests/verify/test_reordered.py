"""Models that put their caches into the order of the beams themselves, rightly or not."""

import copy
import gc
import weakref

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, LlamaForCausalLM

import kvtrace
from builders.encoder_decoders import bart
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


class Stays(EncoderDecoderCache):
    def reorder_cache(self, beam_idx):
        pass


class Follows(EncoderDecoderCache):
    def reorder_cache(self, beam_idx):
        taken(self.self_attention_cache, beam_idx)
        taken(self.cross_attention_cache, beam_idx)


def halves(cls=EncoderDecoderCache):
    return cls(DynamicCache(), DynamicCache())


def alone(cache, reorder):
    cache.reorder_cache = reorder
    return cache


def translated(cache, **given):
    model = bart()
    settings = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False, **given}
    return kvtrace.check(
        model, run=lambda: model.generate(PROMPT, past_key_values=cache(), **settings)
    )


@pytest.mark.parametrize(
    "cache", [lambda: halves(Stays), lambda: alone(halves(), lambda _: None)], ids=["class", "own"]
)
def test_halves_that_are_left_as_they_are_hold_rows_of_other_beams(cache):
    found = translated(cache).trials[0].report.findings[0]
    assert found.name == "WRONG-BATCH-ROW"


@pytest.mark.parametrize(
    "cache",
    [
        lambda: halves(Follows),
        lambda: alone(one := halves(), lambda chosen: Follows.reorder_cache(one, chosen)),
    ],
    ids=["class", "own"],
)
def test_halves_that_somebody_orders_rightly_are_equal(cache):
    report = translated(cache)
    assert report.ok, report


def test_one_cache_whose_own_method_does_nothing_has_rows_of_other_beams():
    model = llama(LlamaForCausalLM)
    given = {"num_beams": 3, "max_new_tokens": 7, "do_sample": False}
    report = kvtrace.check(
        model,
        run=lambda: model.generate(
            PROMPT, past_key_values=alone(DynamicCache(), lambda _: None), **given
        ),
    )
    assert report.trials[0].report.findings[0].name == "WRONG-BATCH-ROW"


def test_an_objects_own_method_is_back_in_its_place_and_the_object_may_die(tmp_path):
    def stay(_):
        return None

    model, cache = bart(), alone(halves(), stay)
    with kvtrace.record(model, tmp_path / "run.kvt"):
        model.generate(PROMPT, past_key_values=cache, num_beams=2, max_new_tokens=3)
        copied = copy.copy(cache)
        gone = alone(halves(), stay)
        model.generate(PROMPT, past_key_values=gone, num_beams=2, max_new_tokens=3)
        dead = weakref.ref(gone)
        del gone
        model.generate(PROMPT, past_key_values=copied, num_beams=2, max_new_tokens=3)
    gc.collect()
    assert dead() is None
    assert vars(cache)["reorder_cache"] is stay
    assert vars(copied)["reorder_cache"] is stay
