"""Rules of the signatures that real runs taught."""

import numpy as np
import pytest

from builders.scenes import Toy, replace, rope
from kvtrace.analysis.checks.around.layer_alone import diagnose_apart
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.wrong_rows.turned import rotation


def named(scene):
    found = diagnose(scene)
    return None if found is None else found.name


def test_keys_turned_about_are_scaled_by_minus_one_not_rotated():
    toy = Toy()
    k = toy.k.copy()
    k[:, :-1] *= -1
    assert named(toy.scene(k=k)) == "OLD-ROWS-SCALED"


def test_values_that_are_the_keys_are_swapped():
    toy = Toy()
    assert named(toy.scene(v=toy.k.copy())) == "KEYS-VALUES-SWAPPED"


def test_a_row_whose_halves_stand_in_two_slots_is_misaligned_not_unwritten():
    toy = Toy()
    v = toy.v.copy()
    v[:, 0], v[:, -1] = v[:, -1].copy(), 0
    assert named(toy.scene(v=v)) == "MISALIGNED"


def test_kv_heads_that_nobody_wrote_are_too_many():
    toy = Toy(kv_heads=4)
    k, v = toy.k.copy(), toy.v.copy()
    k[2:], v[2:] = 0, 0
    assert named(toy.scene(k=k, v=v)) == "KV-HEADS"


def test_only_a_slot_whose_token_is_missing_was_overwritten():
    toy = Toy()
    k, v, supposed = toy.k[:, 2:], toy.v[:, 2:], np.arange(2, 12)
    scene = toy.scene(k=k, v=v, supposed=supposed, changed=np.arange(10) == 5)
    assert named(replace(scene, lost=frozenset({7}))) == "EVICTED-EARLY"
    assert named(replace(scene, lost=frozenset({1}))) == "ROW-OVERWRITTEN"


@pytest.mark.parametrize("start", [0, 8])
@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_the_rotated_features_are_found_among_others(style, start):
    rows = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)
    turned = rows.copy()
    part = slice(start, start + 8)
    turned[..., part] = rope(rows[..., part], [5, 5, 5], style)
    found = rotation(turned, rows, 1e-5)
    assert (found.style, found.start, found.size) == (style, start, 8)


def test_a_wrong_input_alone_is_no_further_cause():
    toy = Toy()
    k, v, q = toy.k.copy(), toy.v.copy(), toy.q.copy()
    for rows in (k, v, q):
        rows[:, -1] += 1
    assert diagnose_apart(toy.scene(k=k, v=v, q=q[:, -1:])) is None


def test_rows_that_are_missing_are_a_cause_whatever_the_input_was():
    toy = Toy()
    q = toy.q[:, -1:] + 1
    visible = toy.mask([11], np.arange(12))
    visible[0, :3] = False
    found = diagnose_apart(toy.scene(q=q, visible=visible))
    assert found.name == "EVICTED-EARLY"
