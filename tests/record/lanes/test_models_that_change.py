"""A model that somebody changes while it is recorded: other lanes would be another model's."""

from __future__ import annotations

import copy

import pytest
import torch

import kvtrace
from builders.custom_drives import build, ids, through_the_cache
from builders.tiny_models import tiny_model
from builders.ways import IDS, ready
from kvtrace.analysis.checks.report import EQUAL, UNCHECKED
from kvtrace.analysis.checks.verdict import check


@pytest.fixture
def model():
    return ready(tiny_model("llama"))


def two_texts(model, path, between):
    """The report over a text, something done to the model, and another text."""
    with kvtrace.record(model, path):
        model.generate(IDS, max_new_tokens=3, do_sample=False)
        between()
        model.generate(IDS + 1, max_new_tokens=3, do_sample=False)
    return check(kvtrace.open(path))


def through_data(model):
    model.model.layers[1].self_attn.k_proj.weight.data.mul_(1.5)


def to_bfloat16(model):
    model.to(torch.bfloat16)


def another_layer(model):
    model.model.layers[0] = copy.deepcopy(model.model.layers[0])
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(2)


@pytest.mark.parametrize("change", [through_data, to_bfloat16, another_layer])
def test_texts_before_a_change_of_the_weights_are_not_compared(model, tmp_path, change):
    report = two_texts(model, tmp_path / "a.kvt", lambda: change(model))
    assert report.verdict == UNCHECKED
    notes = [note.text for note in kvtrace.open(tmp_path / "a.kvt").notes]
    assert notes == ["steps 0 to 2: not compared, for the weights changed afterwards"]


def test_a_hook_that_came_in_between_explains_what_differs_before(model, tmp_path):
    mlp = model.model.layers[0].mlp
    report = two_texts(
        model,
        tmp_path / "a.kvt",
        lambda: mlp.register_forward_hook(lambda _module, _args, out: 2 * out),
    )
    assert report.verdict == UNCHECKED
    assert "up to step 2 the model had other hooks" in report.reason
    told = []
    check(kvtrace.open(tmp_path / "a.kvt"), on_finding=told.append)
    assert not told


def test_a_hook_that_went_explains_what_differs_afterwards_from_a_copy_that_has_it(tmp_path):
    own, path = build("tuple_cat"), tmp_path / "a.kvt"
    handle = own.blocks[0].register_forward_hook(
        lambda _module, _args, out: (out[0].roll(1, -1), out[1])
    )
    with kvtrace.record(own, path):
        for tokens in (ids(10), ids(10, seed=2)):
            through_the_cache("tuple_cat", own, tokens, 6)
            handle.remove()
    report = check(kvtrace.open(path))
    assert report.verdict == UNCHECKED
    assert "other hooks" in report.reason


def test_a_hook_that_only_looks_is_no_matter(model, tmp_path):
    mlp, seen = model.model.layers[0].mlp, []
    handle = mlp.register_forward_hook(lambda _module, _args, out: seen.append(out.shape))
    report = two_texts(model, tmp_path / "a.kvt", handle.remove)
    assert seen
    assert report.verdict == EQUAL
    assert not kvtrace.open(tmp_path / "a.kvt").notes


def test_a_bug_after_the_last_hook_has_gone_is_a_bug(model, tmp_path):
    mlp = model.model.layers[0].mlp
    handle = mlp.register_forward_hook(lambda _module, _args, out: 2 * out)
    rotary, turn = model.model.rotary_emb, model.model.rotary_emb.forward

    def restarts(x, position_ids):
        return turn(x, position_ids if x.shape[1] > 1 else position_ids * 0)

    def between():
        handle.remove()
        rotary.forward = restarts

    report = two_texts(model, tmp_path / "a.kvt", between)
    found = [(one.name, one.step) for one in report.findings if one.kind.bug and one.step > 2]
    assert found == [("POSITION-ROPE", 4)]


def test_hooks_explain_no_text_that_is_right_in_its_first_step(model, tmp_path):
    mlp, seen = model.model.layers[0].mlp, []
    handle = mlp.register_forward_hook(lambda _module, _args, out: seen.append(out.shape))
    rotary, turn = model.model.rotary_emb, model.model.rotary_emb.forward

    def restarts(x, position_ids):
        return turn(x, position_ids if x.shape[1] > 1 else position_ids * 0)

    rotary.forward = restarts
    report = two_texts(model, tmp_path / "a.kvt", handle.remove)
    assert (report.findings[0].name, report.findings[0].step) == ("POSITION-ROPE", 1)
