"""Two traces of one model: aligned by tokens, whatever steps fed them."""

import copy

import numpy as np
import pytest
import torch
from msgspec.structs import replace

import kvtrace
from builders import Shape, synthetic_trace
from builders.encoder_decoders import bart
from kvtrace.analysis.checks import DIVERGED, EQUAL, UNCHECKED
from kvtrace.analysis.two_runs.causes import cause
from kvtrace.analysis.two_runs.diff import diff
from kvtrace.trace import Tensor
from verify import bugs

TOKENS = [5, 9, 30, 7, 81, 44, 9, 12, 60, 3]


@pytest.fixture(scope="module")
def model():
    return bugs.llama()


def fed(model, path, sizes, rows=(TOKENS,), dtype=None, **more):
    """Feed rows of tokens in chunks of these sizes, recorded."""
    ids = torch.tensor(rows)
    cache, start = None, 0
    with kvtrace.record(model, path, recompute="off"), torch.no_grad():
        for size in sizes:
            part = ids[:, start : start + size]
            out = model(input_ids=part, past_key_values=cache, use_cache=True, **more)
            cache, start = out.past_key_values, start + size
    return kvtrace.open(path)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    return fed(model, tmp_path_factory.mktemp("whole") / "a.kvt", [10])


@pytest.mark.parametrize("sizes", [[4, 6], [3, 1, 1, 5], [1] * 10])
def test_chunks_are_the_same_run(model, whole, tmp_path, sizes):
    found = diff(whole, fed(model, tmp_path / "b.kvt", sizes))
    assert (found.verdict, found.tokens, found.parts) == (EQUAL, 10, ())
    assert np.isfinite(found.growth).all()
    assert (found.growth <= found.limits).all()


def test_left_padding_does_not_count(model, whole, tmp_path):
    mask = torch.tensor([[0] * 3 + [1] * 10])
    positions = torch.tensor([[0] * 3 + list(range(10))])
    rows = ([0, 0, 0, *TOKENS],)
    padded = fed(model, tmp_path / "b.kvt", [13], rows, attention_mask=mask, position_ids=positions)
    assert min(padded.step(0).positions[0]) < 0
    found = diff(whole, padded)
    assert (found.verdict, found.tokens) == (EQUAL, 10)


def test_the_rows_that_both_were_fed_are_compared_where_the_prompts_part(model, whole, tmp_path):
    other = fed(model, tmp_path / "b.kvt", [10], ([*TOKENS[:6], 70, 71, 72, 73],))
    found = diff(whole, other)
    assert (found.verdict, found.tokens) == (UNCHECKED, 6)
    (part,) = found.parts
    assert (part.position, part.old, part.new, part.chosen) == (6, 9, 70, False)
    first = fed(model, tmp_path / "c.kvt", [10], ([70, *TOKENS[1:]],))
    assert "first token" in diff(whole, first).reason


def test_a_shorter_prompt_is_another_prompt_but_fewer_steps_are_the_same_run(
    model, whole, tmp_path
):
    found = diff(whole, fed(model, tmp_path / "b.kvt", [4]))
    assert (found.verdict, found.tokens) == (UNCHECKED, 4)
    grown = diff(fed(model, tmp_path / "c.kvt", [4, 1]), fed(model, tmp_path / "d.kvt", [4, 1, 1]))
    assert (grown.verdict, grown.tokens, grown.parts[0].old) == (EQUAL, 5, None)


def test_another_rotary_base_is_a_difference_and_no_matter_of_the_length(whole, tmp_path):
    other = bugs.llama()
    rates = other.model.rotary_emb.inv_freq
    rates.copy_(rates**1.2)
    found = diff(whole, fed(other, tmp_path / "b.kvt", [10]))
    assert (found.verdict, found.finding.name) == (DIVERGED, "POSITION-ROPE")


def kept_second(model, path):
    """Two texts, of which only the second one goes on, as beams do."""
    ids = torch.tensor([TOKENS[::-1], TOKENS])
    with kvtrace.record(model, path, recompute="off"), torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
        cache.batch_select_indices(torch.tensor([1]))
        model(input_ids=torch.tensor([[17]]), past_key_values=cache, use_cache=True)
    return kvtrace.open(path)


