"""Other lanes of real, tiny models against what was recorded of them."""

import numpy as np
import pytest
import torch

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import check
from kvtrace.files import open_trace
from kvtrace.record.lanes.compared import tolerance
from kvtrace.trace import Tensor


def recorded(model, path, ids, *, options=None, **generate):
    generate = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, **generate}
    with kvtrace.record(model, path, **(options or {})):
        model.generate(ids, pad_token_id=0, **generate)
    return open_trace(path)


def ids(sequences=1, tokens=9, seed=0):
    return torch.randint(3, 90, (sequences, tokens), generator=torch.Generator().manual_seed(seed))


def within(trace, lane="recomputed"):
    """Every comparison is there, and is rounding."""
    limit = trace.meta.lane(lane).tolerance
    compared = 0
    for number in trace.numbers:
        found = trace.compared(number, lane)
        assert found is not None
        assert not (found.beyond > 0).any()
        there = ~np.isnan(found.max_abs)
        assert (found.relative[there] <= limit).all()
        compared += int(there.sum())
        assert len(found.logits) == trace.step(number).num_sequences
    assert compared
    return compared


@pytest.mark.parametrize(
    "model_type", ["gpt2", "llama", "mistral", "gemma2", "deepseek_v3", "gemma3n_text", "mixtral"]
)
def test_a_healthy_model_differs_by_rounding(tmp_path, model_type):
    within(recorded(tiny_model(model_type), tmp_path / "a.kvt", ids()))


def test_every_tensor_and_head_of_every_step_is_compared(tmp_path):
    trace = recorded(tiny_model("llama"), tmp_path / "a.kvt", ids())
    sites = trace.meta.sites
    heads = sum(site.heads(tensor) for site in sites for tensor in Tensor)
    assert within(trace) == heads * len(trace)


def test_left_padding_is_not_compared_but_all_else_is(tmp_path):
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    model = tiny_model("llama")
    within(recorded(model, tmp_path / "a.kvt", ids(2), attention_mask=mask))


def test_beams_are_compared_along_their_own_tokens(tmp_path):
    within(recorded(tiny_model("gpt2"), tmp_path / "a.kvt", ids(), num_beams=3))


def test_a_cache_that_spoils_old_keys_is_beyond_tolerance_from_then_on(tmp_path, monkeypatch):
    from transformers.cache_utils import DynamicLayer

    plain = DynamicLayer.update

    def spoiled(self, keys, values, *rest, **named):
        out = plain(self, keys, values, *rest, **named)
        return (out[0] * 1.5, out[1]) if keys.shape[2] == 1 else out

    monkeypatch.setattr(DynamicLayer, "update", spoiled)
    trace = recorded(tiny_model("llama"), tmp_path / "a.kvt", ids())
    assert not (trace.compared(0).beyond > 0).any()
    found = trace.compared(1)
    assert found.beyond[0, Tensor.OUTPUT].sum() > 0
    assert found.beyond[0, Tensor.QUERIES].sum() == 0


def test_the_referee_is_one_precision_up_and_leaves_the_model_as_it_was(tmp_path):
    model = tiny_model("llama", dtype=torch.bfloat16)
    before = {name: (id(one), one.clone()) for name, one in model.named_parameters()}
    trace = recorded(model, tmp_path / "a.kvt", ids(), options={"referee": True})
    assert trace.meta.lane("referee").dtype == "float32"
    within(trace, "referee")
    for name, one in model.named_parameters():
        assert id(one) == before[name][0]
        assert torch.equal(one, before[name][1])
    assert not any(module._forward_hooks for module in model.modules())


def test_a_float32_model_is_judged_in_float64(tmp_path):
    trace = recorded(tiny_model("gpt2"), tmp_path / "a.kvt", ids(), options={"referee": True})
    assert trace.meta.lane("referee").dtype == "float64"
    within(trace, "referee")


def test_each_step_has_a_pass_and_its_time(tmp_path):
    options = {"recompute": "each"}
    trace = recorded(tiny_model("llama"), tmp_path / "a.kvt", ids(), options=options)
    within(trace)
    assert all(trace.compared(number).elapsed_ns > 0 for number in trace.numbers)
    assert len(trace) == 5


def test_a_step_is_told_before_the_pass_beside_it_which_may_take_long(tmp_path):
    model, passes, told = tiny_model("llama"), [], []
    model.register_forward_hook(lambda *_: passes.append(None))
    options = {"recompute": "each", "on_step": lambda step: told.append((step.number, len(passes)))}
    recorded(model, tmp_path / "a.kvt", ids(), options=options, max_new_tokens=2, min_new_tokens=2)
    (_, own), (_, both), (_, next_own), (_, next_both) = told
    assert [number for number, _ in told] == [0, 0, 1, 1]
    assert 1 == own < both == next_own - 1 < next_both - 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_looks_ahead_is_found(tmp_path, dtype):
    model = tiny_model("llama", attn_implementation="eager", dtype=getattr(torch, dtype))
    norm = model.model.layers[0].input_layernorm
    norm.register_forward_hook(lambda _, args, out: out + 0.5 * out.mean(dim=1, keepdim=True))
    options = {"recompute": "each"}
    trace = recorded(model, tmp_path / "a.kvt", ids(), options=options)
    assert any(note.kind == "finding" and "NOT-CAUSAL" in note.text for note in trace.notes)
    assert "NOT-CAUSAL" in {one.name for one in check(trace).findings}


