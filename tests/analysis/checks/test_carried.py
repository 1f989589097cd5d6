"""Large scores carry rounding to the output: right for what went in, and no bug."""

import numpy as np
import pytest
import torch

import kvtrace
from builders.scenes import Toy, attend, replace
from builders.tiny_models import tiny_model
from builders.ways import IDS, ready
from kvtrace.analysis.checks import DIVERGED, EQUAL, check
from kvtrace.analysis.checks.diagnose import diagnose
from kvtrace.analysis.checks.scenes.query import Query
from kvtrace.analysis.checks.scenes.scene import Scales
from kvtrace.analysis.checks.wrong_output.carried import follows
from kvtrace.analysis.checks.wrong_output.one_number import bent


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def steep(**broken):
    """Two rows score the same, by hundreds; the query is off by a thousandth; 1 % is rounding."""
    toy = Toy()
    toy.q = toy.q * 200
    for kv_head in range(toy.kv_heads):
        pair = toy.q[2 * kv_head : 2 * kv_head + 2, -1].T
        across = np.cos(np.arange(toy.dim))
        across = across - pair @ np.linalg.lstsq(pair, across, rcond=None)[0]
        toy.k[kv_head, 3] = pair.sum(axis=1) / 100
        toy.k[kv_head, 7] = toy.k[kv_head, 3] + 2 * across
    nudged = toy.q[:, -1:] * (1 + 1e-3 * np.sign(np.sin(np.arange(toy.dim))))
    nudged = nudged.astype(np.float32)
    scene = toy.scene(q=nudged, **broken)
    table = scene.reference.visible
    mine, theirs = (
        attend(q, toy.k, toy.v, table, toy.dim**-0.5)[0].output for q in (nudged, toy.q[:, -1:])
    )
    return replace(scene, atol=Scales.of(scene.reference, 0.01), made=lambda: (mine, theirs))


def test_an_output_that_large_scores_make_of_nearly_right_rows_is_right():
    scene = steep()
    off = np.abs(scene.cached.output - scene.reference.output).max()
    assert off > 2 * scene.atol.output
    assert follows(scene)
    assert diagnose(scene) is None
    assert diagnose(replace(scene, made=lambda: None)) is not None


def test_an_output_that_the_rules_do_not_make_of_its_rows_is_not():
    scene = steep(scores=lambda scores: 5 * np.tanh(scores / 5))
    assert not follows(scene)
    assert diagnose(scene) is not None


def test_equal_rows_explain_no_difference():
    scene = steep()
    same = replace(scene, cached=replace(scene.cached, output=scene.reference.output))
    right = scene.made()[1]
    assert not follows(replace(same, made=lambda: (right, right)))


def sharp(dtype):
    """A model whose scores are hundreds of times as large as usual."""
    model = ready(tiny_model("llama", dtype=dtype))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 300
    return model


def checked(model, path):
    with kvtrace.record(model, path):
        model.generate(IDS, do_sample=False, max_new_tokens=12)
    return check(kvtrace.open(path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_with_large_scores_in_a_narrow_type_has_no_bug_and_is_told_of(dtype, tmp_path):
    report = checked(sharp(dtype), tmp_path / "a.kvt")
    assert (report.verdict, report.findings) == (EQUAL, ())
    assert dict(report.largest)["output"] > 2 * 2e-2 or dtype == torch.float16
    assert any("as where scores are large" in one for one in report.caveats)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bug_behind_large_scores_is_still_one(dtype, tmp_path):
    model = sharp(dtype)
    last = model.model.layers[3].self_attn

    def half(module, args, out):
        return out / 2 if out.shape[1] == 1 else out

    last.v_proj.register_forward_hook(half)
    report = checked(model, tmp_path / "a.kvt")
    assert report.verdict == DIVERGED
    assert report.findings[0].layer == 3


def test_a_cap_out_of_reach_of_the_scores_explains_nothing():
    drawn = np.random.default_rng(0)
    raw, values = drawn.normal(size=(1, 6)), drawn.normal(size=(1, 6, 4))
    right = raw + 5e-4 * drawn.normal(size=raw.shape)
    outputs = [
        np.einsum("hr,hrd->hd", np.exp(one) / np.exp(one).sum(1, keepdims=True), values)
        for one in (raw, right)
    ]
    logits = right - np.log(np.exp(right).sum(1, keepdims=True))
    one = Query(logits, raw, values, *outputs, np.arange(6), 1e-6)
    assert one.misfit(raw).max() < 1e-12 < 1e-5 < one.misfit(logits).max()
    assert bent(one) is None
