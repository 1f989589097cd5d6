import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.initialization import no_init_weights

import kvtrace
from builders.encoder_decoders import bart
from builders.tiny_models import tiny_config, tiny_model
from kvtrace.record.capture.running import passes
from kvtrace.record.capture.watch import Watch
from kvtrace.record.cost import CostMeter, Measured

aten = torch.ops.aten


def grouped(rows, matrices, *rest, out_shape=None, **kwargs):
    return 2 * rows[0] * rows[1] * matrices[-1]


def fused(q, k, v, *rest, out_shape=None, **kwargs):
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


MISSING = {
    aten._grouped_mm: grouped,
    aten._scaled_dot_product_flash_attention_for_cpu: fused,
}


def counted(run):
    with FlopCounterMode(display=False, custom_mapping=MISSING) as counter:
        result = run()
    return counter.get_total_flops(), result


def steps(model, ids, prompt, chunks=(), **options):
    """Per step, measured: FLOPs and weights of both lanes; counted by torch: FLOPs of both."""
    meter = CostMeter(model)
    measured, past = [], [0]

    def over(forward):
        meter.end(len(forward.calls))
        shape = tuple(forward.logits.shape)
        sizes = Measured(forward.calls, forward.sequences, forward.new, past[0], shape)
        measured.append((*meter.measure(sizes), *meter.weight_bytes(sizes)))
        past[0] += forward.new

    sizes = [prompt, *chunks]
    sizes += [1] * (ids.shape[1] - sum(sizes))
    with torch.no_grad():
        with Watch(model, over, on_begin=lambda _: meter.begin(lambda: passes()[-1].num_calls)):
            outputs = run(model, ids, sizes, options)
        oracle, cache, start = [], None, 0
        for new, watched in zip(sizes, outputs, strict=True):
            part = ids[:, start : start + new]
            start += new
            flops, out = counted(
                lambda p=part, c=cache: model(p, past_key_values=c, use_cache=True, **options)
            )
            cache = out.past_key_values
            assert torch.equal(out.logits, watched.logits)
            uncached, _ = counted(lambda n=start: model(ids[:, :n], use_cache=False))
            oracle.append((flops, uncached))
    assert not any(module._forward_hooks for module in model.modules())
    return measured, oracle, meter


def run(model, ids, sizes, options):
    cache, start, outputs = None, 0, []
    for new in sizes:
        out = model(ids[:, start : start + new], past_key_values=cache, use_cache=True, **options)
        cache, start = out.past_key_values, start + new
        outputs.append(out)
    return outputs


def exact(model, tokens=14, prompt=9, sequences=2, chunks=(), **options):
    torch.manual_seed(1)
    ids = torch.randint(3, 90, (sequences, tokens))
    measured, oracle, meter = steps(model, ids, prompt, chunks, **options)
    assert [cached.total for cached, *_ in measured] == [cached for cached, _ in oracle]
    bodies = [again.body + again.head_all for _, again, *_ in measured]
    assert bodies == [uncached for _, uncached in oracle]
    return measured, meter


@pytest.fixture(scope="module")
def gpt2_124m():
    with no_init_weights():
        model = GPT2LMHeadModel(GPT2Config()).eval()
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gpt2_124m_equals_torchs_counter_to_the_integer(gpt2_124m, attention):
    gpt2_124m.set_attn_implementation(attention)
    measured, meter = exact(gpt2_124m, tokens=19, prompt=16, sequences=1)
    assert meter.gaps() == ()
    cached, again, *_ = measured[-1]
    # by hand: 12 layers of 768, 12 heads of 64, at the 19th token
    assert cached.qkv == 12 * 2 * 768 * 3 * 768
    assert cached.scores == cached.mix == 12 * 2 * 12 * 19 * 64
    assert cached.output == 12 * 2 * 768 * 768
    assert cached.mlp == 12 * 2 * 2 * 768 * 3072
    assert cached.head == cached.head_last == 2 * 768 * 50257
    assert again.qkv == 19 * cached.qkv
    assert again.scores == 19 * cached.scores
    assert again.head_all == 19 * again.head_last
    assert cached.other == again.other == 0


