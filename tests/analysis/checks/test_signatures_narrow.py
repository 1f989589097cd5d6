"""Faults of some heads, of exactness, and of masks that nobody was handed, named by signature."""

import numpy as np

from builders.scenes import Toy, replace, rope
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.wrong_rows.grid import quantised
from kvtrace.analysis.checks.wrong_rows.inexact import inexact


def told(scene):
    found = diagnose(scene)
    return found.name, found.tensor, found.head


def changed(toy, rows=11):
    return np.arange(toy.total) < rows


def levels(rows, bits, axis):
    """Quantised to that many bits between the extremes along an axis, and back."""
    low, high = rows.min(axis=axis, keepdims=True), rows.max(axis=axis, keepdims=True)
    step = (high - low) / (2**bits - 1)
    return (np.rint((rows - low) / step) * step + low).astype(np.float32)


def test_rows_scaled_in_one_head_alone():
    toy = Toy()
    k = toy.k.copy()
    k[1, :11] *= 0.4
    found = diagnose(toy.scene(k=k, changed=changed(toy)))
    assert (found.name, found.tensor, found.head) == ("OLD-ROWS-SCALED", "k", 1)
    assert "only kv head 1" in found.evidence


def test_values_of_one_head_never_written():
    toy = Toy()
    v = toy.v.copy()
    v[0, :11] = 0
    assert told(toy.scene(v=v, changed=changed(toy))) == ("V-NOT-WRITTEN", "v", 0)


def test_one_head_that_holds_the_tokens_before():
    toy = Toy()
    k = toy.k.copy()
    k[1] = np.roll(k[1], 1, axis=0)
    assert told(toy.scene(k=k, changed=changed(toy, 12))) == ("MISALIGNED", "k", 1)


def test_the_half_that_is_not_where_it_should_be_is_named():
    toy = Toy()
    v = toy.v.copy()
    v[:, [2, 3]] = v[:, [3, 2]]
    assert told(toy.scene(v=v)) == ("MISALIGNED", "v", None)


def test_quantised_rows_are_told_from_changed_ones():
    toy = Toy()
    for bits, axis in ((8, 2), (4, 2), (8, (0, 2)), (4, 1)):
        k = toy.k.copy()
        k[:, :11] = levels(k[:, :11], bits, axis)
        found = diagnose(toy.scene(k=k, changed=changed(toy)))
        assert found.name == "DTYPE"
        assert f"quantised to {bits} bits" in found.evidence


def test_numbers_at_random_lie_on_no_grid():
    rows = np.random.default_rng(0).standard_normal((2, 9, 16)).astype(np.float32)
    assert quantised(rows + 1e-3, rows) is None


def test_a_few_numbers_that_all_heads_share_lie_on_a_grid_by_chance():
    mine, right = [0.3, 0.4, 0.8, 1.1], [0.3593, 1.3221, -0.0141, 1.0427]
    shared = [np.float32(numbers).reshape(1, 1, 4).repeat(4, 0) for numbers in (mine, right)]
    assert quantised(*shared) is None


def test_a_scale_that_is_lost_is_no_negative_one():
    right = np.random.default_rng(3).standard_normal((1, 2, 16)).astype(np.float32)
    kept = levels(right, 8, 2)
    assert inexact("k", 0.5 * kept, right, 3.0, 1e-4)[0] == "OLD-ROWS-SCALED"
    assert inexact("k", -0.5 * kept, right, 3.0, 1e-4) is None


def test_groups_of_four_are_known_by_what_quantising_the_right_numbers_gives():
    chance = np.random.default_rng(1)
    right = chance.standard_normal((2, 8, 16)).astype(np.float32)
    for bits in (8, 4):
        by_feature = right.reshape(2, 2, 4, 16)
        mine = levels(by_feature, bits, 2).reshape(right.shape)
        assert quantised(mine, right) == (bits, "feature of 4 rows")
        about_zero = np.abs(by_feature).max(axis=2, keepdims=True) / max(2 ** (bits - 1) - 1, 1)
        mine = (np.rint(by_feature / about_zero) * about_zero).reshape(right.shape)
        assert quantised(mine, right) == (bits, "feature of 4 rows")
        mine = levels(right.reshape(2, 8, 4, 4), bits, 3).reshape(right.shape)
        assert quantised(mine, right) == (bits, "4 numbers")
        assert quantised(mine + 0.1 * chance.standard_normal(mine.shape), right) is None
    assert quantised(right, right) is None


