"""However a model generates, the trace holds its caches bit for bit, and the lanes agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import kvtrace
from builders.device import DEVICE
from builders.recorded import (
    Witness,
    assert_attention_explains_itself,
    assert_caches_agree,
    caches_disagree,
    record,
)
from builders.tiny_models import tiny_model
from builders.ways import IDS, WAYS, assisted, generate, padded, ready
from kvtrace.analysis.checks import EQUAL, UNCHECKED, check

EVERYWHERE = [
    "beams of a padded batch",
    "assisted",
    "prompt lookup",
    "left padding, static",
    "left padding, no cache",
    "two texts at once",
    "static beams",
    "contrastive",
    "rolled back",
]
CASES = [("llama", way) for way in WAYS]
CASES += [(name, way) for name in ("mistral", "deepseek_v3", "gemma3n_text") for way in EVERYWHERE]
CASES += [("deepseek_v3", "early exit"), ("bloom", "assisted"), ("bloom", "beams")]
CASES += [("dots3_note", "left padding")]


def recorded(model, run, path):
    """The trace of a run that gives what it gives unwatched."""

    def seeded():
        torch.manual_seed(0)
        return run()

    expected = seeded()
    trace, held, result = record(model, seeded, path, recompute="once")
    assert torch.equal(result, expected)
    compared, wrong = caches_disagree(trace, held)
    assert not wrong, wrong[0]
    return trace, compared


def assert_lanes_agree(trace):
    limit = trace.meta.lane("recomputed").tolerance
    for number in trace.numbers:
        found = trace.compared(number)
        assert found is not None, number
        there = ~np.isnan(found.max_abs)
        assert there.any()
        assert (found.relative[there] <= limit).all(), number


@pytest.mark.parametrize(("model_type", "way"), CASES)
def test_caches_lanes_and_attention_are_right(model_type, way, tmp_path):
    model = ready(tiny_model(model_type))
    trace, compared = recorded(model, WAYS[way](model), tmp_path / "a.kvt")
    assert compared or "no cache" in way
    assert_attention_explains_itself(trace)
    assert_lanes_agree(trace)
    assert trace.meta.unseen == ()
    assert not [note for note in trace.notes if note.kind == "finding"]
    verdict = check(trace).verdict
    assert verdict.startswith(EQUAL if compared else UNCHECKED), verdict


def test_only_the_model_that_checks_an_assistants_drafts_is_recorded(tmp_path):
    model = ready(tiny_model("llama"))
    trace, _ = recorded(model, assisted(model), tmp_path / "a.kvt")
    assert len(trace.meta.sites) == len(model.model.layers)
    assert trace.step(0).new == 13  # the prompt and the first draft
    assert any("LlamaForCausalLM" in text for text in trace.meta.not_recorded)


def test_rejected_drafts_are_cropped_off_and_accepted_ones_stay(tmp_path):
    model = ready(tiny_model("llama"))
    ids = model.generate(IDS, do_sample=False, max_new_tokens=12)[0].tolist()
    trace, _ = recorded(model, assisted(model), tmp_path / "a.kvt")
    end = 0
    rejected = 0
    for step in trace:
        start = step.positions[0][0]
        rejected += end - start
        assert all(event.kind == "crop" for event in step.events)
        taken = [event.lengths_before[0] - event.lengths_after[0] for event in step.events]
        assert sum(taken) == end - start
        end = step.positions[0][-1] + 1
        # what stays is what plain greedy decoding says
        after = trace.step(step.number + 1).positions[0][0] if step.number + 1 < len(trace) else 0
        stays = max(after - start, 0)
        assert list(step.tokens[0][:stays]) == ids[start : start + stays]
    assert rejected > 0


def test_drafts_of_the_first_layers_have_few_sites_and_are_said(tmp_path):
    model = ready(tiny_model("llama"))
    trace, _ = recorded(model, WAYS["early exit"](model), tmp_path / "a.kvt")
    seen = {sum(len(group.sites) for group in step.sites) for step in trace}
    assert seen == {2, 4}
    assert check(trace).verdict.startswith(EQUAL)
    compared = {
        len(step.sites[0].sites): bool(trace.compared(step.number).logits) for step in trace
    }
    assert compared == {2: False, 4: True}
    assert any("first layers" in text for text in trace.meta.not_recorded)


def test_an_end_at_once_is_one_step(tmp_path):
    model = ready(tiny_model("llama"))
    first = int(model.generate(IDS, do_sample=False, max_new_tokens=1)[0, -1])
    trace, compared = recorded(model, generate(model, eos_token_id=first), tmp_path / "a.kvt")
    assert (len(trace), compared) == (1, model.config.num_hidden_layers)
    assert trace.ending.reason == "eos"
    assert trace.step(0).chosen == (first,)


@pytest.mark.parametrize(("model_type", "beams"), [("llama", 1), ("llama", 3), ("gpt2", 1)])
def test_rows_that_went_in_without_ids_go_into_the_other_lane_too(model_type, beams, tmp_path):
    model = ready(tiny_model(model_type))
    rows = model.get_input_embeddings()(IDS).detach() + 0.01

    def run():
        options = {"do_sample": False, "max_new_tokens": 4, "num_beams": beams}
        return model.generate(inputs_embeds=rows, **options)

    trace, compared = recorded(model, run, tmp_path / "a.kvt")
    assert compared == 16 * beams
    assert trace.step(0).tokens == ((-1,) * 12,) * beams
    assert [step.phase for step in trace] == ["prefill", "decode", "decode", "decode"]
    assert trace.ending.text == "generate made 4 new tokens"
    assert_lanes_agree(trace)


@pytest.mark.parametrize("mode", ["once", "each"])
def test_two_texts_of_rows_are_told_apart_by_the_rows_alone(tmp_path, mode):
    model = ready(tiny_model("llama"))
    rows = model.get_input_embeddings()(IDS).detach()
    with kvtrace.record(model, tmp_path / "a.kvt", recompute=mode):
        for given in (rows, rows + 1):
            model.generate(inputs_embeds=given, do_sample=False, max_new_tokens=3)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.steps) == (EQUAL, 6)


@pytest.mark.parametrize("mode", ["once", "each"])
def test_rows_before_ids_are_not_compared_where_no_table_of_the_ids_is_told(tmp_path, mode):
    model = ready(tiny_model("llama"))
    rows = model.get_input_embeddings()(IDS).detach() + 0.01

    def no_table():
        raise NotImplementedError("override it")

    model.get_input_embeddings = no_table
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute=mode):
        cache = model(inputs_embeds=rows).past_key_values
        model(IDS[:, :1], past_key_values=cache)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings) == (UNCHECKED, ())
    assert "in which table ids are looked up" in report.reason


@pytest.mark.parametrize("mode", ["once", "each"])
def test_rows_that_a_model_adds_its_positions_to_in_place_are_given_again_as_they_were(
    tmp_path, mode
):
    model = ready(tiny_model("git"))
    rows = model.get_input_embeddings()(IDS).detach()
    with kvtrace.record(model, tmp_path / "a.kvt", recompute=mode):
        model.generate(inputs_embeds=rows, do_sample=False, max_new_tokens=3)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.steps) == (EQUAL, 3), report.findings


def test_a_full_context_ends_the_run_and_keeps_the_steps(tmp_path):
    model = ready(tiny_model("gpt2"))
    room = model.config.n_positions
    path = tmp_path / "a.kvt"

    def run():
        out = model(IDS.new_full((1, room - 1), 5))
        for _ in range(2):
            out = model(IDS.new_tensor([[5]]), past_key_values=out.past_key_values)

    witness = Witness()
    handles = witness.watch(model)
    with pytest.raises(IndexError), kvtrace.record(model, path, recompute="off"):
        run()
    for handle in handles:
        handle.remove()
    trace = kvtrace.open(path)
    assert len(trace) == 2
    assert_caches_agree(trace, witness.held)
    assert trace.step(1).positions == ((room - 1,),)
    assert trace.ending.reason == "error"


def test_a_cache_filled_before_goes_on_from_tokens_that_were_not_recorded(tmp_path):
    model = ready(tiny_model("llama"))
    prefix = DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS[:, :6], past_key_values=prefix)
    run = generate(model, past_key_values=prefix, max_new_tokens=3)
    trace, held, _ = record(model, run, tmp_path / "a.kvt", recompute="once")
    assert_caches_agree(trace, held)
    before = [{group.length_before for group in step.caches} for step in trace]
    assert before == [{6}, {12}, {13}]
    # without the prefix other rows come out: that is no fault of the cache
    assert trace.compared(0) is None
    said = [note.text for note in trace.notes]
    why = "its first step goes on from 6 rows that no recorded step wrote"
    assert any(one.startswith(f"not recomputed: {why}") for one in said)


@pytest.mark.parametrize("mode", ["once", "each"])
@pytest.mark.parametrize(
    ("name", "chunk", "kind"),
    [
        ("gemma3_text", 4, "dynamic"),
        ("gpt2", 3, "dynamic"),
        ("bloom", 2, "dynamic"),
        ("gemma3_text", 4, "static"),
        ("gptj", 3, "static"),
        ("llama", 1, "static"),
        ("marian", 1, "static"),
        ("gemma3_text", 1, "static"),
    ],
)
def test_a_first_chunk_may_be_padding_alone(tmp_path, name, chunk, kind, mode):
    model = ready(tiny_model(name))
    ids = torch.arange(5, 31, device=DEVICE).reshape(2, 13)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    asked = {"attention_mask": mask, "prefill_chunk_size": chunk, "do_sample": False}
    with kvtrace.record(model, tmp_path / "a.kvt", recompute=mode):
        model.generate(ids, max_new_tokens=4, cache_implementation=kind, **asked)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.step(0).positions[1] == tuple(range(-chunk, 0))
    report = check(trace)
    assert (report.verdict, report.findings) == (EQUAL, ()), report.findings


def test_a_mask_as_wide_as_the_buffer_moves_no_position(tmp_path):
    model = ready(tiny_model("bloom"))  # it is told who is hidden for all that its cache can hold
    run = padded(model, cache_implementation="static")
    trace, compared = recorded(model, run, tmp_path / "a.kvt")
    assert compared
    assert trace.step(0).positions == (tuple(range(-4, 8)), tuple(range(12)))
    assert [step.positions for step in list(trace)[1:]] == [((8 + n,), (12 + n,)) for n in range(4)]
    assert_lanes_agree(trace)
    assert check(trace).ok


def test_a_text_beside_the_prompt_is_decoded_too_once_the_prompt_was_taken_in(tmp_path):
    model = ready(tiny_model("llama"))
    trace, _ = recorded(
        model, generate(model, guidance_scale=1.5, max_new_tokens=4), tmp_path / "a"
    )
    # the prompt, its last token alone, and from then on a token of each
    phases = [trace.step(number).phase for number in trace.numbers]
    assert phases == ["prefill", "prefill", *["decode"] * 6]