def test_rounding_in_a_narrow_type_in_longer_texts_is_no_look_ahead(tmp_path, monkeypatch):
    monkeypatch.setitem(tolerance._HELD, "bfloat16", 1e-9)  # anything that moves is too much
    model = tiny_model("gpt2", dtype=torch.bfloat16)
    prompt, options = ids(tokens=13), {"recompute": "each"}
    trace = recorded(model, tmp_path / "a.kvt", prompt, options=options)
    assert not [note.text for note in trace.notes if "NOT-CAUSAL" in note.text]


def test_rounding_inside_a_wider_lane_is_no_look_ahead(tmp_path):
    model = tiny_model("llama", attn_implementation="eager")  # its softmax is float32 everywhere
    norm = model.model.layers[1].input_layernorm
    halved = norm.register_forward_hook(lambda _, args, out: out / (2 - (out.shape[1] > 1)))
    trace = recorded(model, tmp_path / "a.kvt", ids(), options={"referee": True})
    halved.remove()
    assert [one.name for one in check(trace).findings] == ["UPSTREAM"]


def test_recording_without_lanes_compares_nothing(tmp_path):
    options = {"recompute": "off"}
    trace = recorded(tiny_model("llama"), tmp_path / "a.kvt", ids(), options=options)
    assert trace.meta.lanes == ()
    assert trace.compared(0) is None


@pytest.mark.parametrize(("dtype", "beams"), [("float32", 1), ("bfloat16", 1), ("float32", 3)])
def test_a_model_that_looks_ahead_is_found_in_one_pass_too(tmp_path, dtype, beams):
    model = tiny_model("llama", attn_implementation="eager", dtype=getattr(torch, dtype))
    norm = model.model.layers[1].input_layernorm
    norm.register_forward_hook(lambda _, args, out: out + 0.5 * out.mean(dim=1, keepdim=True))
    options = {"referee": True}
    trace = recorded(model, tmp_path / "a.kvt", ids(), options=options, num_beams=beams)
    first = check(trace).findings[0]
    assert (first.name, trace.site(first.layer).layer) == ("NOT-CAUSAL", 1)


def test_a_scale_that_depends_on_the_length_is_no_look_ahead(tmp_path):
    model = tiny_model("llama")

    def rescale(module, args, given):
        past = given.get("past_key_values")
        seq = given["hidden_states"].shape[1] + (past.get_seq_length(0) if past is not None else 0)
        module.scaling = seq**-0.5

    model.model.layers[0].self_attn.register_forward_pre_hook(rescale, with_kwargs=True)
    trace = recorded(model, tmp_path / "a.kvt", ids(), options={"referee": True})
    assert check(trace).findings[0].name == "SCALE"


def test_a_cache_that_loses_rows_does_not_make_a_model_look_ahead(tmp_path):
    model = tiny_model("moshi")  # keeps a window of 8 in its cache alone
    trace = recorded(model, tmp_path / "a.kvt", ids(), options={"referee": True})
    assert [one.name for one in check(trace).findings] == ["EVICTED-EARLY"]


def fed_again(model, path):
    tokens = ids()
    with torch.no_grad(), kvtrace.record(model, path):
        for _ in range(4):
            chosen = model(tokens).logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, chosen], dim=1)
    return check(open_trace(path))


def test_a_model_that_hands_no_cache_back_is_no_divergence(tmp_path):
    report = fed_again(tiny_model("xlm"), tmp_path / "a.kvt")
    assert not report.findings
    assert "no KV cache was at work in XLMWithLMHeadModel" in report.reason


def test_a_cache_that_is_handed_back_and_not_used_is_found(tmp_path):
    report = fed_again(tiny_model("gpt2"), tmp_path / "a.kvt")
    assert [one.name for one in report.findings] == ["CACHE-NOT-USED"]


def test_a_cache_that_no_text_of_several_uses_is_found(tmp_path):
    model = tiny_model("gpt2")
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        for seed in range(2):
            tokens = ids(seed=seed)
            for _ in range(4):
                chosen = model(tokens).logits[:, -1:].argmax(-1)
                tokens = torch.cat([tokens, chosen], dim=1)
    report = check(open_trace(tmp_path / "a.kvt"))
    assert [one.name for one in report.findings] == ["CACHE-NOT-USED"]
    assert report.findings[0].evidence == "6 steps fed all tokens again, the longest one 12"


def test_texts_that_are_scored_with_what_they_begin_with_need_no_cache(tmp_path):
    with torch.no_grad(), kvtrace.record(model := tiny_model("gpt2"), tmp_path / "a.kvt"):
        for seed in range(3):
            for tokens in (6, 10):
                model(ids(seed=seed, tokens=10)[:, :tokens])
    report = check(open_trace(tmp_path / "a.kvt"))
    assert not report.findings
    assert report.reason == (
        "no step of GPT2LMHeadModel goes on with what one before it cached: each computes all rows"
    )


def test_a_state_that_a_chunk_forgets_is_named_before_what_it_changes(tmp_path):
    model, cache = tiny_model("jamba"), None
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        for chunk in ids(tokens=12).split(6, dim=1):
            cache = model(chunk, past_key_values=cache, use_cache=True).past_key_values
    (found,) = check(open_trace(tmp_path / "a.kvt")).findings
    assert found.name == "UPSTREAM"
    assert "layer 0 before it keeps a recurrent state, of which only the size" in found.evidence