def test_gpt2_124m_reads_every_weight_but_the_positions_not_asked_for(gpt2_124m):
    measured, _ = exact(gpt2_124m, tokens=18, prompt=16, sequences=1)
    whole = sum(parameter.nbytes for parameter in gpt2_124m.parameters())
    positions = gpt2_124m.transformer.wpe.weight
    # the token embedding is the output matrix, so all of it is read; one position is looked up
    assert measured[-1][2] == whole - positions.nbytes + positions[0].nbytes
    assert measured[-1][3] == whole - positions.nbytes + 18 * positions[0].nbytes


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "model_type",
    [
        "llama",
        "mixtral",
        "qwen2_moe",
        "deepseek_v3",
        "gemma2",
        "gpt_oss",
        "gemma3n_text",
        "hrm_text",
    ],
)
def test_other_architectures_equal_torchs_counter(model_type, attention):
    if attention == "sdpa" and model_type in ("gemma2", "gpt_oss"):
        attention = "eager"  # they have no other
    _, meter = exact(tiny_model(model_type, attn_implementation=attention))
    assert meter.gaps() == ()


@pytest.mark.parametrize("tokens", [14, 30])
def test_a_sliding_window_is_cheaper_cached_than_recomputed(tokens):
    config = MistralConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=160,
        sliding_window=8,
        attn_implementation="eager",
    )
    measured, _ = exact(MistralForCausalLM(config).eval(), tokens=tokens, prompt=9)
    cached, again, *_ = measured[-1]
    # the step attends to the window alone, a forward without cache multiplies the whole square
    assert cached.scores == 2 * 3 * 2 * 4 * 8 * 16
    assert again.scores == 2 * 3 * 2 * 4 * tokens * tokens * 16


def test_chunked_prefill_and_last_row_logits_are_counted_as_they_ran():
    model = tiny_model("llama")
    measured, _ = exact(model, chunks=(3,))
    measured_last, _ = steps(model, torch.randint(3, 90, (2, 14)), 9, (3,), logits_to_keep=1)[0::2]
    for (whole, *_), (last, again, *_) in zip(measured, measured_last, strict=True):
        assert last.head == last.head_last == whole.head_last
        assert whole.head == whole.head_all
        assert last.body == whole.body
        assert again.head == again.head_last


def test_mla_pays_for_every_row_again_at_every_step():
    measured, _ = exact(tiny_model("deepseek_v3"))
    growth = measured[-1][0].qkv - measured[-2][0].qkv
    model = tiny_model("deepseek_v3")
    expand = model.model.layers[0].self_attn.kv_b_proj
    assert growth == 2 * 2 * expand.in_features * expand.out_features * 4


def test_an_expert_mixture_reads_only_the_experts_one_token_can_wake():
    config = tiny_config("mixtral")
    model = tiny_model("mixtral")
    measured, _ = exact(model, sequences=1)
    experts = model.model.layers[0].mlp.experts
    sizes = sum(p.nbytes for p in experts.parameters()) * config.num_hidden_layers
    whole = sum(p.nbytes for p in model.parameters())
    embedding = model.get_input_embeddings().weight
    idle = sizes * (config.num_local_experts - config.num_experts_per_tok)
    idle //= config.num_local_experts
    assert measured[-1][2] == whole - idle - embedding.nbytes + embedding[0].nbytes
    assert measured[0][2] == whole - embedding.nbytes + 9 * embedding[0].nbytes


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_experts_picked_for_each_row_cost_what_they_do_in_groups(model_type, tmp_path):
    """On a GPU `generate` multiplies the prompt in groups, and single tokens with copies."""
    model = tiny_model(model_type)
    costs = []
    for then in ("grouped_mm", "batched_mm"):
        model.set_experts_implementation("grouped_mm")
        with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", force=True):
            out = model(torch.arange(3, 12)[None])
            model.set_experts_implementation(then)
            for token in (5, 6, 7):
                out = model(torch.tensor([[token]]), past_key_values=out.past_key_values)
        trace = kvtrace.open(tmp_path / "a.kvt")
        assert trace.meta.not_recorded == ()
        costs.append([trace.step(number).cost for number in trace.numbers])
    assert costs[0] == costs[1]


