"""Parts of rows, rows that are hidden and not gone, and rounding beside something worse."""

import numpy as np
import pytest

from builders.scenes import Toy, replace, rope
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.scenes.identify import identify
from kvtrace.analysis.checks.wrong_rows.contents import check_contents


def named(scene):
    found = diagnose(scene)
    return found.name, found.tensor


def eight_bits(rows):
    scale = np.abs(rows).max(-1, keepdims=True) / 127
    return (np.rint(rows / scale) * scale).astype(np.float32)


def test_features_of_another_token_are_misaligned_not_rearranged():
    toy = Toy()
    k = toy.k.copy()
    k[:, :11, 8:] = np.roll(k[:, :11, 8:], 1, axis=1)
    found = diagnose(toy.scene(k=k))
    assert (found.name, found.tensor) == ("MISALIGNED", "k")
    assert "features 8 to 15 of k belong to place 10, the others to place 0" in found.evidence


@pytest.mark.parametrize("behind", [0.0, 1.0])
def test_features_that_are_all_one_token_further_end_in_what_nobody_wrote(behind):
    toy = Toy()
    k = toy.k.copy()
    k[:, :-1, 8:] = k[:, 1:, 8:]
    k[:, -1, 8:] = behind
    found = diagnose(toy.scene(k=k, changed=np.ones(toy.total, bool)))
    assert (found.name, found.tensor) == ("MISALIGNED", "k")
    assert "features 8 to 15 of k belong to place 1, the others to place 0" in found.evidence


def test_a_row_made_of_the_one_before_has_its_own_features_where_it_differs_from_that():
    toy = Toy()
    k, v = toy.k.copy(), toy.v.copy()
    k[:, -1, :8], v[:, -1] = k[:, -2, :8], v[:, -2]
    scene = toy.scene(k=k, v=v)
    found = check_contents(scene, identify(scene))
    assert (found.name, found.tensor) == ("MISALIGNED", "k")
    assert "features 8 to 15 of k belong to place 11, the others to place 10" in found.evidence


def test_a_part_of_the_features_may_be_rounded_alone():
    toy = Toy()
    k = toy.k.copy()
    k[..., :8] = k[..., :8].astype(np.float16)
    found = diagnose(toy.scene(k=k))
    assert (found.name, found.tensor) == ("DTYPE", "k")
    assert "float16" in found.evidence


def test_values_given_another_scale_are_told_beside_keys_that_are_only_quantised():
    toy = Toy()
    k, v = eight_bits(toy.k), eight_bits(toy.v) * np.linspace(0.5, 1.3, 12)[:, None]
    found = diagnose(toy.scene(k=k, v=v.astype(np.float32)))
    assert (found.name, found.tensor) == ("OLD-ROWS-SCALED", "v")
    assert "about 0.5 to 1.3 ×" in found.evidence
    assert "besides, 12 rows of k" in found.evidence


def test_rows_that_are_quantised_well_are_only_less_exact():
    toy = Toy()
    assert named(toy.scene(k=eight_bits(toy.k), v=eight_bits(toy.v))) == ("DTYPE", "k")


def test_a_new_key_in_a_slot_of_a_ring_is_no_old_one():
    toy = Toy(window=8)
    order = np.array([11, 4, 5, 6, 7, 8, 9, 10])
    k = toy.k[:, order].copy()
    k[:, 0] = rope(toy.plain_k[:, 11:], [3])[:, 0]
    scene = toy.scene(k=k, v=toy.v[:, order], supposed=order, changed=np.arange(8) == 0)
    assert named(scene) == ("POSITION-ROPE-K", "k")


def test_the_oldest_row_of_a_full_ring_may_be_hidden_and_not_lost():
    toy = Toy(window=8)
    order = np.array([11, 4, 5, 6, 7, 8, 9, 10])
    visible = np.ones((1, 8), bool)
    visible[0, 1] = False
    found = diagnose(
        toy.scene(k=toy.k[:, order], v=toy.v[:, order], supposed=order, visible=visible)
    )
    assert (found.name, found.tensor) == ("EVICTED-EARLY", "mask")
    assert "still there, hidden by the mask" in found.evidence


def test_a_row_that_stands_in_every_slot_is_said_to():
    toy = Toy()
    k, v = (np.repeat(rows[:, -1:], 12, axis=1) for rows in (toy.k, toy.v))
    found = diagnose(toy.scene(k=k, v=v))
    assert found.name == "HISTORY-LOST"
    assert "in 11 other slots it stands again" in found.evidence


@pytest.mark.parametrize("kind", ["cross", "self"])
def test_only_of_an_encoder_hidden_rows_are_surely_padding(kind):
    toy = Toy()
    scene = toy.scene()
    hidden = scene.reference.visible.copy()
    hidden[0, 9:] = False
    scene = replace(
        scene,
        site=replace(scene.site, kind=kind),
        places=np.array([12]),
        reference=replace(scene.reference, visible=hidden),
    )
    assert named(scene) == ("PAD-VISIBLE" if kind == "cross" else "MASK", "mask")


def test_values_of_a_table_that_is_not_even_are_quantised_too():
    toy = Toy()
    table = np.sinh(np.linspace(-2, 2, 14)) / np.sinh(2)
    most = np.abs(toy.v[:, :11]).max(-1, keepdims=True)
    nearest = np.abs(toy.v[:, :11, :, None] / most[..., None] - table).argmin(-1)
    v = toy.v.copy()
    v[:, :11] = table[nearest] * most
    found = diagnose(toy.scene(v=v))
    assert (found.name, found.tensor) == ("DTYPE", "v")
    assert "take 14 values" in found.evidence


def test_a_draft_between_others_that_sees_its_sibling_sees_a_later_token():
    toy = Toy()
    visible = toy.mask([8, 9, 10, 11], np.arange(12))
    visible[1, 10] = True
    found = diagnose(toy.scene(new=4, visible=visible))
    assert (found.name, found.tensor) == ("MASK-FUTURE", "mask")
    assert "the query of place 9 sees later place 10" in found.evidence


def test_a_draft_between_others_that_misses_a_row_is_told():
    toy = Toy()
    visible = toy.mask([8, 9, 10, 11], np.arange(12))
    visible[2, 3] = False
    found = diagnose(toy.scene(new=4, visible=visible))
    assert found.tensor == "mask"
    assert "the query of place 10 does not see place 3" in found.evidence
