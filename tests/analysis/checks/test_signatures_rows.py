"""Scales of single rows, rings, dropped weights, and rows of another layer beside empty ones."""

import numpy as np
import pytest

from builders.scenes import Toy, replace, rope
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.scenes.relations import factors


def named(scene):
    found = diagnose(scene)
    return found.name, found.tensor


@pytest.mark.parametrize(
    ("shape", "what"),
    [((1, 11, 1), "row"), ((2, 11, 1), "head of a row"), ((2, 1, 16), "feature")],
)
def test_scales_that_were_lost_for_each_of_something_are_told(shape, what):
    toy = Toy()
    scales = np.linspace(0.4, 3, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    v = toy.v.copy()
    v[:, :11] *= scales
    found = diagnose(toy.scene(v=v))
    assert (found.name, found.tensor) == ("OLD-ROWS-SCALED", "v")
    assert f"each {what} by a factor of its own" in found.evidence


def test_unrelated_rows_have_no_factors():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, 2, 11, 16)).astype(np.float32)
    assert factors(left, right, 1e-4) is None
    assert factors(right, right, 1e-4) is None
    assert factors(left[:, :1, :3], right[:, :1, :3], 1e-4) is None  # too few to tell


def test_a_ring_that_wraps_too_early_is_told_from_a_cache_that_was_cropped():
    toy = Toy(window=8)
    cropped = np.arange(5, 12)
    ring = np.array([11, 5, 6, 7, 8, 9, 10])  # place 11 took the slot of place 4
    for order, name in ((cropped, "EVICTED-EARLY"), (ring, "ROW-OVERWRITTEN")):
        scene = toy.scene(k=toy.k[:, order], v=toy.v[:, order], supposed=order)
        assert diagnose(scene).name == name


def test_weights_that_were_dropped_are_told_of_more_rows_than_features():
    toy = Toy(total=24, heads=8, kv_heads=4, dim=8)
    dropped = np.where(np.arange(24) % 4 == 1, 0, 1 / 0.75)
    scene = toy.scene(weights=lambda table: table * dropped)
    assert named(scene) == ("WEIGHTS-NOT-NORMALISED", "weights")


def test_rows_of_another_layer_are_told_though_it_has_not_written_the_newest_yet():
    toy = Toy()
    k, v = toy.other[0].copy(), toy.other[0].copy()
    k[:, -1] = v[:, -1] = 0
    found = diagnose(toy.scene(k=k, v=v))
    assert (found.name, found.tensor) == ("WRONG-LAYER", "k")
    assert "11 of 12 unexpected rows" in found.evidence


def test_a_new_key_turned_back_by_its_whole_position_may_not_be_turned_at_all():
    toy = Toy()
    k = toy.k.copy()
    k[:, -1] = toy.plain_k[:, -1]
    found = diagnose(toy.scene(k=k))
    assert found.name == "POSITION-ROPE-K"
    assert "not rotated at all" in found.evidence


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("repeated", [(), (4, 8)])
def test_keys_that_all_stand_at_the_newest_position_are_rotated_again(style, repeated):
    toy = Toy(style=style)
    for place in repeated:  # the token of the newest row stood there before
        toy.plain_k[:, place], toy.v[:, place] = toy.plain_k[:, 11], toy.v[:, 11]
    toy.k = rope(toy.plain_k, np.arange(12), style).astype(np.float32)
    k = rope(toy.plain_k, np.full(12, 11), style).astype(np.float32)
    found = diagnose(toy.scene(k=k, changed=np.arange(12) < 11))
    assert (found.name, found.tensor) == ("KEYS-ROTATED-AGAIN", "k")
    assert "11 rows is rotated to position 11, as the newest one is" in found.evidence


def test_a_factor_is_told_though_rounding_makes_rows_as_far_off():
    toy = Toy()
    for times in (1.002, 0.998):
        v = toy.v.copy()
        v[:, :11] *= np.float32(times)
        found = diagnose(toy.scene(v=v))
        assert (found.name, found.tensor) == ("OLD-ROWS-SCALED", "v")
        assert f"= {times} ×" in found.evidence


