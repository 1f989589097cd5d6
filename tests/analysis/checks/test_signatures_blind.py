"""Faults that were planted blind and not recognised at first, named by signature."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders.scenes import Toy, rope
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.scenes.place_names import spoken
from kvtrace.analysis.checks.wrong_output.precision import to_type
from kvtrace.trace import Meta, ModelCard


def mixed(q, k, v, dtype, *, scores=True):
    """Attention of one query that runs in a smaller type, [heads, 1, dim]."""
    group = len(q) // len(k)
    k, v = (np.repeat(rows, group, axis=0).astype(np.float64) for rows in (k, v))
    raw = np.einsum("hd,hrd->hr", q[:, 0].astype(np.float64), k) / 4
    share = np.exp(to_type(raw, dtype) if scores else raw)
    share = to_type(share / share.sum(axis=1, keepdims=True), dtype)
    return np.einsum("hr,hrd->hd", share, v)[:, None].astype(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_softmax_in_a_smaller_type(dtype):
    toy = Toy()
    scene = toy.scene()
    made = mixed(toy.q[:, -1:], toy.k, toy.v, dtype)
    found = diagnose(replace(scene, cached=replace(scene.cached, output=made)))
    assert found.name == "DTYPE"
    assert f"softmax ran in {dtype}" in found.evidence


def test_queries_keys_and_values_that_are_rounded_inside_of_attention():
    toy = Toy()
    scene = toy.scene()
    q, k, v = (to_type(rows, "bfloat16") for rows in (toy.q[:, -1:], toy.k, toy.v))
    made, _ = toy.side(q, k, v, scene.cached.visible)
    found = diagnose(replace(scene, cached=replace(scene.cached, output=made.output)))
    assert found.name == "DTYPE"
    assert "q, k and v were rounded to bfloat16" in found.evidence


def test_an_output_that_is_off_at_random_is_no_smaller_type():
    toy = Toy()
    scene = toy.scene()
    noise = 0.002 * np.random.default_rng(3).standard_normal(scene.cached.output.shape)
    output = (scene.cached.output + noise).astype(np.float32)
    assert diagnose(replace(scene, cached=replace(scene.cached, output=output))).name == "UNKNOWN"


def test_a_mask_that_lowers_hidden_scores_by_too_little():
    toy = Toy()
    scene = toy.scene(4)
    allowed = scene.reference.visible
    group = toy.heads // toy.kv_heads
    scores = np.einsum("hqd,hrd->hqr", toy.q[:, -4:], np.repeat(toy.k, group, axis=0)) / 4
    weights = np.exp(np.where(allowed, scores, scores - 3))
    weights /= weights.sum(axis=-1, keepdims=True)
    output = np.einsum("hqr,hrd->hqd", weights, np.repeat(toy.v, group, axis=0)).astype(np.float32)
    found = diagnose(replace(scene, cached=replace(scene.cached, output=output)))
    assert found.name == "MASK-FUTURE"
    assert "only 3 lower" in found.evidence


def test_one_row_in_another_layout():
    toy = Toy()
    k = toy.k.copy()
    k[:, -1] = k[:, -1].T.reshape(k[:, -1].shape)
    found = diagnose(toy.scene(k=k))
    assert (found.name, found.row) == ("HEAD-RESHAPE", 11)


def test_a_position_that_another_row_has_already_is_told_of():
    toy = Toy()
    q = rope(toy.q[:, -1:], np.array([-1]), toy.style, toy.base).astype(np.float32)
    held = np.array([*range(11), 10])
    scene = replace(toy.scene(q=q), told=np.array([10]), held=held)
    found = diagnose(scene)
    assert found.name == "POSITION-ROPE"
    assert "given position 10 for it, and slot 10 holds a row of that position" in found.evidence


def test_layers_are_called_as_their_author_does():
    toy = Toy()
    kinds = (("encoder", 0), ("self", 0), ("cross", 0), ("self", 1))
    sites = tuple(
        replace(toy.site(), index=at, layer=layer, kind=kind, module=f"m.{at}")
        for at, (kind, layer) in enumerate(kinds)
    )
    meta = Meta(model=ModelCard("m", "M"), sites=sites)
    assert spoken(meta, 0) == "encoder layer 0 self-attention"
    assert spoken(meta, 2) == "decoder layer 0 cross-attention (L2 on the screen)"
    alone = Meta(model=ModelCard("m", "M"), sites=(toy.site(), toy.site()))
    assert spoken(alone, 1) == "layer 1"


def test_one_that_is_added_to_the_sum_is_no_row_of_zeros():
    toy = Toy()
    scores = np.einsum("hqd,hkd->hqk", toy.q[:, -1:], toy.k[[0, 0, 1, 1]]) / 4
    total = np.exp(scores).sum(axis=-1, keepdims=True)
    found = diagnose(toy.scene(weights=lambda table: table * total / (total + 1)))
    assert found.name == "WEIGHTS-NOT-NORMALISED"
    assert "1 is added" in found.evidence


def test_a_shift_of_positions_that_are_divided_by_a_factor_is_still_one():
    toy = Toy()
    place = np.arange(12) / 4
    toy.q = rope(toy.plain_q, place, toy.style, toy.base).astype(np.float32)
    toy.k = rope(toy.plain_k, place, toy.style, toy.base).astype(np.float32)
    moved = rope(toy.plain_q[:, -1:], place[-1:] + 0.25, toy.style, toy.base).astype(np.float32)
    found = diagnose(toy.scene(q=moved))
    assert found.name == "POSITION-ROPE"
    assert "+0.250 radians in plane 0" in found.evidence


def test_another_base_is_no_shift_by_one():
    toy = Toy()
    place = np.arange(10)
    scene = toy.scene(
        end=10, q=rope(toy.plain_q[:, 9:10], place[-1:], toy.style, 500000.0).astype(np.float32)
    )
    assert "by no whole number of positions" in diagnose(scene).evidence
