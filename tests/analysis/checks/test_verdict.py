"""The whole question on whole traces: healthy ones are equal, a planted fault is found first."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.checks import DIVERGED, EQUAL, UNCHECKED, at_site, check
from kvtrace.trace import RECOVERED, Ending, Note, Tensor


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("prompt", [1, 5, 30])
def test_a_healthy_trace_is_equal_within_rounding(window, prompt):
    found = check(synthetic_trace(Shape(window=window, prompt=prompt)))
    assert (found.verdict, found.findings, found.exit_code) == (EQUAL, (), 0)
    assert found.steps == 7
    assert dict(found.largest)["k"] < 1e-6


def test_without_another_lane_nothing_is_checked():
    trace = synthetic_trace()
    trace.source.meta = replace(trace.source.meta, lanes=())
    found = check(trace)
    assert (found.verdict, found.exit_code) == (UNCHECKED, 3)
    trace = synthetic_trace()
    trace.source.lane_steps.clear()
    assert check(trace).verdict == UNCHECKED


@pytest.mark.parametrize("ending", [None, Ending(RECOVERED)])
def test_a_run_that_broke_off_is_not_said_to_have_had_no_other_lane_on_purpose(ending):
    trace = synthetic_trace()
    trace.source.lane_steps.clear()
    trace.source.ending = ending
    assert check(trace).reason.endswith("it ends before its recomputed lane was computed")


def differing(trace, number, layer, tensor):
    """Say in the comparison that a tensor differs there."""
    compared = trace.source.lane_steps["recomputed", number]
    compared.max_abs[layer, tensor] = compared.reference_max[layer, tensor]


def test_the_first_divergence_is_named_at_its_step_and_layer():
    trace = synthetic_trace()
    queries = trace.source.site_tensors[3, 1, Tensor.QUERIES]
    queries *= 4
    for number in (3, 4):
        differing(trace, number, 1, Tensor.QUERIES)
    differing(trace, 3, 2, Tensor.OUTPUT)
    found = check(trace)
    first = found.findings[0]
    assert (found.verdict, found.exit_code) == (DIVERGED, 1)
    assert (first.name, first.step, first.layer, first.tensor) == ("SCALE", 3, 1, "q")
    assert "q = 4 × the recomputed q" in first.sentence
    assert first.at == "3/1/0/q"
    assert len(found.findings) == 1


def test_a_difference_without_a_signature_is_unknown_not_guessed():
    trace = synthetic_trace()
    differing(trace, 2, 0, Tensor.OUTPUT)
    first = check(trace).findings[0]
    assert (first.name, first.step, first.layer) == ("UNKNOWN", 2, 0)


def test_rows_that_were_not_kept_leave_the_difference_itself():
    trace = synthetic_trace()
    trace.source.passes.clear()
    differing(trace, 2, 0, Tensor.KEYS)
    assert check(trace).findings[0].name == "UNKNOWN"


def test_what_people_noted_is_no_divergence():
    trace = synthetic_trace()
    trace.source.notes.append(Note("finding", "a head looks up", step=1))
    assert check(trace).verdict == EQUAL
    trace.source.notes.append(Note("finding", "KV-HEADS: 8 heads instead of 2", step=0, site=1))
    found = check(trace)
    assert [(one.name, one.layer, one.evidence) for one in found.findings] == [
        ("KV-HEADS", 1, "8 heads instead of 2")
    ]
    assert found.verdict == DIVERGED


def test_thresholds_say_where_they_come_from():
    assert "float32 rounding: 2e-05" in check(synthetic_trace()).reason


def test_under_autocast_the_reason_names_the_type_that_rounds():
    trace = synthetic_trace()
    lane = replace(trace.meta.lanes[0], tolerance=2e-2, reason="bfloat16 rounding through 3 layers")
    trace.source.meta = replace(trace.meta, lanes=(lane,))
    assert "bfloat16 rounding: 2e-02" in check(trace).reason


def test_flips_of_the_best_token_are_listed_with_their_margin():
    trace = synthetic_trace()
    key = "recomputed", 4
    compared = trace.source.lane_steps[key]
    flipped = replace(compared.logits[0], best=3, lane_best=7, margin=0.25)
    trace.source.lane_steps[key] = replace(compared, logits=(flipped,))
    (flip,) = check(trace).flips
    assert (flip.step, flip.sequence, flip.margin) == (4, 0, 0.25)


def test_infinities_that_only_the_cache_has_are_named():
    trace = synthetic_trace()
    trace.source.site_tensors[3, 1, Tensor.OUTPUT][0, 2, 0, 5] = np.inf
    step = trace.step(3)
    group = replace(step.sites[0], nonfinite=(0, 1, 0))
    trace.source.steps[3] = replace(step, sites=(group,))
    first = check(trace).findings[0]
    assert (first.name, first.step, first.layer, first.head) == ("NONFINITE", 3, 1, 2)


def broken_in_both(trace):
    """NaN in the same place of both lanes."""
    trace.source.site_tensors[3, 1, Tensor.QUERIES][0, 2, 0, 5] = np.nan
    place = trace.compared(3).passes[0][2]
    trace.source.pass_tensors["recomputed", 0, Tensor.QUERIES, 1][0, 2, place, 5] = np.nan
    step = trace.step(3)
    group = replace(step.sites[0], nonfinite=(0, 1, 0))
    trace.source.steps[3] = replace(step, sites=(group,))
    return trace


def test_infinities_in_both_lanes_are_no_pass():
    found = check(broken_in_both(synthetic_trace()))
    first = found.findings[0]
    assert (found.verdict, first.name, first.step, first.layer) == (DIVERGED, "NONFINITE", 3, 1)
    assert "the model itself" in first.evidence
    assert first.apart is None


def test_logits_that_are_not_finite_are_no_pass():
    trace = synthetic_trace()
    step = trace.step(2)
    top = replace(step.top[0], logits=(float("nan"), 1.0))
    trace.source.steps[2] = replace(step, top=(top,))
    found = check(trace)
    assert [(one.name, one.step, one.tensor) for one in found.findings] == [
        ("NONFINITE", 2, "logits")
    ]
    assert found.verdict == DIVERGED


def test_an_equal_beginning_of_a_cut_trace_is_no_pass():
    trace = synthetic_trace()
    trace.source.ending = None
    found = check(trace)
    assert (found.verdict, found.exit_code) == (UNCHECKED, 3)
    assert "7 of 7 steps were compared and are equal" in found.reason
    differing(trace, 2, 0, Tensor.OUTPUT)
    assert check(trace).verdict == DIVERGED


def test_a_step_that_was_not_compared_is_no_pass():
    trace = synthetic_trace()
    del trace.source.lane_steps["recomputed", 4]
    found = check(trace)
    assert found.verdict == UNCHECKED
    assert "6 of 7 steps" in found.reason
    assert "step 4" in found.reason


def test_a_single_step_has_read_nothing_from_a_cache():
    found = check(synthetic_trace(Shape(decode=0)))
    assert found.verdict == UNCHECKED
    assert "one step" in found.reason


def test_findings_are_told_when_they_are_found():
    trace = synthetic_trace()
    differing(trace, 2, 0, Tensor.OUTPUT)
    read, told = [], []
    original = trace.source.lane_step
    trace.source.lane_step = lambda lane, step: read.append(step) or original(lane, step)
    check(trace, on_finding=lambda one: told.append((one.step, max(read))))
    assert told == [(2, 2)]


def test_a_finding_says_how_far_what_is_rounding_and_where_in_the_code():
    trace = synthetic_trace()
    differing(trace, 2, 1, Tensor.OUTPUT)
    site = replace(trace.meta.sites[1], code="model.py:7")
    sites = (trace.meta.sites[0], site, trace.meta.sites[2])
    trace.source.meta = replace(trace.meta, sites=sites)
    first = check(trace).findings[0]
    assert first.apart == pytest.approx(1.0)
    assert first.limit == pytest.approx(4e-5)
    assert first.code == "model.layers.1.self_attn, model.py:7"


def test_a_divergence_past_the_window_says_so():
    trace = synthetic_trace(Shape(window=8, prompt=5, decode=6))
    differing(trace, 4, 0, Tensor.OUTPUT)
    since = check(trace).findings[0].since
    assert since == (
        "it begins when the sequence has 9 tokens, more than the window of 8 for the first time; "
        "the 3 decode steps before are right"
    )


def test_a_divergence_in_the_first_decode_step_is_no_matter_of_length():
    trace = synthetic_trace()
    differing(trace, 1, 0, Tensor.OUTPUT)
    assert check(trace).findings[0].since == ""


def test_what_the_recorder_could_not_explain_is_a_caveat():
    trace = synthetic_trace()
    step = trace.step(3)
    group = step.sites[0]
    wrong = replace(group, check_error=(0.0, 0.5, 0.0), check_scale=(1.0, 1.0, 1.0))
    trace.source.steps[3] = replace(step, sites=(wrong,))
    found = check(trace)
    assert found.verdict == EQUAL
    assert "model.layers.1.self_attn does not explain its output" in found.caveats[0]


def with_logits(trace, number, top, apart):
    """The highest logit of a step, and how far the lanes' logits are apart."""
    step = trace.step(number)
    trace.source.steps[number] = replace(step, top=(replace(step.top[0], logits=(top, top - 1)),))
    compared = trace.compared(number)
    pair = (replace(compared.logits[0], max_abs=apart),)
    trace.source.lane_steps["recomputed", number] = replace(compared, logits=pair)


