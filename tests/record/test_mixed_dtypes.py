"""Models in 16 bits that make some of their numbers in 32."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, GPTJConfig
from transformers.cache_utils import Cache, DynamicLayer

import kvtrace
from builders.recorded import assert_attention_explains_itself
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks.verdict import check
from kvtrace.analysis.selfcheck import self_check
from kvtrace.errors import TraceError
from kvtrace.files.writer import TraceWriter

GPTJ = GPTJConfig(
    vocab_size=50, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64,
    bos_token_id=1, eos_token_id=2,
)  # fmt: skip
BLOOM = BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4)


def recorded(config, path, dtype=torch.bfloat16):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    ids = torch.randint(3, 50, (1, 9))
    with torch.no_grad(), kvtrace.record(model, path, recompute="off"):
        out = model(ids, use_cache=True)
        model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values)
    return kvtrace.open(path)


def test_queries_in_float32_over_an_output_in_bfloat16_are_both_recorded(tmp_path):
    trace = recorded(GPTJ, tmp_path / "a.kvt")
    assert len(trace) == 2
    assert {site.dtype for site in trace.meta.sites} == {"float32"}
    assert [(layer.kind, layer.dtype) for layer in trace.meta.cache_layers] == [
        ("dynamic", "bfloat16")
    ] * 2
    assert [site.source for site in trace.meta.sites] == ["cache"] * 2
    assert trace.meta.unseen == ()


def test_a_cache_of_keys_and_values_in_two_dtypes_says_so(tmp_path):
    class AsGiven(DynamicLayer):
        """Values begin in the dtype they come in, not in that of the keys."""

        def lazy_initialization(self, key_states, value_states):
            super().lazy_initialization(key_states, value_states)
            self.values = self.values.to(value_states.dtype)

    model = tiny_model("llama")
    cache = Cache(layers=[AsGiven() for _ in model.model.layers])
    recording = kvtrace.record(model, tmp_path / "a.kvt", recompute="off")
    with torch.no_grad(), recording, torch.autocast("cpu", torch.bfloat16):
        model(torch.tensor([[5, 6, 7]]), past_key_values=cache)
    layer = cache.layers[0]
    assert (layer.keys.dtype, layer.values.dtype) == (torch.float32, torch.bfloat16)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert {one.remark for one in trace.meta.cache_layers} == {
        "keys are float32 and values bfloat16 in the cache; rows of both are kept here, and "
        "counted, as float32"
    }
    view = trace.cache(0, 0)
    assert (view.values == layer.values[0].float().numpy()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_alibi_is_seen_in_every_dtype(tmp_path, dtype):
    trace = recorded(BLOOM, tmp_path / "a.kvt", dtype)
    assert trace.meta.unseen == ()
    assert len(trace.meta.sites) == 2
    bias = trace.bias(0, 0)
    slope = bias[0, -1, 1] - bias[0, -1, 0]
    assert slope == pytest.approx(0.25, abs=0.01)  # 2^(-8/4), the first of four heads
    if dtype == torch.float32:
        assert_attention_explains_itself(trace)


def test_a_step_that_the_writer_refuses_ends_the_recording_and_not_the_run(tmp_path, monkeypatch):
    def refuse(*_):
        raise TraceError("rows that don't fit")

    monkeypatch.setattr(TraceWriter, "append", refuse)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPTJ).eval()
    recording = kvtrace.record(model, tmp_path / "a.kvt", recompute="off")
    with torch.no_grad():
        recording.__enter__()
        model(torch.tensor([[3, 4, 5]]))
        again = model(torch.tensor([[3, 4, 5, 6]]))
    with pytest.warns(RuntimeWarning, match="rows that don't fit"):
        recording.stop()
    assert again.logits.shape == (1, 4, 50)


def test_what_autocast_rounds_on_the_way_is_nothing_unseen(tmp_path):
    model = tiny_model("llama")
    ids = torch.arange(5, 11)[None]
    recording = kvtrace.record(model, tmp_path / "a.kvt")
    with torch.no_grad(), recording, torch.autocast("cpu", torch.bfloat16):
        out = model(ids, use_cache=True)
        model(ids[:, :1], past_key_values=out.past_key_values)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert {site.dtype for site in trace.meta.sites} == {"float32"}
    assert self_check(trace, 1, 0).passed
    assert [said for said in check(trace).caveats if "does not explain" in said] == []
