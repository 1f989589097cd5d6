"""Each planted fault in one attention is named by its signature; the healthy twin is silent."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders.scenes import Toy, rope
from kvtrace.analysis.checks.diagnose import diagnose


def name(scene):
    found = diagnose(scene)
    return None if found is None else found.name


def turned(rows, by, toy):
    where = np.broadcast_to(np.asarray(by), (rows.shape[1],))
    return rope(rows, where, toy.style, toy.base).astype(np.float32)


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("new", [1, 4, 12])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("padding", [0, 3])
def test_a_healthy_attention_is_silent(style, new, window, padding):
    assert diagnose(Toy(style=style, window=window, padding=padding).scene(new)) is None


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("by", [-11, -1, 1, 7])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_a_query_at_another_position_is_a_rotation_by_that_many(style, by, base):
    toy = Toy(style=style, base=base)
    found = diagnose(toy.scene(q=turned(toy.q[:, -1:], by, toy)))
    assert found.name == "POSITION-ROPE"
    assert f"rotated by {by:+d} positions" in found.evidence


def test_only_the_new_key_at_another_position():
    toy = Toy()
    k = toy.k.copy()
    k[:, -1:] = turned(k[:, -1:], -1, toy)
    found = diagnose(toy.scene(k=k))
    assert (found.name, found.tensor) == ("POSITION-ROPE-K", "k")


def test_keys_cached_before_the_rotation():
    toy = Toy()
    assert name(toy.scene(k=toy.plain_k)) == "KEYS-NOT-ROTATED"


def test_old_keys_rotated_once_more():
    toy = Toy()
    k = toy.k.copy()
    k[:, :-1] = turned(k[:, :-1], np.arange(11), toy)
    changed = np.arange(12) < 11
    assert name(toy.scene(k=k, changed=changed)) == "KEYS-ROTATED-AGAIN"


def test_another_frequency_base_is_a_true_difference():
    toy = Toy()
    q = rope(toy.plain_q[:, -4:], np.arange(8, 12), toy.style, 40000.0).astype(np.float32)
    k = rope(toy.plain_k, np.arange(12), toy.style, 40000.0).astype(np.float32)
    assert name(toy.scene(4, q=q, k=k)) == "LENGTH-DEPENDENT-POSITIONS"


def test_a_query_that_should_be_zero_is_no_stretched_one():
    toy = Toy()
    q = toy.q[:, -4:].copy()
    toy.q[:], toy.v[:] = 0, 1
    assert name(toy.scene(4, q=q)) not in ("LENGTH-DEPENDENT-POSITIONS", None)


def test_the_first_layers_query_that_is_no_rotation():
    toy = Toy(layer=0)
    v = toy.v.copy()
    v[:, -1:] += 0.3
    assert name(toy.scene(q=toy.q[:, -1:] + 0.3, v=v)) == "POSITION-EMBEDDING"
    assert name(Toy().scene(q=toy.q[:, -1:] + 0.3, v=v)) == "UPSTREAM"


def test_history_lost():
    toy = Toy()
    one = toy.scene(k=toy.k[:, -1:], v=toy.v[:, -1:], supposed=np.array([11]))
    assert name(one) == "HISTORY-LOST"


def test_rows_that_stand_twice():
    toy = Toy()
    twice = np.r_[np.arange(12), 11]
    assert name(toy.scene(k=toy.k[:, twice], v=toy.v[:, twice], supposed=twice)) == "DUPLICATE-ROWS"


def test_the_oldest_rows_gone():
    toy = Toy()
    kept = np.arange(3, 12)
    assert name(toy.scene(k=toy.k[:, kept], v=toy.v[:, kept], supposed=kept)) == "EVICTED-EARLY"


def test_rows_older_than_the_window():
    toy = Toy(window=5)
    assert name(toy.scene(visible=np.ones((1, 12), bool))) == "WINDOW"


def test_a_query_that_does_not_see_its_own_key():
    toy = Toy()
    visible = np.arange(12)[None] < 11
    assert name(toy.scene(visible=visible)) == "NEWEST-MISSING"


def test_a_query_that_sees_neither_its_own_key_nor_those_just_before():
    toy = Toy()
    assert name(toy.scene(visible=np.arange(12)[None] < 9)) == "NEWEST-MISSING"
    apart = (np.arange(12) < 8) | (np.arange(12) == 9)
    assert name(toy.scene(visible=apart[None])) == "MASK"


def test_the_new_row_in_another_slot():
    toy = Toy()
    k, v = (np.pad(x, ((0, 0), (0, 1), (0, 0))) for x in (toy.k, toy.v))
    k[:, 12], v[:, 12], k[:, 11], v[:, 11] = k[:, 11].copy(), v[:, 11].copy(), 0, 0
    scene = toy.scene(k=k, v=v, supposed=np.arange(13), visible=np.ones((1, 13), bool))
    assert name(scene) == "WRITE-POSITION"


def test_a_ring_buffer_off_by_one():
    toy = Toy(window=6)
    rows = np.array([6, 7, 8, 9, 10, 11])
    wrong = np.array([5, 7, 8, 9, 10, 11])
    changed = np.array([False] * 5 + [True])
    scene = toy.scene(
        k=toy.k[:, wrong],
        v=toy.v[:, wrong],
        supposed=rows,
        changed=changed,
        visible=np.ones((1, 6), bool),
    )
    assert name(scene) == "WRONG-SLOT"
    assert diagnose(scene).row == 0  # what stands where row 6 should


def test_a_row_that_was_overwritten():
    toy = Toy()
    rows = np.arange(12)
    k, v = toy.k.copy(), toy.v.copy()
    k[:, 4], v[:, 4] = k[:, 11], v[:, 11]
    keep = np.arange(11)
    scene = toy.scene(
        k=k[:, keep],
        v=v[:, keep],
        supposed=keep,
        changed=rows[keep] == 4,
        visible=np.ones((1, 11), bool),
    )
    assert name(scene) == "ROW-OVERWRITTEN"


def test_unwritten_rows_behind_and_inside_the_sequence():
    toy = Toy()
    behind = [np.pad(x, ((0, 0), (0, 4), (0, 0))) for x in (toy.k, toy.v)]
    supposed = np.r_[np.arange(12), -1, -1, -1, -1]
    wide = np.ones((1, 16), bool)
    assert (
        name(toy.scene(k=behind[0], v=behind[1], supposed=supposed, visible=wide))
        == "ZERO-ROWS-VISIBLE"
    )
    inside = [np.insert(x, 6, 0, axis=1) for x in (toy.k, toy.v)]
    supposed = np.insert(np.arange(12), 6, -1)
    gap = toy.scene(k=inside[0], v=inside[1], supposed=supposed, visible=np.ones((1, 13), bool))
    assert name(gap) == "ZERO-GAP"


def test_keys_or_values_never_written():
    toy = Toy()
    k, v = toy.k.copy(), toy.v.copy()
    k[:, 3:], v[:, 3:] = 0, 0
    assert name(toy.scene(k=k)) == "K-NOT-WRITTEN"
    assert name(toy.scene(v=v)) == "V-NOT-WRITTEN"


def test_keys_and_values_swapped():
    toy = Toy()
    assert name(toy.scene(k=toy.v, v=toy.k)) == "KEYS-VALUES-SWAPPED"


def test_keys_and_values_of_different_tokens():
    toy = Toy()
    v = toy.v.copy()
    v[:, [4, 5]] = v[:, [5, 4]]
    assert name(toy.scene(v=v)) == "MISALIGNED"


def test_scaled_rows():
    toy = Toy()
    k = toy.k.copy()
    k[:, :8] *= 0.5
    assert name(toy.scene(k=k)) == "OLD-ROWS-SCALED"


def test_rows_changed_in_place():
    toy = Toy()
    k = toy.k.copy()
    k[:, 2] += 1.5
    assert name(toy.scene(k=k, changed=np.arange(12) == 2)) == "OLD-ROWS-CHANGED"
    assert name(toy.scene(k=k)) == "CONTENT"


def test_future_tokens_seen():
    assert name(Toy().scene(4, visible=np.ones((4, 12), bool))) == "MASK-FUTURE"


def test_a_chunk_with_a_square_mask():
    visible = np.tri(4, 12, dtype=bool)
    assert name(Toy().scene(4, visible=visible)) == "MASK-TOP-LEFT"


def test_padding_seen():
    assert name(Toy(padding=3).scene(visible=np.ones((1, 12), bool))) == "PAD-VISIBLE"


def test_a_hole_in_the_mask():
    assert name(Toy().scene(visible=np.arange(12)[None] != 5)) == "MASK"


def test_kv_heads_in_another_order():
    toy = Toy(kv_heads=4)
    assert name(toy.scene(k=toy.k[[1, 0, 2, 3]])) == "HEAD-MAP"
    assert name(toy.scene(v=toy.v[[1, 0, 2, 3]])) == "HEAD-MAP"


def test_query_heads_that_read_other_kv_heads():
    assert name(Toy(kv_heads=2).scene(group_order=[0, 1, 0, 1])) == "HEAD-MAP"


def test_view_instead_of_transpose():
    toy = Toy(kv_heads=4)
    k = toy.k.transpose(1, 0, 2).reshape(4, 12, 16)
    assert name(toy.scene(12, k=k, first_step=True)) == "HEAD-RESHAPE"


def test_rows_of_another_layer_and_of_another_sequence():
    toy = Toy()
    assert name(toy.scene(k=toy.other[0], v=toy.other[0])) == "WRONG-LAYER"
    assert name(toy.scene(k=toy.other[1], v=toy.other[1])) == "WRONG-BATCH-ROW"


def test_one_row_of_another_sequence_is_told_of_as_one():
    toy = Toy()
    k, v = toy.k.copy(), toy.v.copy()
    k[:, 5], v[:, 5] = toy.other[1][:, 5], toy.other[1][:, 5]
    found = diagnose(toy.scene(k=k, v=v))
    assert found.name == "WRONG-BATCH-ROW"
    assert found.evidence.startswith("the one unexpected row of k is that of sequence 1")


def test_rows_of_an_earlier_prompt():
    toy, old = Toy(), Toy(seed=9)
    k, v = (np.concatenate([a, b], axis=1) for a, b in ((old.k, toy.k), (old.v, toy.v)))
    supposed = np.r_[np.full(12, -1), np.arange(12)]
    visible = np.concatenate([np.ones((12, 12), bool), np.tri(12, dtype=bool)], axis=1)
    scene = toy.scene(12, k=k, v=v, supposed=supposed, visible=visible, first_step=True)
    assert name(scene) == "STALE-CACHE"
    assert "left of what ran before" not in diagnose(scene).evidence
    first = diagnose(replace(scene, step=0))
    assert first.evidence.endswith("left of what ran before, if anything did")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_a_cache_in_a_smaller_dtype(dtype):
    import torch

    toy = Toy()
    k, v = (torch.from_numpy(x).to(getattr(torch, dtype)).float().numpy() for x in (toy.k, toy.v))
    found = diagnose(toy.scene(k=k, v=v))
    assert found.name == "DTYPE"
    assert dtype in found.evidence


@pytest.mark.parametrize("s", [0.25, 4.0, 1.3])
def test_another_softmax_scale(s):
    found = diagnose(Toy().scene(scores=lambda x: x * s))
    assert found.name == "SCALE"
    assert f"{s:.4g} ×" in found.evidence


def test_a_query_times_a_constant():
    toy = Toy()
    assert name(toy.scene(q=toy.q[:, -1:] * 8)) == "SCALE"


def test_a_softcap_and_a_clamp_on_one_path_only():
    assert name(Toy().scene(scores=lambda x: 0.7 * np.tanh(x / 0.7))) == "SCORE-NONLINEAR"
    assert name(Toy().scene(scores=lambda x: np.clip(x, -0.8, 0.8))) == "SCORE-NONLINEAR"


def test_a_bias_linear_in_the_position():
    slopes = np.array([0.5, 0.25, 0.125, 0.0625])[:, None, None]
    assert name(Toy().scene(scores=lambda x: x - slopes * np.arange(12))) == "SCORE-BIAS"


def test_dropout_and_a_wrong_softmax_axis():
    keep = np.random.default_rng(1).random((4, 1, 12)) > 0.3
    assert name(Toy().scene(weights=lambda w: w * keep / 0.7)) == "WEIGHTS-NOT-NORMALISED"
    assert name(Toy().scene(weights=lambda w: w * 3)) == "WEIGHTS-NOT-NORMALISED"


def test_nan_is_a_class_of_its_own():
    toy = Toy()
    k = toy.k.copy()
    k[1, 3, 5] = np.nan
    found = diagnose(toy.scene(k=k))
    assert (found.name, found.head, found.row) == ("NONFINITE", 1, 3)
    assert found.evidence == "1 number of k, in head 1, feature 5"
