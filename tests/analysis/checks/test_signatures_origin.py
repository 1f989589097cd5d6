"""Signatures that tell where wrong rows and queries come from, on rows made by hand."""

import numpy as np

from builders.scenes import Toy, rope
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.scenes.relations import moved
from kvtrace.analysis.checks.wrong_rows.turned import whole

LENGTHS = np.arange(8)
USUAL = 10000.0 ** (-LENGTHS / 8)
"""Radians a position of eight planes."""


def test_a_rotation_that_is_missing_turns_every_plane_by_its_rate():
    assert whole(-USUAL)
    assert whole(USUAL)
    assert whole(-USUAL / 4)  # positions divided by four


def test_other_frequencies_leave_a_part_of_each_rotation():
    assert not whole(USUAL * (1 - 1 / (2.0 + LENGTHS)))  # one factor a plane
    assert not whole(500000.0 ** (-LENGTHS / 8) - USUAL)  # another base


def test_positions_that_begin_anew_after_eight_bits():
    toy = Toy()
    where = np.arange(12) + 118
    toy.q = rope(toy.plain_q, where, toy.style, toy.base).astype(np.float32)
    toy.k = rope(toy.plain_k, where, toy.style, toy.base).astype(np.float32)
    turned = rope(toy.plain_q[:, -1:], where[-1:] - 256, toy.style, toy.base).astype(np.float32)
    found = diagnose(toy.scene(q=turned))
    assert found.name == "POSITION-ROPE"
    assert "rotated by -256 positions: as if counted in eight bits" in found.evidence


def test_half_of_every_key_that_is_zero():
    toy = Toy()
    keys = toy.k.copy()
    keys[..., 8:] = 0
    found = diagnose(toy.scene(k=keys))
    assert found.name == "K-NOT-WRITTEN"
    assert "features 8 to 15 of k" in found.evidence


def test_queries_of_some_heads_alone_are_not_wrong_by_their_input():
    toy = Toy()
    queries = toy.q[:, -1:].copy()
    queries[1:] += np.random.default_rng(1).standard_normal(queries[1:].shape).astype(np.float32)
    values = toy.v.copy()
    values[:, -1] = toy.other[0, :, -1]
    found = diagnose(toy.scene(q=queries, v=values))
    assert found.name == "CONTENT"
    assert "so the input of the layer is right" in found.evidence


def test_queries_beside_values_in_a_smaller_type_were_calculated_in_it():
    toy = Toy()
    values = toy.v.copy()
    values[:, -1] = values[:, -1].astype(np.float16)
    queries = toy.q[:, -1:] + 2e-3 * np.random.default_rng(1).standard_normal((4, 1, 16))
    found = diagnose(toy.scene(q=queries.astype(np.float32), v=values))
    assert found.name == "DTYPE"
    assert "every number of its v fits in float16" in found.evidence


def without(rows, gone):
    return np.delete(rows, gone, axis=1)


def test_a_row_in_the_middle_that_is_gone_is_not_hidden():
    toy = Toy()
    places = np.delete(np.arange(12), 4)
    found = diagnose(toy.scene(k=without(toy.k, 4), v=without(toy.v, 4), supposed=places))
    assert (found.name, found.tensor) == ("MASK", "k")
    assert "does not see place 4: no such row is there" in found.evidence


def test_keys_and_values_that_lack_different_tokens_have_parted():
    toy = Toy()
    places = np.delete(np.arange(12), 4)
    found = diagnose(toy.scene(k=without(toy.k, 4), v=without(toy.v, 3), supposed=places))
    assert found.name == "MISALIGNED"
    assert "slot 3: k belongs to place 3, v to place 4" in found.evidence


def test_rows_that_are_off_say_what_they_have_in_common():
    rng = np.random.default_rng(3)
    right = rng.standard_normal((2, 6, 16)).astype(np.float32)
    each, vector = rng.standard_normal((2, 6, 1)), rng.standard_normal((2, 1, 16))
    square = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    assert "zero point" in moved(right + each, right, 1e-5)
    assert "a bias is left out" in moved(right + vector, right, 1e-5)
    assert "turned by some matrix" in moved(right @ square, right, 1e-5)
    assert moved(right + rng.standard_normal(right.shape), right, 1e-5) == ""


def test_heads_of_another_sequence_among_its_own_mix_up_batch_and_heads():
    toy = Toy()
    v = toy.v.copy()
    v[1, :-1] = toy.other[1][0, : toy.total - 1]
    found = diagnose(toy.scene(v=v, changed=np.arange(toy.total) < toy.total - 1))
    assert (found.name, found.tensor, found.head) == ("WRONG-BATCH-ROW", "v", 1)
    assert "is head 0 of sequence 1" in found.evidence
