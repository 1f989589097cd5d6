"""What happens inside of attention, told by its output: caps, sinks, windows, eight bits."""

import numpy as np
import pytest

from builders.scenes import Toy, replace, rope
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.wrong_output.precision import to_type


def with_output(scene, output):
    """The scene with another output of the cached lane."""
    return replace(scene, cached=replace(scene.cached, output=output.astype(np.float32)))


def softmaxed(scores):
    table = np.exp(scores - scores.max(-1, keepdims=True))
    return table / table.sum(-1, keepdims=True)


def wide(toy):
    """Scores of the last query and the values, one for each head: [heads, rows], [heads, …]."""
    group = toy.heads // toy.kv_heads
    keys, values = (np.repeat(rows, group, axis=0) for rows in (toy.k, toy.v))
    return np.einsum("hd,hrd->hr", toy.q[:, -1], keys) / toy.dim**0.5, values


def mix(weights, values):
    return np.einsum("hr,hrd->hd", weights, values)[:, None]


def biased(toy, slopes, bend=lambda scores: scores):
    """A scene whose right scores have a bias linear in the distance; the cached ones are bent."""
    scores, values = wide(toy)
    scores = scores + slopes[:, None] * (np.arange(toy.total) - toy.total + 1)
    right, weights = mix(softmaxed(scores), values), softmaxed(scores)
    scene = toy.scene()
    scene = replace(
        scene,
        reference=replace(scene.reference, output=right.astype(np.float32)),
        weights=lambda row: weights,
    )
    return with_output(scene, mix(softmaxed(bend(scores)), values))


def test_a_clamp_of_scores_that_already_have_their_bias():
    scene = biased(Toy(), np.array([0.5, 0.25, 0.1, 0.05]), lambda s: np.clip(s, -0.7, 0.7))
    found = diagnose(scene)
    assert found.name == "SCORE-NONLINEAR"
    assert "clamp of 0.7 on scores and bias together" in found.evidence


@pytest.mark.parametrize(("factor", "said"), [(None, "no share"), (0.6, "another share")])
def test_a_sink_that_takes_another_share(factor, said):
    toy = Toy()
    scores, values = wide(toy)
    sinks = np.array([0.5, 1.0, -0.5, 2.0])

    def weights(sink):
        top = np.exp(scores)
        return top / (top.sum(-1, keepdims=True) + np.exp(sink)[:, None])

    right = weights(sinks)
    scene = toy.scene()
    scene = replace(
        scene,
        site=replace(scene.site, sinks=(0.0, 0.0, 0.0, 0.0)),
        reference=replace(scene.reference, output=mix(right, values).astype(np.float32)),
        weights=lambda row: right,
    )
    mine = softmaxed(scores) if factor is None else weights(sinks * factor)
    found = diagnose(with_output(scene, mix(mine, values)))
    assert found.name == "SCORE-NONLINEAR"
    assert said in found.evidence


@pytest.mark.parametrize("more", [1, 2])
def test_a_window_inside_of_attention_that_is_a_little_too_long(more):
    toy = Toy(window=6)
    scores, values = wide(toy)
    inside = np.arange(toy.total) >= toy.total - 6 - more
    found = diagnose(
        with_output(toy.scene(), mix(softmaxed(np.where(inside, scores, -1e30)), values))
    )
    assert found.name == "WINDOW"
    assert f"sees {more} older row" in found.evidence


def test_heads_that_mix_their_best_rows_alone():
    toy = Toy()
    scores, values = wide(toy)
    least = np.sort(scores, axis=1)[:, -5, None]
    weights = softmaxed(np.where(scores >= least, scores, -1e30))
    found = diagnose(with_output(toy.scene(), mix(weights, values)))
    assert (found.name, found.tensor) == ("MASK", "mask")
    assert "only its 5 highest scored rows of 12" in found.evidence


def test_keys_that_are_quantised_inside_of_attention():
    toy = Toy()
    values = wide(toy)[1]
    scale = np.abs(toy.k).max(-1, keepdims=True) / 127
    toy_k = (np.rint(toy.k / scale) * scale).astype(np.float32)
    group = toy.heads // toy.kv_heads
    scores = np.einsum("hd,hrd->hr", toy.q[:, -1], np.repeat(toy_k, group, axis=0)) / 4
    found = diagnose(with_output(toy.scene(), mix(softmaxed(scores), values)))
    assert found.name == "DTYPE"
    assert "k was quantised to 8 bits inside attention" in found.evidence


def test_values_rotated_and_kept_as_keys_are_swapped():
    toy = Toy()
    k, v = toy.k.copy(), toy.v.copy()
    k[:, -1:] = rope(toy.v[:, -1:], [11])
    v[:, -1:] = toy.plain_k[:, -1:]
    found = diagnose(toy.scene(k=k, v=v))
    assert (found.name, found.tensor) == ("KEYS-VALUES-SWAPPED", "k")
    assert "but rotated" in found.evidence


def test_values_in_place_of_keys_may_be_scaled_as_keys_are():
    toy = Toy()
    swapped = diagnose(toy.scene(k=0.25 * toy.v, v=toy.k))
    assert (swapped.name, swapped.tensor) == ("KEYS-VALUES-SWAPPED", "k")
    assert diagnose(toy.scene(k=0.25 * toy.k)).name == "OLD-ROWS-SCALED"