def test_groups_of_four_are_known_by_their_own_grids_where_other_numbers_were_quantised():
    chance = np.random.default_rng(2)
    right = chance.standard_normal((2, 3, 4)).astype(np.float32)
    other = right + 0.01 * chance.standard_normal(right.shape).astype(np.float32)
    assert quantised(other, right) is None
    for bits in (8, 4):
        step = np.abs(other).max(axis=2, keepdims=True) / (2 ** (bits - 1) - 1)
        assert quantised(np.rint(other / step) * step, right) == (bits, "4 numbers")
        assert quantised(levels(other, bits, 2), right) == (bits, "4 numbers")


def test_values_that_are_all_zero_are_not_cut_off():
    toy = Toy(layer=0)
    v = toy.v.copy()
    v[:, -1] = 0
    found = diagnose(toy.scene(q=toy.q[:, -1:] + 1.0, v=v))
    assert found is not None
    assert "cut off" not in found.evidence


def test_a_query_that_is_off_while_its_values_are_right_is_not_the_input():
    toy = Toy(layer=0)
    assert told(toy.scene(q=toy.q[:, -1:] + 0.3))[0] == "CONTENT"


def test_values_that_are_cut_off_on_one_path_only_are_not_another_input():
    toy = Toy(layer=0)
    found = []
    for cut in (np.float32(0.8), None):
        scene, q, v = toy.scene(), toy.q[:, -1:] * 1.0, toy.v.copy()
        q += np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)
        if cut is None:  # the cached lane clamps
            v[:, -1] = v[:, -1].clip(-0.8, 0.8)
        else:
            right = scene.reference.values.copy()
            right[:, -1] = right[:, -1].clip(-cut, cut)
            scene = replace(scene, reference=replace(scene.reference, values=right))
        cached = replace(scene.cached, queries=q, values=v)
        found.append(diagnose(replace(scene, cached=cached)))
    assert [one.name for one in found] == ["CONTENT", "CONTENT"]
    assert "without the cache it is the same, but cut off at 0.8" in found[0].evidence
    assert "with the cache it is the same, but cut off at 0.8" in found[1].evidence


def test_a_query_whose_input_is_hardly_off_has_no_inexact_rotation():
    toy = Toy()
    rng = np.random.default_rng(2)
    q, v = toy.q[:, -1:].copy(), toy.v.copy()
    q += 3e-4 * rng.standard_normal(q.shape).astype(np.float32)
    v[:, -1] += 3e-4 * rng.standard_normal(v[:, -1].shape).astype(np.float32)
    assert told(toy.scene(q=q, v=v))[0] == "UPSTREAM"


def test_quantised_values_that_lost_their_scale_are_told_beside_quantised_keys():
    toy = Toy()
    k, v = (levels(one, 8, 2) for one in (toy.k, toy.v))
    found = diagnose(toy.scene(k=k, v=v * 40))
    assert (found.name, found.tensor) == ("OLD-ROWS-SCALED", "v")
    assert "quantised to 8 bits and back, by another scale" in found.evidence


def test_a_query_turned_in_other_planes():
    toy = Toy(style="half")
    place = np.array([11])
    plain = rope(toy.q[:, -1:], -place, "half", toy.base)
    other = rope(plain, place, "interleaved", toy.base).astype(np.float32)
    found = diagnose(toy.scene(q=other))
    assert found.name == "POSITION-ROPE"
    assert "other planes" in found.evidence


def test_a_query_with_an_input_that_is_scaled():
    toy = Toy()
    v = toy.v.copy()
    v[:, -1:] *= 0.5
    assert told(toy.scene(q=toy.q[:, -1:] * 0.5, v=v))[0] == "UPSTREAM"
    assert told(toy.scene(q=toy.q[:, -1:] * 0.5))[0] == "SCALE"