def test_a_difference_of_a_sequence_that_changed_places_is_named(model, tmp_path):
    other = bugs.llama()
    other.model.rotary_emb.inv_freq.copy_(other.model.rotary_emb.inv_freq**1.2)
    found = diff(kept_second(model, tmp_path / "a.kvt"), kept_second(other, tmp_path / "b.kvt"))
    assert (found.verdict, found.tokens, found.first.sequence) == (DIVERGED, 11, 1)
    assert found.first.places == ((0, 1), (0, 1))
    assert found.finding.name == "POSITION-ROPE"


def test_a_narrow_type_is_rounding_and_is_named(whole, tmp_path):
    narrow = fed(bugs.llama().to(torch.bfloat16), tmp_path / "b.kvt", [10])
    found = diff(whole, narrow)
    assert found.verdict == EQUAL
    assert ("dtype", "float32", "bfloat16") in found.settings
    assert found.limits.min() >= 4 * 2e-2
    assert found.growth.max() > 1e-4
    assert found.reason.endswith("; 4 times that, as the runs differ in dtype")


@pytest.mark.parametrize("times", [1.2, 4])
def test_a_change_beside_a_narrow_type_is_not_said_to_be_that_type(times, whole, tmp_path):
    changed = bugs.llama().to(torch.float16)
    changed.model.layers[0].mlp.down_proj.weight.data *= times
    found = diff(whole, fed(changed, tmp_path / "a.kvt", [10]))
    assert (found.verdict, found.finding.name, found.finding.layer) == (DIVERGED, "UPSTREAM", 1)


def test_other_kernels_round_otherwise_where_numbers_are_narrow():
    def limits(dtype, attention):
        trace = synthetic_trace()
        card = replace(trace.meta.model, dtype=dtype, attention=attention)
        trace.source.meta = replace(trace.meta, model=card)
        return diff(synthetic_trace(), trace), diff(trace, trace)

    for dtype, times in (("bfloat16", 4), ("float32", 1)):
        other, same = limits(dtype, "sdpa")
        assert other.limits == pytest.approx(times * same.limits)
        assert ("attention" in other.reason) is (times > 1)


def test_the_first_place_is_the_first_token_then_the_first_layer():
    old, new = synthetic_trace(), synthetic_trace()
    new.source.site_tensors[4, 0, Tensor.OUTPUT][0, 3] += 1
    new.source.site_tensors[3, 2, Tensor.OUTPUT][0, 1] += 1
    new.source.site_tensors[3, 1, Tensor.QUERIES][0, 2] *= 2
    found = diff(old, new)
    first = found.first
    assert found.verdict == DIVERGED
    assert (first.position, first.layer, first.tensor, first.head) == (7, 1, Tensor.QUERIES, 2)
    assert first.apart == pytest.approx(1.0)
    assert found.growth[0, Tensor.OUTPUT] > 0
    assert found.growth[1, Tensor.KEYS] == 0


def test_numbers_that_are_not_finite_in_one_run_only_are_a_difference():
    old, new = synthetic_trace(), synthetic_trace()
    new.source.site_tensors[2, 1, Tensor.OUTPUT][0, 0, 0, 0] = np.nan
    assert diff(old, new).first.apart == np.inf
    old.source.site_tensors[2, 1, Tensor.OUTPUT][0, 0, 0, 0] = np.nan
    assert diff(old, new).verdict == EQUAL


def test_other_shapes_are_another_model():
    found = diff(synthetic_trace(), synthetic_trace(Shape(kv_heads=4)))
    assert found.verdict == UNCHECKED
    assert "4 heads over 2 of 8, and 4 heads over 4 of 8" in found.reason


def test_what_differs_between_the_runs_is_listed():
    old, new = synthetic_trace(), synthetic_trace()
    new.source.meta = replace(new.meta, versions={"torch": "2.14.0"})
    assert diff(old, new).settings == (("torch", "2.13.0", "2.14.0"),)


def test_positions_that_a_change_moved_are_found_in_the_order_of_what_was_fed(model, tmp_path):
    def told(path, places):
        ids, cache = torch.tensor([TOKENS]), None
        with kvtrace.record(model, path, recompute="off"), torch.no_grad():
            for start, end in ((0, 6), (6, 7), (7, 8)):
                places_here = torch.tensor([places[start:end]])
                out = model(ids[:, start:end], past_key_values=cache, position_ids=places_here)
                cache = out.past_key_values
        return kvtrace.open(path)

    right = told(tmp_path / "a.kvt", list(range(8)))
    found = diff(right, told(tmp_path / "b.kvt", [*range(6), 5, 6]))
    assert (found.verdict, found.tokens, found.parts) == (DIVERGED, 8, ())
    assert (found.first.new_step, found.first.layer, found.first.tensor) == (1, 0, Tensor.QUERIES)
    assert found.finding.name == "POSITION-ROPE"
    assert "rotated by -1 positions" in found.finding.evidence


