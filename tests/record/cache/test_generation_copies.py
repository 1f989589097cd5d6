"""A prefix that was computed once and copied for several prompts, in every way people copy it."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from transformers import DynamicCache, StaticCache

import kvtrace
from builders.recorded import assert_attention_explains_itself, assert_caches_agree, record
from builders.tiny_models import tiny_model
from builders.ways import IDS, ready

PREFIX = 6
TAILS = ([9, 30, 14], [5, 40, 11, 2])


def prompt(tail):
    return torch.cat([IDS[:, :PREFIX], torch.tensor([tail])], dim=1)


def filled(model, cache):
    with torch.no_grad():
        return model(IDS[:, :PREFIX], past_key_values=cache).past_key_values


def answers(model, cache, copied):
    """One answer for each prompt, each with its own copy of the prefix."""
    options = {"do_sample": False, "max_new_tokens": 4}
    found = [
        model.generate(prompt(tail), past_key_values=copied(cache), **options) for tail in TAILS
    ]
    return torch.cat([one[0] for one in found])


def rebuilt(cache):
    """Another cache object, from the rows as they were saved."""
    rows = [(layer.keys, layer.values) for layer in cache.layers]
    return DynamicCache([tuple(one[:, :, :PREFIX].clone() for one in both) for both in rows])


def recorded(model, run, path):
    expected = run()
    trace, held, result = record(model, run, path, recompute="once")
    assert torch.equal(result, expected)
    assert_caches_agree(trace, held)
    assert_attention_explains_itself(trace)
    return trace


def assert_compared(trace):
    """Every step was recomputed along all its tokens, and nothing is said to be missing."""
    limit = trace.meta.lane("recomputed").tolerance
    assert not trace.notes
    for number in trace.numbers:
        found = trace.compared(number).relative
        assert (found[found == found] <= limit).all(), number


@pytest.mark.parametrize("name", ["llama", "mistral", "deepseek_v3", "gemma3_text"])
def test_each_prompt_goes_on_with_the_copied_rows_and_writes_only_its_own(name, tmp_path):
    model = ready(tiny_model(name))

    def run():
        return answers(model, filled(model, DynamicCache(config=model.config)), deepcopy)

    trace = recorded(model, run, tmp_path / "a.kvt")
    assert_compared(trace)
    begins = [step for step in trace if step.phase == "prefill"]
    assert [step.parent for step in begins] == [None, 0, 0]
    assert [step.new for step in begins] == [PREFIX, 3, 4]
    for step in begins[1:]:
        assert {group.length_before for group in step.caches} == {PREFIX}
        assert {group.rows for group in step.caches} == {step.new}


@pytest.mark.parametrize(
    ("kind", "copied"), [(StaticCache, deepcopy), (DynamicCache, rebuilt)], ids=["static", "new"]
)
def test_however_it_was_copied(kind, copied, tmp_path):
    model = ready(tiny_model("llama"))
    more = {"max_cache_len": 32} if kind is StaticCache else {}

    def run():
        return answers(model, filled(model, kind(config=model.config, **more)), copied)

    assert_compared(recorded(model, run, tmp_path / "a.kvt"))


def test_rows_of_a_buffer_in_a_cache_that_grows_are_what_they_are(tmp_path):
    model = ready(tiny_model("llama"))

    def run():
        buffers = StaticCache(config=model.config, max_cache_len=32)
        return answers(model, filled(model, buffers), rebuilt)

    recorded(model, run, tmp_path / "a.kvt")


def test_a_prefix_that_is_copied_for_a_batch_is_each_sequences(tmp_path):
    model = ready(tiny_model("llama"))

    def run():
        prefix = filled(model, DynamicCache(config=model.config))
        cache = deepcopy(prefix)
        cache.batch_repeat_interleave(2)
        ids = torch.cat([IDS[:, :PREFIX].repeat(2, 1), torch.tensor([[9, 30, 14], [5, 40, 11]])], 1)
        return model.generate(ids, past_key_values=cache, do_sample=False, max_new_tokens=4)

    trace = recorded(model, run, tmp_path / "a.kvt")
    assert_compared(trace)
    assert trace.step(1).parent == 0
    assert {group.rows for group in trace.step(1).caches} == {3}


def test_a_copy_of_a_cache_that_went_on_since_has_only_its_first_rows(tmp_path):
    model = ready(tiny_model("llama"))

    @torch.no_grad()
    def run():
        cache = filled(model, DynamicCache(config=model.config))
        copy = deepcopy(cache)
        model(torch.tensor([[9, 30]]), past_key_values=cache)
        return model(torch.tensor([[5]]), past_key_values=copy).logits

    trace = recorded(model, run, tmp_path / "a.kvt")
    assert_compared(trace)
    last = trace.step(2)
    assert last.parent == 1
    assert [(one.kind, one.lengths_before[0], one.lengths_after[0]) for one in last.events] == [
        ("crop", PREFIX + 2, PREFIX)
    ]


def test_of_a_copy_in_which_a_row_was_changed_that_row_is_new(tmp_path):
    model = ready(tiny_model("llama"))

    @torch.no_grad()
    def run():
        cache = filled(model, DynamicCache(config=model.config))
        other = rebuilt(cache)
        other.layers[0].values[0, 0, 2, 0] += 1
        return model(torch.tensor([[5]]), past_key_values=other).logits

    trace = recorded(model, run, tmp_path / "a.kvt")
    assert trace.step(1).parent == 0
    written = {group.layers: (group.rows, group.rewritten) for group in trace.step(1).caches}
    assert written[0,] == (2, 1)


def chosen(cache, order):
    """Another cache object that holds these sequences of one, as a search by hand keeps them."""
    rows = [(layer.keys, layer.values) for layer in cache.layers]
    return DynamicCache([tuple(one[order].clone() for one in both) for both in rows])


def test_sequences_that_are_kept_by_hand_go_on_each_with_its_own_rows(tmp_path):
    model, orders = ready(tiny_model("llama")), ([2, 2, 0], [1], [0, 0])

    def run():
        before, out = filled(model, DynamicCache()), []
        cache = chosen(before, [0, 0, 0])
        with torch.no_grad():
            for turn, order in enumerate(orders):
                tokens = torch.tensor([[20 + turn], [30], [40]])[: cache.layers[0].keys.shape[0]]
                out.append(model(tokens, past_key_values=cache).logits)
                before, cache = cache, chosen(cache, order)
            out.append(model(torch.tensor([[7], [8]]), past_key_values=cache).logits)
        return torch.cat([one[:, -1] for one in out])

    trace = recorded(model, run, tmp_path / "a.kvt")
    assert_compared(trace)
    orders_seen = [[event.order for event in step.events] for step in trace]
    assert orders_seen == [[], [], [(2, 2, 0)], [(1,)], []]
    assert [step.parent for step in trace] == [None, 0, 1, 2, 3]
    assert sum(trace.compared(number) is not None for number in trace.numbers) == 5


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_copy_of_a_cache_that_was_cut_to_a_sequence_has_that_sequence(goes_on, tmp_path):
    model = ready(tiny_model("llama"))

    @torch.no_grad()
    def run():
        before, out = filled(model, DynamicCache()), []
        for turn, best in enumerate((2, 1, 0)):  # candidates, of which the best one is kept
            cache = deepcopy(before)
            cache.batch_repeat_interleave(3)
            tokens = torch.tensor([[20 + turn], [30], [40]])
            out.append(model(tokens, past_key_values=cache).logits)
            cache.batch_select_indices(torch.tensor([best]))
            before = cache if goes_on else deepcopy(cache)
        before.batch_repeat_interleave(3)
        return torch.cat([*out, model(tokens, past_key_values=before).logits])

    trace = recorded(model, run, tmp_path / "a.kvt")
    assert_compared(trace)
    orders = [[event.order for event in step.events if event.kind == "select"] for step in trace]
    assert orders[:4] == [[], [], [(2, 2, 2)], [(1, 1, 1)]]
    assert [step.parent for step in trace] == [None, 0, 1, 2, 3]


def test_requests_that_are_split_from_a_batch_go_on_with_its_rows_when_it_is_gone(tmp_path):
    model = ready(tiny_model("llama"))

    def split():
        out = model(torch.cat([IDS, IDS + 1]), use_cache=True)
        rows = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        alone = [[tuple(one[i : i + 1].clone() for one in both) for both in rows] for i in range(2)]
        return [DynamicCache(one) for one in alone], out.logits[:, -1:].argmax(-1)

    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        caches, tokens = split()
        for cache, token in zip(caches, tokens, strict=True):
            for _ in range(2):
                token = model(token[None, :1], past_key_values=cache).logits[0, -1:].argmax(-1)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.parent for step in trace] == [None, 0, 1, 0, 3]
    assert_compared(trace)


def test_a_prefix_that_was_saved_and_read_again_is_what_it_was(tmp_path):
    model = ready(tiny_model("llama"))

    def save():
        cache = filled(model, DynamicCache())
        torch.save([(layer.keys, layer.values) for layer in cache.layers], tmp_path / "rows.pt")

    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        save()
        model(IDS + 1)  # something else in between
        for tail in TAILS:
            cache = DynamicCache(torch.load(tmp_path / "rows.pt"))
            model(torch.tensor([tail]), past_key_values=cache)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.step(2).parent == 0
    assert_compared(trace)