def test_one_query_head_scaled():
    toy = Toy()
    q = toy.q[:, -1:].copy()
    q[2] *= 1.5
    assert told(toy.scene(q=q)) == ("SCALE", "q", 2)


def test_a_head_that_is_hardly_off_is_not_taken_for_one_at_another_position():
    toy = Toy(style="half")
    q, half = toy.q[:, -1:].copy(), toy.q.shape[-1] // 2
    a, b = q[2, 0, [0, half]]
    turn = 4e-4 / max(abs(a), abs(b))
    q[2, 0, [0, half]] = a - turn * b, b + turn * a
    assert told(toy.scene(q=q)) == ("UPSTREAM", "q", 2)


def test_sines_and_cosines_of_fewer_digits():
    toy = Toy()
    half = toy.q.shape[-1] // 2
    stretch = 1 + 0.004 * np.random.default_rng(1).standard_normal(half)
    turn = np.exp(1j * 0.004 * np.random.default_rng(2).standard_normal(half))
    planes = (toy.q[:, -1:, :half] + 1j * toy.q[:, -1:, half:]) * stretch * turn
    q = np.concatenate((planes.real, planes.imag), axis=-1).astype(np.float32)
    assert told(Toy(style="half").scene(q=q))[0] == "DTYPE"


def masked(seen):
    """Weights shared among those rows alone, whatever the mask says."""

    def weights(table):
        shares = table * seen
        return shares / shares.sum(axis=-1, keepdims=True)

    return weights


def test_a_mask_that_was_not_handed_over_is_told_by_the_output():
    toy, every = Toy(), np.arange(12)
    for seen, name in (
        (every >= 3, "EVICTED-EARLY"),
        (every == 0, "MASK-TOP-LEFT"),
        (every == 11, "HISTORY-LOST"),
        (every < 11, "NEWEST-MISSING"),
        ((every != 4) & (every != 7), "MASK"),
    ):
        found = diagnose(toy.scene(weights=masked(seen)))
        assert (found.name, found.tensor) == (name, "mask")


def test_a_mask_of_some_heads_alone():
    toy = Toy()
    seen = np.ones((4, 1, 12), bool)
    seen[2:, :, :3] = False
    assert told(toy.scene(weights=masked(seen))) == ("EVICTED-EARLY", "mask", 2)


def test_zero_rows_that_nobody_handed_over_take_their_share():
    toy = Toy()
    scores = np.einsum("hqd,hkd->hqk", toy.q[:, -1:], toy.k[[0, 0, 1, 1]]) * toy.dim**-0.5
    total = np.exp(scores).sum(axis=-1, keepdims=True)
    found = diagnose(toy.scene(weights=lambda table: table * total / (total + 20)))
    assert found.name == "ZERO-ROWS-VISIBLE"
    assert "20 all-zero rows" in found.evidence


def coarse(rows):
    """Three bits of mantissa, as float8_e4m3fn has."""
    fraction, exponent = np.frexp(rows)
    return np.ldexp(np.rint(fraction * 16) / 16, exponent).astype(np.float32)


def test_rows_that_are_each_within_rounding_and_together_are_not():
    toy = Toy()
    v = toy.v.copy()
    v[:, :11] = coarse(v[:, :11])
    scene = toy.scene(v=v)
    scene = replace(scene, atol=replace(scene.atol, values=0.2, output=1e-3))
    assert told(scene)[:2] == ("DTYPE", "v")


def test_a_half_that_is_what_its_slot_held_before_was_not_written():
    toy = Toy()
    v, newest = toy.v.copy(), np.arange(toy.total) == toy.total - 1
    v[:, -1] = np.random.default_rng(1).standard_normal(v[:, -1].shape)
    scene = toy.scene(v=v, changed=newest)
    assert told(scene)[0] == "CONTENT"
    assert told(replace(scene, half={"v": newest})) == ("V-NOT-WRITTEN", "v", None)