def test_logits_that_differ_behind_equal_attention_are_upstream():
    trace = synthetic_trace()
    with_logits(trace, 3, 10.0, 0.5)
    found = check(trace)
    first = found.findings[0]
    assert (found.verdict, first.name, first.step, first.tensor) == (
        DIVERGED, "UPSTREAM", 3, "logits",
    )  # fmt: skip
    trace.source.meta = replace(trace.meta, model=replace(trace.meta.model, dtype="bfloat16"))
    assert check(trace).verdict == EQUAL


def test_what_the_recorder_could_not_compare_is_no_divergence():
    trace = synthetic_trace()
    for text in (
        "UNKNOWN: a.b did not attend without a cache; recomputed lane not compared there",
        "KV-HEADS: a.b has 2 heads; referee lane not compared there",
    ):
        trace.source.notes.append(Note("finding", text, site=1))
    referee = replace(trace.meta.lanes[0], name="referee")
    trace.source.meta = replace(trace.meta, lanes=(trace.meta.lanes[0], referee))
    assert check(trace).findings == ()


def test_a_site_that_was_never_compared_needs_equal_logits_to_pass():
    trace = synthetic_trace()
    for number in trace.numbers:
        trace.compared(number).max_abs[1] = np.nan
    found = check(trace)
    assert found.verdict == EQUAL
    assert "not compared: model.layers.1.self_attn" in found.caveats
    compared = trace.compared(2)
    trace.source.lane_steps["recomputed", 2] = replace(compared, logits=())
    found = check(trace)
    assert found.verdict == UNCHECKED
    assert "model.layers.1.self_attn could not be compared" in found.reason


def test_logits_that_differ_where_no_attention_was_compared_are_not_said_to_be_all_that_does():
    trace = synthetic_trace()
    with_logits(trace, 3, 10.0, 0.5)
    trace.compared(3).max_abs[:] = np.nan
    (found,) = check(trace).findings
    assert (found.name, found.step, found.tensor) == ("UNKNOWN", 3, "logits")
    assert found.evidence.endswith("no attention of this step could be compared")


def test_a_signature_that_stumbles_hides_no_difference(monkeypatch):
    def stumble(scene):
        raise IndexError("a shape nobody thought of")

    monkeypatch.setattr(at_site, "diagnose", stumble)
    trace = synthetic_trace()
    differing(trace, 2, 0, Tensor.OUTPUT)
    found = check(trace)
    assert [(one.name, one.step) for one in found.findings] == [("UNKNOWN", 2)]
