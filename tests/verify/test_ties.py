"""Choices that rounding decides are named, and nothing is blamed for what follows from them."""

import re

import pytest
import torch
from torch import topk
from torch import topk as best_of
from transformers import AutoModelForCausalLM

from builders.routed import SELECTIONS, by_topk, late_in_second_layer, routed, sparse
from builders.tiny_models import tiny_config, tiny_model
from kvtrace.verify.api import check

PROMPT = [5, 6, 7, 8, 9, 10]
NAMES = ("topk", "sort", "argsort", "argmax", "max")


def ties(report):
    return [one for one in report.findings if one.name == "TIE"]


@pytest.mark.parametrize("select", SELECTIONS)
def test_a_router_that_flips_within_rounding_is_named_and_no_cache_is_blamed(select):
    report = check(routed(select=select), PROMPT, new_tokens=4, ways=())
    assert report.ok, str(report)
    (found,) = ties(report)
    assert (found.step, found.layer) == (1, 0)  # the first step of a single row
    assert "model.layers.0.mlp" in found.evidence
    assert "position 6" in found.evidence
    assert "and 2 times more" in found.evidence  # of 4 tokens, the last one is never fed


@pytest.mark.parametrize("name", ["topk", "best_of"])
def test_a_selection_that_was_imported_by_name_is_seen_and_given_back(name):
    def select(scores):
        best = globals()[name](scores, 1, dim=-1)
        return torch.zeros_like(scores).scatter(-1, best.indices, best.values.sigmoid())

    report = check(routed(select=select), PROMPT, new_tokens=2, ways=())
    assert report.ok, str(report)
    assert len(ties(report)) == 1
    assert topk is best_of is torch.topk


def test_the_order_of_the_same_options_is_nothing_to_tell_and_the_other_lane_is_held_to_it():
    def first_of_two(scores):
        order = scores.topk(2, dim=-1).indices
        return torch.nn.functional.one_hot(order[..., 0], scores.shape[-1]).to(scores.dtype)

    report = check(routed(select=first_of_two), PROMPT, new_tokens=4, ways=())
    assert report.ok, str(report)
    assert not report.findings


def test_what_reaches_the_last_score_picked_is_picked_in_either_order():
    def reaching(scores):
        return (scores >= scores.topk(2, dim=-1).values[..., -1:]).to(scores.dtype)

    report = check(routed(select=reaching), PROMPT, new_tokens=4, ways=())
    assert report.ok, str(report)


def test_what_was_picked_and_how_close_it_was_is_said():
    report = check(routed(), PROMPT, new_tokens=2, ways=())
    (found,) = ties(report)
    assert "picked option 0 of 4 with the cache and option 1 without it" in found.evidence
    assert "the scores are 1.9e-05 apart, and rounding explains 0.0004" in found.evidence
    assert found.code == "model.layers.0.mlp"
    said = " ".join(str(report).split())
    assert "two choices are equal within rounding (TIE) at step 1, layer 0 in prefill" in said
    assert "rounding, not the cache" in said


def test_a_router_that_flips_by_more_than_rounding_is_no_tie():
    report = check(routed(tilt=0.05), PROMPT, new_tokens=4, ways=())
    assert not report.ok
    assert not ties(report)
    first = report.findings[0]
    assert (first.name, first.step, first.layer) == ("UPSTREAM", 1, 1)


def test_a_bug_behind_a_router_that_ties_is_found_by_its_name():
    model = late_in_second_layer(routed())
    report = check(model, PROMPT, new_tokens=4, ways=())
    assert [one.name for one in report.findings] == ["TIE", "POSITION-ROPE"]
    assert (report.findings[1].step, report.findings[1].layer) == (1, 1)
    assert str(report).startswith("diverged: queries are rotated to another position")


def test_padding_and_beams_do_not_keep_ties_from_being_seen():
    report = check(routed(), PROMPT, new_tokens=2, ways=("chunks", "padded", "beams"))
    assert report.ok, str(report)
    named = {one.name for one in report.trials if ties(one.report)}
    assert len(named) == len(report.trials) == 4


def test_a_lane_of_every_step_is_held_too(tmp_path):
    import kvtrace
    from kvtrace.analysis.checks import check as judge
    from kvtrace.files import open_trace
    from kvtrace.record.decode import Limits, decode

    model, path = routed(), tmp_path / "a.kvt"
    with kvtrace.record(model, path, recompute="each", keep_rows=True):
        decode(model, PROMPT, limits=Limits(3))
    report = judge(open_trace(path))
    assert report.ok, str(report)
    assert [one.name for one in report.findings] == ["TIE"]


@pytest.mark.parametrize("mask_value", [-torch.inf, -1e9])
def test_slots_that_tie_are_named_as_well(mask_value):
    report = check(sparse(mask_value=mask_value), PROMPT, new_tokens=4, ways=())
    assert report.ok, str(report)
    assert [one.layer for one in ties(report)] == [0, 1]
    assert "model.layers.0.self_attn picked option 1 of" in ties(report)[0].evidence


@pytest.mark.parametrize("mask_value", [-torch.inf, -1e9])
def test_slots_that_differ_by_more_are_not(mask_value):
    report = check(sparse(0.5, mask_value), PROMPT, new_tokens=4, ways=())
    assert not report.ok
    assert not ties(report)


def test_an_indexer_chooses_only_where_more_slots_are_visible_than_it_takes():
    config = tiny_config("deepseek_v32")
    config.index_topk = 3  # for the first tokens it is filled up with masked ones, whichever
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    report = check(model, [*PROMPT, 11, 12], new_tokens=4, ways=())
    assert report.ok, str(report)
    places = [int(re.search(r"position (\d+)", one.evidence)[1]) for one in ties(report)]
    assert places  # its scores pass a ReLU: many are exactly 0
    assert min(places) >= 3


def test_a_maximum_that_steadies_a_softmax_is_no_choice():
    # its attention subtracts the largest score of each row, and in bfloat16 many are equal
    model = tiny_model("gpt_oss", dtype=torch.bfloat16)
    report = check(model, [*PROMPT, 11, 12, 13], new_tokens=4, ways=())
    assert report.ok, str(report)
    assert not [one for one in ties(report) if "attn" in one.code]


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning")
def test_code_that_is_scripted_while_a_model_runs_still_compiles():
    def select(x: torch.Tensor) -> torch.Tensor:
        values, _ = torch.topk(x, 2, dim=-1)
        most = torch.max(x, dim=-1, keepdim=True)[0] + torch.sort(x, dim=-1)[0]
        return values.sum(-1, keepdim=True) + most + x.argmax(-1, keepdim=True)

    def scripted(scores):
        return torch.jit.script(select)(scores)

    report = check(routed(select=scripted), PROMPT, new_tokens=2, ways=())
    assert "could not check" not in str(report)
    assert torch.jit.script(select)(torch.eye(3)).shape == (3, 3)


def test_functions_are_torchs_own_again_afterwards():
    def ours():
        return [vars(owner).get(name) for owner in (torch, torch.Tensor) for name in NAMES]

    before = ours()
    check(routed(select=by_topk), PROMPT, new_tokens=2, ways=())
    assert ours() == before
