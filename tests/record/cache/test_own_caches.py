"""Caches of people's own: what the trace says they held is what they held, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kvtrace
from builders.custom_caches import READERS, own_cache
from builders.custom_drives import build, ids, through_the_cache
from kvtrace.analysis.cost.memory import cache_memory

CHUNKED = [style for style in READERS if style != "ring_window"]
BATCHED = [style for style in CHUNKED if style != "plain_functions"]
RESETS = {"einsum_heads": "reset_cache", "ring_window": "reset"}


def recorded(style, path, *runs, batch=1):
    """The trace of some texts through one model, and what its own cache held after each step."""
    model = build(style)
    if style == "index_copy":
        model.setup_caches(max_batch_size=batch)
    held = []
    with kvtrace.record(model, path, recompute="off"):
        for tokens, prompt, ends in runs:
            through_the_cache(
                style,
                model,
                tokens,
                prompt,
                ends=ends,
                witness=lambda cache, past: held.append(
                    own_cache(style, model, cache, past, batch)
                ),
            )
            if style in RESETS:
                getattr(model, RESETS[style])()
            if style == "hooked_dict":
                for block in model.blocks:
                    for projection in (block.attn.key, block.attn.value):
                        projection._forward_hooks.clear()
    return kvtrace.open(path), held


def assert_held(trace, held):
    """Every layer and sequence of every step, cell by cell."""
    assert len(trace) == len(held)
    assert len(trace.meta.sites) == len(held[0])
    for step, layers in zip(trace, held, strict=True):
        for layer, (keys, values, positions) in enumerate(layers):
            group = trace.cache_step(step.number, layer)
            assert group.length_after == keys.shape[2]
            for sequence in range(len(keys)):
                view = trace.cache(step.number, layer, sequence)
                where = f"step {step.number}, layer {layer}, sequence {sequence}"
                np.testing.assert_array_equal(view.keys, keys[sequence].numpy(), where)
                np.testing.assert_array_equal(view.values, values[sequence].numpy(), where)
                assert view.positions.tolist() == positions, where


def assert_grows(trace, texts):
    """Steps continue each other within a text; rows are written once, for every token one."""
    number = 0
    for ends in texts:
        for at, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            step = trace.step(number)
            assert step.parent == (number - 1 if at else None)
            assert step.positions[0] == tuple(range(start, end))
            assert step.phase == ("decode" if at and end - start == 1 else "prefill")
            for group in step.caches:
                assert (group.rows, group.rewritten) == (end - start, 0)
                assert (group.length_before, group.length_after) == (start, end)
            number += 1
    assert number == len(trace)
    assert all(site.source == "cache" for site in trace.meta.sites)


@pytest.mark.parametrize("style", READERS)
def test_the_derived_cache_is_the_real_one(style, tmp_path):
    trace, held = recorded(style, tmp_path / "a.kvt", (ids(14), 6, ()))
    assert_held(trace, held)


@pytest.mark.parametrize("style", CHUNKED)
def test_it_is_over_chunks_and_a_second_text_after_a_reset(style, tmp_path):
    ends = [3, 7, 9, 10, 11, 12]
    texts = (ids(12), 6, ends[:3]), (ids(9, seed=6), 4, ())
    trace, held = recorded(style, tmp_path / "a.kvt", *texts)
    assert_held(trace, held)
    assert_grows(trace, [ends, list(range(4, 10))])


@pytest.mark.parametrize("style", CHUNKED)
def test_the_same_text_again_is_a_new_text(style, tmp_path):
    trace, held = recorded(style, tmp_path / "a.kvt", (ids(8), 5, ()), (ids(8), 5, ()))
    assert_held(trace, held)
    assert_grows(trace, [list(range(5, 9))] * 2)


@pytest.mark.parametrize("style", BATCHED)
def test_it_is_for_every_sequence_of_a_batch(style, tmp_path):
    trace, held = recorded(style, tmp_path / "a.kvt", (ids(11, batch=2), 5, ()), batch=2)
    assert_held(trace, held)
    assert_grows(trace, [list(range(5, 12))])


def test_a_ring_overwrites_its_oldest_row(tmp_path):
    trace, held = recorded("ring_window", tmp_path / "a.kvt", (ids(14), 3, ()))
    assert_held(trace, held)
    layer = trace.cache_layer(0)
    assert (layer.kind, layer.capacity, layer.window) == ("sliding", 8, 8)
    view = trace.cache(len(trace) - 1, 0)
    assert view.slots.tolist() == list(range(8))
    assert view.positions.tolist() == [8, 9, 10, 11, 12, 13, 6, 7]
    assert [trace.cache_step(n, 0).rows for n in trace.numbers] == [3] + [1] * 11
    assert not any(group.rewritten for step in trace for group in step.caches)


def test_a_prompt_longer_than_the_ring_is_attended_to_whole(tmp_path):
    trace, held = recorded("ring_window", tmp_path / "a.kvt", (ids(14), 11, ()))
    assert trace.cache(0, 0).positions.tolist() == list(range(11))
    for number in trace.numbers[1:]:
        keys, _, positions = held[number][0]
        view = trace.cache(number, 0)
        np.testing.assert_array_equal(view.keys, keys[0].numpy())
        assert view.positions.tolist() == positions
    assert [run.position for run in trace.cache_step(0, 0).kept[0]] == [3]
    assert trace.cache_step(0, 0).length_after == 8
    assert trace.cache_step(1, 0).length_before == 8


def test_keys_rotated_anew_are_the_same_tokens_rows(tmp_path):
    trace, held = recorded("unrotated_keys", tmp_path / "a.kvt", (ids(30), 22, ()))
    assert_held(trace, held)
    group = trace.cache_step(len(trace) - 1, 0)
    assert (group.rows, group.rewritten) == (24, 23)
    assert "rotated anew" in trace.cache_layer(0).remark
    assert trace.cache_layer(0).window == 24
    assert trace.step(8).positions == ((29,),)
    assert any("rotated anew" in note.text for note in trace.notes)


def test_keys_kept_before_rope_are_found_where_they_are_kept(tmp_path):
    trace, _ = recorded("unrotated_keys", tmp_path / "a.kvt", (ids(12), 9, ()))
    where = "argument kv_cache[1][0] [1, 4, rows, 12]"
    assert trace.cache_layer(1).remark == f"keys are kept before RoPE, in {where}"


WHERE = {
    "tuple_cat": "argument past[0][0] [1, 4, rows, 12], argument past[0][1] [1, 4, rows, 12]",
    "buffers_start_pos": (
        "layers.0.attention.cache_k [4, 96, 2, 8], layers.0.attention.cache_v [4, 96, 2, 8]"
    ),
    "index_copy": (
        "layers.0.attention.kv_cache.k_cache [1, 4, 64, 16], "
        "layers.0.attention.kv_cache.v_cache [1, 4, 64, 16]"
    ),
    "softcap": (
        "argument cache['layer0.k'] [1, 3, rows, 16], argument cache['layer0.v'] [1, 3, rows, 16]"
    ),
    "einsum_heads": "attention.0.kept[0] [1, rows, 4, 10], attention.0.kept[1] [1, rows, 4, 10]",
    "hooked_dict": "values: argument kv_cache[blocks.0.attn.value] [1, rows, 48]",
    "sinks_prealloc": "argument cache [2, 2, 1, 40, 3, 8]",
    "plain_functions": "argument cache[0]['k'] [4, rows, 12], argument cache[0]['v'] [4, rows, 12]",
}
CAPACITY = {"buffers_start_pos": 96, "index_copy": 64, "sinks_prealloc": 40}


@pytest.mark.parametrize("style", WHERE)
def test_what_holds_the_rows_is_named_as_the_code_calls_it(style, tmp_path):
    trace, _ = recorded(style, tmp_path / "a.kvt", (ids(10), 6, ()))
    layer = trace.cache_layer(0)
    assert layer.where == WHERE[style]
    assert layer.capacity == CAPACITY.get(style)
    assert layer.kind == ("static" if style in CAPACITY else "dynamic")


def test_the_bytes_are_those_of_the_live_tensors(tmp_path):
    trace, held = recorded("tuple_cat", tmp_path / "a.kvt", (ids(10), 6, ()))
    for step, layers in zip(trace, held, strict=True):
        nbytes = sum(keys.nbytes + values.nbytes for keys, values, _ in layers)
        assert step.cost.cache_bytes == nbytes
    trace, _ = recorded("sinks_prealloc", tmp_path / "b.kvt", (ids(10), 6, ()))
    assert {step.cost.cache_bytes for step in trace} == {2 * 2 * 40 * 3 * 8 * 4}


def test_a_model_without_a_cache_keeps_nothing_and_goes_on(tmp_path):
    model = build("head_modules")
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        through_the_cache("head_modules", model, ids(10), 6)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.phase for step in trace] == ["prefill"] + ["decode"] * 4
    assert [step.parent for step in trace] == [None, 0, 1, 2, 3]
    assert {layer.kind for layer in trace.meta.cache_layers} == {"uncached"}
    assert not any(step.cost.cache_bytes for step in trace)


SIZES = {
    "tuple_cat": (2, 4, 12),
    "buffers_start_pos": (2, 6, 8),
    "index_copy": (4, 16, 64),
    "ring_window": (5, 8),
    "gqa_interleave": (2, 6, 8),
    "alibi": (4, 12),
    "softcap": (3, 16),
    "einsum_heads": (4, 10),
    "latent_mla": (3, 8, 20, 28),
    "unrotated_keys": (4, 12, 24),
    "hooked_dict": (4, 12),
    "sinks_prealloc": (3, 6, 8, 40),
    "plain_functions": (4, 12),
    "relative_bias": (4, 12),
}
"""Heads, kv heads, features, window, capacity of each model: prompts of the same length."""


@pytest.mark.parametrize(
    ("style", "prompt"), [(style, size) for style, sizes in SIZES.items() for size in sizes]
)
def test_a_prompt_as_long_as_another_axis_is_right_or_said_to_be_doubtful(style, prompt, tmp_path):
    total = min(prompt + 3, {"index_copy": 64, "sinks_prealloc": 40}.get(style, 1000))
    trace, held = recorded(style, tmp_path / "a.kvt", (ids(total), prompt, ()))
    if trace.meta.unseen:
        assert all("could" in one or "axis" in one for one in trace.meta.unseen)
        return
    assert_held(trace, held)


@pytest.mark.parametrize("style", BATCHED)
@pytest.mark.parametrize("batch", [2, 4])
def test_a_prompt_as_long_as_the_batch_is_right_or_said_to_be_doubtful(style, batch, tmp_path):
    runs = (ids(batch + 2, batch=batch), batch, ())
    trace, held = recorded(style, tmp_path / "a.kvt", runs, batch=batch)
    if trace.meta.unseen:
        assert all("could" in one or "axis" in one for one in trace.meta.unseen)
        return
    assert_held(trace, held)


def test_a_latent_that_is_keys_and_values_at_once_counts_once(tmp_path):
    trace, _ = recorded("latent_mla", tmp_path / "a.kvt", (ids(10), 6, ()))
    layer = trace.cache_layer(0)
    assert (layer.key_dim, layer.value_dim, layer.shared_dim) == (28, 20, 20)
    assert trace.step(4).cost.cache_bytes == 2 * 10 * 28 * 4
    assert cache_memory(trace, 4).held_bytes == 2 * 10 * 28 * 4


@torch.no_grad()
def test_rows_taken_off_by_the_caller_are_a_crop(tmp_path):
    model = build("tuple_cat")
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        _, past = model(ids(6))
        _, past = model(ids(3, seed=7), past)
        past = [tuple(rows[:, :, :7] for rows in pair) for pair in past]
        _, past = model(ids(1, seed=8), past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    (event,) = trace.step(2).events
    assert (event.kind, event.lengths_before, event.lengths_after) == ("crop", (9, 9), (7, 7))
    assert (trace.step(2).parent, trace.step(2).positions) == (1, ((7,),))
    assert trace.cache(2, 0).cells.tolist() == [*range(7), 9]
    np.testing.assert_array_equal(trace.cache(2, 1).keys, past[1][0][0].numpy())


@torch.no_grad()
def test_sequences_that_change_places_take_their_rows_along(tmp_path):
    model = build("tuple_cat")
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        _, past = model(ids(5, batch=3))
        past = [tuple(rows[[2, 0, 2]] for rows in pair) for pair in past]
        _, past = model(ids(1, seed=8, batch=3), past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    (event,) = trace.step(1).events
    assert (event.kind, event.order) == ("reorder", (2, 0, 2))
    assert trace.cache_step(1, 0).rows == 1
    for sequence in range(3):
        view = trace.cache(1, 0, sequence)
        np.testing.assert_array_equal(view.keys, past[0][0][sequence].numpy())


def test_a_cache_that_grows_has_no_capacity_after_a_shorter_text(tmp_path):
    runs = [(ids(12), 9, ()), (ids(7), 4, ())]
    trace, _ = recorded("tuple_cat", tmp_path / "a.kvt", *runs)
    assert len(trace) > 4
    layers = [trace.cache_layer(layer) for layer in range(len(trace.meta.sites))]
    assert {(layer.kind, layer.capacity) for layer in layers} == {("dynamic", None)}


def test_a_cache_that_began_with_one_row_and_outgrew_its_heads_has_no_capacity(tmp_path):
    core = StartsWithOne()
    past, ids = None, torch.tensor([[1]])
    with kvtrace.record(core, tmp_path / "a.kvt"), torch.no_grad():
        for _ in range(7):
            logits, past = core(ids, past)
            ids = logits[:, -1:].argmax(-1)
    layers = kvtrace.open(tmp_path / "a.kvt").meta.cache_layers
    assert [(one.kind, one.capacity) for one in layers] == [("dynamic", None)]


class StartsWithOne(torch.nn.Module):
    """Its mask hides all rows but the first: what is held is more than what is seen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv = torch.nn.Embedding(32, 16), torch.nn.Linear(16, 48)

    def forward(self, ids, past=None):
        q, k, v = (
            one.view(*ids.shape, 4, 4).transpose(1, 2)
            for one in self.qkv(self.embed(ids)).split(16, -1)
        )
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        seen = torch.ones(ids.shape[1], k.shape[2], dtype=torch.bool).tril()
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~seen, -torch.inf)
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return out @ self.embed.weight.T, (k, v)


@pytest.mark.parametrize("order", ["012012012", "0122200011"])
def test_texts_that_say_the_same_side_by_side_go_on_each_with_its_own(order, tmp_path):
    model, tokens = build("tuple_cat"), ids(10)
    caches, ends = [None] * 3, [0] * 3
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        for one in map(int, order):
            new = 1 if ends[one] else 5
            part = tokens[:, ends[one] : ends[one] + new]
            caches[one], ends[one] = model(part, caches[one])[1], ends[one] + new
    trace = kvtrace.open(tmp_path / "a.kvt")
    seen, before = dict.fromkeys(range(3), 0), [(step.positions[0], step.parent) for step in trace]
    for one, (positions, parent) in zip(map(int, order), before, strict=True):
        assert positions == tuple(range(seen[one], seen[one] + len(positions)))
        assert (parent is None) == (seen[one] == 0)
        seen[one] += len(positions)
    assert not any((trace.compared(number).beyond > 0).any() for number in trace.numbers)