def test_an_encoders_rows_that_a_change_scaled_are_those_of_no_earlier_text(tmp_path):
    def listened(path, factor):
        model = bart()
        model.model.decoder.layers[1].encoder_attn.v_proj.weight.data.mul_(factor)
        model.model.decoder.layers[1].encoder_attn.v_proj.bias.data.mul_(factor)
        with kvtrace.record(model, path, recompute="off"):
            model.generate(torch.tensor([TOKENS]), max_new_tokens=3, do_sample=False)
        return kvtrace.open(path)

    found = diff(listened(tmp_path / "a.kvt", 1.0), listened(tmp_path / "b.kvt", 1.5))
    assert (found.finding.name, found.finding.tensor) == ("OLD-ROWS-SCALED", "v")
    assert "rows of v = 1.5 × the recomputed ones" in found.finding.evidence


def test_a_text_is_held_against_the_sequence_that_shares_most_of_it(model, whole, tmp_path):
    mask = torch.tensor([[1] * 13, [0] * 3 + [1] * 10])
    rows = ([4, 90, 8, 71, 20, 33, 51, 6, 11, 2, 70, 45, 13], [0, 0, 0, *TOKENS])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    batch = fed(model, tmp_path / "b.kvt", [13], rows, attention_mask=mask, position_ids=positions)
    found = diff(whole, batch)
    assert (found.verdict, found.tokens, found.parts) == (EQUAL, 10, ())


def test_sequences_of_a_batch_in_another_order_are_the_same_ones(model, tmp_path):
    rows = [list(TOKENS), [7, *TOKENS[1:]], [3, 8, *TOKENS[2:]]]
    old = fed(model, tmp_path / "a.kvt", [6, 1, 3], rows)
    found = diff(old, fed(model, tmp_path / "b.kvt", [6, 1, 3], [rows[n] for n in (2, 0, 1)]))
    assert (found.verdict, found.tokens) == (EQUAL, 30)


def test_only_the_tokens_whose_rows_differ_are_the_place_of_a_difference():
    old, new = synthetic_trace(), synthetic_trace()
    shape = new.source.site_tensors[0, 1, Tensor.QUERIES].shape
    new.source.site_tensors[0, 1, Tensor.QUERIES][:, :, 1] *= 2
    new.source.site_tensors[0, 1, Tensor.QUERIES][:, :, 3] *= 2
    first = diff(old, new).first
    assert shape[2] > 4
    assert (first.position, first.count, first.beyond) == (1, 3, 2)


def changed_rows(model, path, change):
    """Three steps over two rows; before the last one the cache is changed."""
    ids = torch.tensor([list(TOKENS), TOKENS[::-1]])
    cache = None
    with kvtrace.record(model, path, recompute="off"), torch.no_grad():
        for start, end in ((0, 7), (7, 8), (8, 9)):
            if start == 8:
                change(cache.layers)
            cache = model(ids[:, start:end], past_key_values=cache, use_cache=True).past_key_values
    return kvtrace.open(path)


def swap_sequences(layers):
    for layer in layers:
        layer.keys, layer.values = layer.keys.flip(0), layer.values.flip(0)


def give_the_first_layers(layers):
    layers[1].keys, layers[1].values = layers[0].keys.clone(), layers[0].values.clone()


@pytest.mark.parametrize(
    ("change", "name", "layer"),
    [(swap_sequences, "WRONG-BATCH-ROW", 0), (give_the_first_layers, "WRONG-LAYER", 1)],
)
def test_rows_of_somebody_else_are_known_by_those_of_the_old_run(
    model, tmp_path, change, name, layer
):
    old = changed_rows(model, tmp_path / "a.kvt", lambda layers: None)
    found = diff(old, changed_rows(model, tmp_path / "b.kvt", change))
    assert (found.finding.name, found.first.new_step, found.first.layer) == (name, 2, layer)


def test_no_cache_is_blamed_for_weights_that_differ(model, whole, tmp_path):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    found = diff(whole, fed(changed, tmp_path / "b.kvt", [10]))
    assert found.finding.name == "UPSTREAM"
    assert "cache" not in cause(found.finding)