def test_a_mask_that_is_one_too_long_shows_later_tokens_before_a_row_of_zeros():
    toy = Toy()
    k, v = (np.concatenate((one, np.zeros_like(one[:, :1])), 1) for one in (toy.k, toy.v))
    places = np.arange(13)
    seen = places <= np.arange(8, 12)[:, None] + 1
    scene = toy.scene(4, k=k, v=v, visible=seen, supposed=places)
    assert named(scene) == ("MASK-FUTURE", "mask")


def test_a_query_without_its_norm_is_scaled_head_by_head():
    toy = Toy()
    q = toy.q.copy()
    q *= np.linspace(0.5, 2, len(q), dtype=np.float32)[:, None, None]
    found = diagnose(toy.scene(q=q[:, -1:]))
    assert (found.name, found.tensor) == ("SCALE", "q")
    assert "each head of a row by a factor of its own, while v is right" in found.evidence


def test_the_row_of_another_beam_is_told_though_its_token_is_one_of_this_text():
    toy = Toy()
    k, v = toy.plain_k.copy(), toy.v.copy()
    toy.k, toy.q = toy.plain_k, toy.plain_q  # keys know no position
    toy.other[1][:, 5] = k[:, 5] = toy.k[:, 7]
    v[:, 5] = toy.v[:, 7]
    scene = toy.scene(k=k, v=v)
    assert diagnose(scene).name == "WRONG-SLOT"
    found = diagnose(replace(scene, current=1))
    assert (found.name, found.tensor, found.row) == ("WRONG-BATCH-ROW", "k", 5)
    assert "what a sequence that ended in the step before has there" in found.evidence


def test_a_row_that_was_overwritten_is_where_the_other_was_not_where_it_belongs():
    toy = Toy()
    k, v = toy.k.copy(), toy.v.copy()
    k[:, 10], v[:, 10] = k[:, 11], v[:, 11]
    found = diagnose(toy.scene(k=k, v=v, changed=np.arange(12) == 10))
    assert (found.name, found.row) == ("ROW-OVERWRITTEN", 10)


def test_a_row_that_was_not_written_is_no_row_of_a_layer_that_has_a_zero_one():
    toy = Toy()
    toy.other[0][:, 3] = 0  # as a padding token's embedding makes
    v = toy.v.copy()
    v[:, -1] = 0
    assert named(toy.scene(v=v)) == ("V-NOT-WRITTEN", "v")


def test_rows_that_moved_up_behind_kept_ones_were_dropped_and_not_overwritten():
    toy = Toy()
    order = np.array([0, 1, 2, 5, 6, 7, 8, 9, 10, 11])
    scene = toy.scene(
        k=toy.k[:, order],
        v=toy.v[:, order],
        supposed=order,
        changed=order > 2,
        visible=np.ones((1, 10), bool),
    )
    found = diagnose(scene)
    assert found is not None
    assert (found.name, found.tensor) == ("MASK", "k")
    assert "does not see places 3, 4: no such row is there, it was dropped" in found.evidence


def with_values_of_another(toy, further):
    """Values of a sequence whose first tokens are those of this text, so many places further."""
    v = toy.v.copy()
    toy.other[1][:, :5] = v[:, :5] = toy.v[:, further : further + 5]
    return diagnose(toy.scene(v=v))


def test_values_of_another_sequence_are_told_though_its_tokens_are_those_of_this_text():
    found = with_values_of_another(Toy(), 6)
    assert (found.name, found.tensor, found.row) == ("WRONG-BATCH-ROW", "v", 0)
    assert found.evidence == "5 rows of v: what sequence 1 has there"


def test_values_one_slot_further_are_misaligned_though_another_sequence_has_them_there():
    assert with_values_of_another(Toy(), 1).name == "MISALIGNED"
