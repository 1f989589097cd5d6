"""What one path lost: keys of the right rows, a bias, some weights, a row of one head."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders.scenes import Toy
from kvtrace.analysis.checks.diagnose import diagnose


def made(toy, change):
    """The scene whose right output is that of other scores; the cached lane has q·k·scale alone."""
    scene = toy.scene()
    keys = np.repeat(toy.k, toy.heads // toy.kv_heads, axis=0).astype(np.float64)
    values = np.repeat(toy.v, toy.heads // toy.kv_heads, axis=0).astype(np.float64)
    scores = change(np.einsum("hd,hrd->hr", toy.q[:, -1], keys) * toy.dim**-0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    right = np.einsum("hr,hrd->hd", weights, values)[:, None].astype(np.float32)
    reference = replace(scene.reference, output=right)
    return replace(scene, reference=reference, weights=lambda row: weights)


@pytest.mark.parametrize(
    "order",
    [(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 11), (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11)],
)
def test_keys_alone_that_moved_are_parted_from_their_values(order):
    toy = Toy()
    found = diagnose(toy.scene(k=toy.k[:, list(order)]))
    assert (found.name, found.tensor) == ("MISALIGNED", "k")


def test_rows_that_moved_whole_are_no_keys_that_parted_from_their_values():
    toy, order = Toy(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 11]
    found = diagnose(toy.scene(k=toy.k[:, order], v=toy.v[:, order]))
    assert found.name == "EVICTED-EARLY"


def test_a_few_weights_that_dropout_took_are_told_in_a_head_narrower_than_its_rows():
    toy = Toy(total=24, dim=8)
    kept = np.ones((4, 1, 24))
    kept[0, 0, 3] = kept[2, 0, 7] = kept[2, 0, 11] = 0
    found = diagnose(toy.scene(weights=lambda table: table * kept / 0.9))
    assert (found.name, found.tensor) == ("WEIGHTS-NOT-NORMALISED", "weights")
    assert "3 of 96 weights are 0, the others 1.11 times" in found.evidence


def test_half_the_weights_that_dropout_took_are_told_in_a_short_text():
    toy = Toy(total=14, dim=8)
    kept = np.ones((4, 1, 14))
    kept[0, 0, ::2] = kept[3, 0, 3:8] = 0
    found = diagnose(toy.scene(weights=lambda table: table * kept / 0.5))
    assert (found.name, found.tensor) == ("WEIGHTS-NOT-NORMALISED", "weights")
    assert "12 of 56 weights are 0, the others 2 times" in found.evidence


def test_a_bias_that_one_path_leaves_out_is_no_cap():
    table = np.random.default_rng(1).standard_normal((4, 12))
    found = diagnose(made(Toy(), lambda scores: scores + table))
    assert (found.name, found.tensor) == ("SCORE-BIAS", "weights")


@pytest.mark.parametrize("cap", [0.7, 8.0])
def test_a_cap_that_one_path_leaves_out_is_no_bias(cap):
    found = diagnose(made(Toy(), lambda scores: cap * np.tanh(scores / cap)))
    assert (found.name, found.tensor) == ("SCORE-NONLINEAR", "weights")


def test_a_row_that_is_zero_in_one_head_is_a_gap_there():
    toy = Toy(kv_heads=4)
    k, v = toy.k.copy(), toy.v.copy()
    k[2, 3] = v[2, 3] = 0
    found = diagnose(toy.scene(k=k, v=v))
    assert (found.name, found.head, found.row) == ("ZERO-GAP", 2, 3)


def test_a_text_of_two_rows_has_fewer_weights_than_dropout_may_take():
    table = np.array([[0.5, 0.0]], np.float32)
    toy = Toy(total=2)
    scene = toy.scene(scores=lambda scores: scores + table)
    found = diagnose(replace(scene, biases=lambda row: (table, 0 * table)))
    assert (found.name, found.tensor) == ("SCORE-BIAS", "weights")
    assert "differs by up to 0.5, most at place 0" in found.evidence


def test_what_is_added_to_one_row_on_one_path_is_told_of_that_row():
    table = np.zeros((1, 12), np.float32)
    table[0, 9] = 0.6
    scene = Toy().scene(scores=lambda scores: scores + table)
    found = diagnose(replace(scene, biases=lambda row: (table, 0 * table)))
    assert (found.name, found.tensor) == ("SCORE-BIAS", "weights")
    assert found.evidence.startswith("what is added to the scores differs by up to 0.6, most at")
    assert "place 9; none is seen without the cache" in found.evidence


def test_a_window_that_keeps_the_first_rows_hides_those_between():
    place = np.arange(12)
    found = diagnose(Toy().scene(visible=((place < 2) | (place > 6))[None]))
    assert (found.name, found.tensor) == ("EVICTED-EARLY", "mask")
    assert "does not see places 2 to 6: the first 2 are seen" in found.evidence


def test_one_hidden_row_is_no_window():
    found = diagnose(Toy().scene(visible=np.arange(12)[None] != 2))
    assert (found.name, found.tensor) == ("MASK", "mask")


def test_a_row_older_than_a_window_that_keeps_the_first_rows():
    toy, place = Toy(), np.arange(12)
    scene = toy.scene()
    right = toy.scene(visible=((place < 2) | (place > 6))[None]).cached
    older = toy.scene(visible=((place < 2) | (place > 5))[None])
    found = diagnose(replace(older, reference=replace(scene.reference, **seen_of(right))))
    assert (found.name, found.tensor) == ("WINDOW", "mask")
    assert "sees 1 row older than its window: 6" in found.evidence


def test_a_window_that_keeps_the_first_rows_and_is_one_too_short():
    toy, place = Toy(), np.arange(12)
    scene = toy.scene()
    right = toy.scene(visible=((place < 2) | (place > 6))[None]).cached
    shorter = toy.scene(visible=((place < 2) | (place > 7))[None])
    found = diagnose(replace(shorter, reference=replace(scene.reference, **seen_of(right))))
    assert (found.name, found.tensor) == ("EVICTED-EARLY", "mask")
    assert "does not see place 7: the first 2 are seen, and the newest" in found.evidence


def seen_of(side):
    """What a side sees, and makes of it."""
    return {"visible": side.visible, "output": side.output}