def projected(toy, rows, new=1):
    """The scene of last tokens whose inputs, and so all three projections, are other ones."""
    rng = np.random.default_rng(9)
    hidden = rng.standard_normal((new, 64))
    other = rows(hidden)
    made = []
    for heads in (toy.heads, toy.kv_heads, toy.kv_heads):
        matrix = rng.standard_normal((heads, toy.dim, 64)) / 8
        made.append([(x @ matrix.swapaxes(1, 2)).astype(np.float32) for x in (hidden, other)])
    for target, (right, _) in zip((toy.q, toy.k, toy.v), made, strict=True):
        target[:, -new:] = right
    k, v = toy.k.copy(), toy.v.copy()
    k[:, -new:], v[:, -new:] = made[1][1], made[2][1]
    return toy.scene(new=new, q=made[0][1], k=k, v=v)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_input_that_was_rounded_is_told_by_how_far_all_three_are_off(dtype, layer):
    toy = Toy(layer=layer)
    scene = projected(toy, lambda hidden: to_type(hidden, dtype), new=6)
    tight = replace(scene.atol, queries=1e-6, keys=1e-6, values=1e-6, output=1e-6)
    found = diagnose(replace(scene, atol=tight))
    assert found.name == "DTYPE"
    assert f"rounding the input of this layer to {dtype}" in found.evidence


def test_one_row_of_few_numbers_is_too_little_to_tell_a_rounded_input():
    scene = projected(Toy(), lambda hidden: to_type(hidden, "float16"))
    tight = replace(scene.atol, queries=1e-6, keys=1e-6, values=1e-6, output=1e-6)
    assert diagnose(replace(scene, atol=tight)).name == "UPSTREAM"


def test_rounding_spares_no_token_of_a_step():
    toy = Toy()
    scene = projected(toy, lambda hidden: to_type(hidden, "float16"), new=6)
    tight = replace(scene.atol, queries=1e-6, keys=1e-6, values=1e-6, output=1e-6)
    queries = np.concatenate([toy.q[:, -7:-6], scene.cached.queries], axis=1)
    more = toy.scene(new=7, q=queries, k=scene.cached.keys, v=scene.cached.values)
    found = diagnose(replace(more, atol=tight))
    assert (found.name, found.row) == ("UPSTREAM", 1)


@pytest.mark.parametrize("far", [0.02, 1.0])
def test_an_input_that_is_off_by_more_is_another_one(far):
    rng = np.random.default_rng(3)
    scene = projected(Toy(), lambda hidden: hidden + far * rng.standard_normal(hidden.shape))
    assert diagnose(scene).name == "UPSTREAM"


def test_keys_made_from_a_rounded_latent_are_told_by_how_far_they_are_off():
    toy = Toy(total=40, heads=4, kv_heads=4)
    rng = np.random.default_rng(4)
    latents, up = rng.standard_normal((40, 32)), rng.standard_normal((4, 32, 16)) / 6
    exact, rounded = (
        np.einsum("rl,hld->hrd", one, up).astype(np.float32)
        for one in (latents, to_type(latents, "bfloat16"))
    )
    toy.k[:] = exact
    k = exact.copy()
    k[:, :30] = rounded[:, :30]
    scene = toy.scene(k=k)
    found = diagnose(replace(scene, atol=replace(scene.atol, keys=1e-6)))
    assert (found.name, found.tensor) == ("DTYPE", "k")
    assert "30 rows of k are off alike" in found.evidence


def test_a_choice_of_more_rows_of_the_own_text_leaves_none_of_an_earlier_one():
    toy = Toy()
    scene = toy.scene(new=12, first_step=True)
    wanted = scene.reference.visible & (np.arange(12) < 8)
    k = toy.k.copy()
    k[:, :4] += 0.1
    scene = replace(
        scene,
        reference=replace(scene.reference, visible=wanted),
        cached=replace(scene.cached, keys=k),
    )
    assert diagnose(scene).name != "STALE-CACHE"


@pytest.mark.parametrize(("n", "said"), [(1, "a distance 1 less"), (-2, "a distance 2 more")])
def test_a_learned_bias_of_other_distances(n, said):
    toy = Toy()
    table = np.random.default_rng(5).standard_normal((toy.heads, toy.total + 4))
    right_bias, bias = table[:, 2 : 2 + toy.total], table[:, 2 + n : 2 + n + toy.total]
    scores, values = wide(toy)
    weights = softmaxed(scores + right_bias)
    scene = toy.scene()
    scene = replace(
        scene,
        reference=replace(scene.reference, output=mix(weights, values).astype(np.float32)),
        weights=lambda row: weights,
        biases=lambda row: (bias, right_bias),
    )
    found = diagnose(with_output(scene, mix(softmaxed(scores + bias), values)))
    assert found.name == "SCORE-BIAS"
    assert said in found.evidence


def test_keys_and_values_that_are_split_otherwise():
    toy = Toy()
    both = np.concatenate((toy.k, toy.v), axis=2)
    found = diagnose(toy.scene(k=both[..., 0::2], v=both[..., 1::2]))
    assert found.name == "HEAD-RESHAPE"
    assert "k and v together hold the same numbers" in found.evidence


def test_queries_that_carry_no_rotation_are_no_length_dependent_positions():
    toy = Toy()
    scene = toy.scene(new=6, q=toy.plain_q[:, 6:])
    found = diagnose(scene)
    assert found.name == "POSITION-ROPE"
    assert "carry no rotation" in found.evidence
