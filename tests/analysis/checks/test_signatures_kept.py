"""What caches that keep less than they were given show: smaller floats, rows of some heads only."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders.scenes import Toy
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.trace import dtypes

MOST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


def kept(rows, name, scale=None):
    """Rows that were divided by a scale, kept in eight bits, and scaled back."""
    scale = np.abs(rows).max() / MOST[name] if scale is None else scale
    table = np.unique(dtypes.widen(np.arange(256, dtype=np.uint8), name))
    table = table[np.isfinite(table)]
    return (table[np.abs((rows / scale)[..., None] - table).argmin(-1)] * scale).astype(np.float32)


@pytest.mark.parametrize("name", MOST)
def test_rows_kept_in_eight_bit_floats_with_a_scale_are_rounded(name):
    toy = Toy()
    found = diagnose(toy.scene(k=kept(toy.k, name)))
    assert (found.name, found.tensor) == ("DTYPE", "k")
    assert f"fits in {name}, once it is divided by a scale of each tensor" in found.evidence


def test_such_rows_that_get_another_scale_back_are_scaled():
    toy = Toy()
    found = diagnose(toy.scene(v=1.3 * kept(toy.v, "float8_e4m3fn")))
    assert (found.name, found.tensor) == ("OLD-ROWS-SCALED", "v")


def test_rows_that_are_off_by_as_much_at_random_are_no_smaller_floats():
    toy = Toy()
    off = toy.k * (1 + 0.03 * np.random.default_rng(2).standard_normal(toy.k.shape))
    assert diagnose(toy.scene(k=off.astype(np.float32))).name == "CONTENT"


def picked(toy, places):
    """What a cache hands out that keeps some places for each kv head."""
    k, v = (np.stack([rows[one] for rows, one in zip(side, places, strict=True)])
            for side in (toy.k, toy.v))  # fmt: skip
    return {"k": k, "v": v, "supposed": np.array(places[0])}


def test_heads_that_each_keep_as_many_rows_of_their_own_choose_them():
    toy = Toy()
    places = [[0, 2, 3, 8, 9, 10, 11], [0, 1, 5, 6, 7, 10, 11]]
    found = diagnose(toy.scene(**picked(toy, places)))
    assert (found.name, found.head, found.kind.bug) == ("EVICTED-BY-CHOICE", 0, False)
    assert "7 of 12 places: head 0 lacks 5: 1, 4, 5 …; head 1 lacks 5: 2, 3, 4 …" in found.evidence


def test_heads_that_each_keep_a_stretch_of_their_own_evict_by_place():
    toy = Toy()
    places = [[*range(7)], [*range(5, 12)]]
    assert diagnose(toy.scene(**picked(toy, places))).name == "EVICTED-EARLY"


def test_heads_that_hold_a_row_twice_and_others_not_evict_them():
    toy = Toy()
    places = [[0, 2, 2, 8, 9, 10, 11], [0, 1, 5, 6, 7, 10, 11]]
    assert diagnose(toy.scene(**picked(toy, places))).name == "EVICTED-EARLY"


def test_rows_of_the_same_step_that_a_narrow_window_hides_are_no_lost_history():
    toy = Toy()
    scene = toy.scene(new=12)
    narrow = Toy(window=5).mask(scene.places, np.arange(12))
    side, _ = toy.side(toy.q, toy.k, toy.v, narrow)
    found = diagnose(replace(scene, cached=side))
    assert (found.name, found.tensor) == ("EVICTED-EARLY", "mask")


def test_heads_that_order_their_rows_each_in_its_own_way_are_right():
    toy = Toy()
    places = [[11, 3, 0, 1, 2, 4, 6, 5, 7, 10, 9, 8], list(range(12))]
    assert diagnose(toy.scene(**picked(toy, places))) is None


def test_a_head_in_which_rows_stand_twice_has_lost_others():
    toy = Toy()
    places = [list(range(12)), [0, 1, 6, 7, 4, 5, 6, 7, 8, 9, 10, 11]]
    found = diagnose(toy.scene(**picked(toy, places)))
    assert (found.name, found.head) == ("ROW-OVERWRITTEN", 1)
    assert "kv head 1 lacks 2: 2, 3; 2 rows of other places stand there twice" in found.evidence


def test_equal_tokens_without_positions_may_stand_for_each_other():
    toy = Toy()
    toy.k[:, 4], toy.v[:, 4] = toy.k[:, 7], toy.v[:, 7]
    places = [[11, 3, 0, 1, 2, 7, 6, 5, 7, 10, 9, 8], list(range(12))]
    assert diagnose(toy.scene(**picked(toy, places))) is None