def test_many_tokens_without_a_cache_wake_every_expert():
    model = tiny_model("mixtral")
    measured, _ = exact(model, sequences=1)
    whole = sum(p.nbytes for p in model.parameters())
    embedding = model.get_input_embeddings().weight
    assert measured[-1][3] == whole - embedding.nbytes + 14 * embedding[0].nbytes
    assert measured[-1][3] > 1.2 * measured[-1][2]


def test_low_rank_adapters_count_with_the_layer_they_adapt():
    model = tiny_model("llama")
    plain, _ = exact(model)

    class Adapted(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.down = torch.nn.Linear(base.in_features, 4, bias=False)
            self.up = torch.nn.Linear(4, base.out_features, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    for layer in model.model.layers:
        layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj)
        layer.self_attn.o_proj = Adapted(layer.self_attn.o_proj)
    adapted, _ = exact(model)
    extra = 4 * 2 * 2 * 4 * (64 + 64)
    assert adapted[-1][0].qkv == plain[-1][0].qkv + extra
    assert adapted[-1][0].output == plain[-1][0].output + extra
    assert adapted[-1][0].mlp == plain[-1][0].mlp


def test_hooks_are_gone_after_a_forward_that_failed():
    model = tiny_model("llama")
    meter = CostMeter(model)
    meter.begin(lambda: 0)
    assert any(module._forward_hooks for module in model.modules())
    meter.drop()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("model_type", ["bamba", "minimax"])
def test_a_decode_step_of_a_recurrent_layer_costs_what_torch_counts(model_type):
    torch.manual_seed(1)
    ids = torch.randint(3, 90, (1, 13))
    measured, oracle, meter = steps(tiny_model(model_type, attn_implementation="eager"), ids, 9)
    assert [cached.total for cached, *_ in measured] == [cached for cached, _ in oracle]
    # a forward over all tokens is another matter: the scan goes in chunks
    assert any("the model" in text and "extrapolated" in text for text in meter.gaps())


class Fickle(nn.Module):
    """Multiplies its rows with each other, from the fourth call on twice."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside
        self.calls = 0

    def forward(self, rows):
        self.calls += 1
        for _ in range(1 if self.calls < 4 else 2):
            rows.mT @ rows
        return self.inside(rows)


def test_what_later_forwards_contradict_is_only_estimated():
    model = tiny_model("deepseek_v3", attn_implementation="eager")
    assert not steps(model, torch.randint(3, 90, (1, 14)), 9)[2].gaps()
    model.model.layers[0].mlp = Fickle(model.model.layers[0].mlp)
    _, _, meter = steps(model, torch.randint(3, 90, (1, 14)), 9)
    assert meter.gaps() == ("FLOPs of the model are extrapolated from single steps.",)


def test_what_is_only_estimated_is_named():
    _, _, meter = steps(tiny_model("jamba"), torch.randint(3, 90, (1, 14)), 9)
    assert any("conv1d" in gap for gap in meter.gaps())


def test_encoder_and_decoder_are_counted_apart_and_together_make_a_run():
    model = bart(attn_implementation="eager")
    ids = torch.randint(4, 90, (2, 7))
    meter, found, past = CostMeter(model), [], [0]

    def over(forward):
        meter.end(len(forward.calls))
        shape = None if forward.logits is None else tuple(forward.logits.shape)
        start = past[0] if shape else 0
        sizes = Measured(forward.calls, forward.sequences, forward.new, start, shape)
        past[0] += forward.new if shape else 0
        found.append(meter.measure(sizes))

    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": 1}
    with Watch(model, over, on_begin=lambda _: meter.begin(lambda: passes()[-1].num_calls)):
        model.generate(ids, **options)
    flops, _ = counted(lambda: model.generate(ids, **options))
    assert len(found) == 7
    assert sum(cached.total for cached, _ in found) == flops
    encoder, first, second = found[0][0], found[1][0], found[2][0]
    assert encoder.scores == 2 * 2 * 2 * 4 * 7 * 7 * 8
    # keys and values of the cross attention are made once
    assert first.qkv - second.qkv == 2 * 2 * 2 * 7 * 2 * 32 * 32
