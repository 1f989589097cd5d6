"""A caller who goes back to an earlier position leaves rows behind that no query sees."""

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import StaticSlidingWindowLayer

from builders.custom_drives import build, ids
from confusion.score import recorded
from kvtrace import record
from kvtrace.analysis.checks import EQUAL, check
from kvtrace.files import open_trace
from verify.bugs import llama

PROMPT, ACCEPTED, DRAFTED = 9, 11, 13


def drafted(model, tokens, ends, *, back=ACCEPTED):
    """A prompt, a draft whose last two tokens are rejected, and steps that go on before those."""

    @torch.no_grad()
    def drive():
        model(tokens[:, :PROMPT], torch.arange(PROMPT))
        draft = tokens[:, PROMPT:DRAFTED].clone()
        draft[:, ACCEPTED - PROMPT :] += 1
        model(draft, torch.arange(PROMPT, DRAFTED))
        start = ACCEPTED
        for end in ends:
            place = torch.arange(start, end) + back - ACCEPTED
            model(tokens[:, start:end], place)
            start = end

    return drive


def test_rejected_rows_that_a_buffer_still_holds_are_taken_off():
    model = build("index_copy")
    trace = recorded(model, drafted(model, ids(18), (12, 13, 14, 15, 16)))
    assert check(trace).verdict == EQUAL
    step = trace.step(2)
    assert step.positions == ((ACCEPTED,),)
    assert [event.kind for event in step.events] == ["crop"]
    assert trace.cache(2, 0, 0).positions.tolist() == list(range(ACCEPTED + 1))


def test_several_tokens_may_follow_those_that_were_accepted():
    model = build("index_copy")
    trace = recorded(model, drafted(model, ids(18), (15, 16)))
    assert check(trace).verdict == EQUAL
    assert trace.step(2).positions == (tuple(range(ACCEPTED, 15)),)


def test_going_back_too_far_gives_up_an_accepted_row_as_well():
    model = build("index_copy")
    trace = recorded(model, drafted(model, ids(18), (12, 13, 14), back=ACCEPTED - 1))
    assert trace.step(2).positions == ((ACCEPTED - 1,),)
    assert trace.cache(2, 0, 0).positions.tolist() == list(range(ACCEPTED))


@pytest.mark.parametrize(("inference", "window"), [(False, None), (True, None), (False, 24)])
def test_a_static_buffer_that_is_told_to_count_fewer_rows_was_cropped(inference, window, tmp_path):
    model, path = llama(), tmp_path / "run.kvt"
    cache = StaticCache(config=model.config, max_cache_len=32)
    if window is not None:
        cache.layers = [StaticSlidingWindowLayer(32, window) for _ in cache.layers]
    with torch.inference_mode(inference), torch.no_grad(), record(model, path, referee=True):
        tokens = torch.arange(20, 32)[None]
        for _ in range(5):
            tokens = model(tokens, past_key_values=cache).logits[:, -1:].argmax(-1)
        for layer in cache.layers:
            layer.cumulative_length.fill_(13)
            layer.cumulative_length_int = 13  # of a window
        for tokens in ([[50, 51]], [[52]]):
            model(torch.tensor(tokens), past_key_values=cache)
    trace = open_trace(path)
    assert check(trace).verdict == EQUAL
    step = trace.step(5)
    assert (step.parent, step.positions) == (4, ((13, 14),))
    assert [(one.kind, one.lengths_after) for one in step.events] == [("crop", (13, 13))]


def test_a_crop_without_the_position_is_told_as_both_things_it_may_be(tmp_path):
    model, path = llama(), tmp_path / "run.kvt"
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), record(model, path, referee=True):
        model(torch.arange(20, 32)[None], past_key_values=cache)
        model(torch.arange(40, 44)[None], past_key_values=cache)
        cache.crop(-3)
        model(torch.tensor([[50]]), past_key_values=cache, position_ids=torch.tensor([[16]]))
    found = check(open_trace(path)).findings[0]
    assert (found.name, found.step, found.layer, found.tensor) == ("HISTORY-LOST", 2, 0, "k")
    assert "13, 14, 15: the cache was cropped, and the position not set back" in found.evidence
