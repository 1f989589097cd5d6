"""Modules that may ask for their attention, and may calculate it themselves."""

import pytest
import torch
from torch import nn

from builders.recorded import assert_attention_explains_itself, assert_caches_agree, record
from builders.tiny_models import tiny_config, tiny_model
from builders.ways import generate, ready

SLOWER = "the data flow was followed: milliseconds include the time this took"


def gpt2(**settings):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = tiny_config("gpt2").to_dict() | settings
    torch.manual_seed(0)
    config = GPT2Config(**sizes)
    return ready(GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval())


def seen(model, folder):
    expected = generate(model)()
    trace, held, found = record(model, generate(model), folder / "a.kvt")
    assert torch.equal(found, expected)
    assert trace.meta.unseen == ()
    assert_caches_agree(trace, held)
    assert_attention_explains_itself(trace)
    return trace


@pytest.mark.parametrize(("upcast", "level"), [(True, 3), (False, 1)])
def test_gpt2_is_seen_whether_or_not_it_reorders_and_upcasts(upcast, level, tmp_path):
    trace = seen(gpt2(reorder_and_upcast_attn=upcast), tmp_path)
    assert [(site.level, site.layer) for site in trace.meta.sites] == [(level, n) for n in range(4)]
    assert all(len(step.sites[0].sites) == 4 for step in trace)
    assert (SLOWER in trace.meta.not_recorded) is upcast


def by_hand(kind):
    """A subclass of an attention of transformers that calculates its attention itself."""

    class Attention(kind):
        def forward(self, hidden_states, position_embeddings, past_key_values=None, **_):
            from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

            shape = (*hidden_states.shape[:-1], -1, self.head_dim)
            q, k, v = (
                part(hidden_states).view(shape).transpose(1, 2)
                for part in (self.q_proj, self.k_proj, self.v_proj)
            )
            q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
            k, v = past_key_values.update(k, v, self.layer_idx)
            k, v = (repeat_kv(rows, self.num_key_value_groups) for rows in (k, v))
            scores = q @ k.mT * self.scaling
            new, seq = scores.shape[-2:]
            later = torch.ones(new, seq, dtype=torch.bool).triu(seq - new + 1)
            weights = scores.masked_fill(later, float("-inf")).softmax(-1)
            out = (weights @ v).transpose(1, 2).reshape(*hidden_states.shape[:-1], -1)
            return self.o_proj(out), weights

    return Attention


class Sometimes(nn.Module):
    """Mixed in: asks for the attention of a prompt, and calculates that of single tokens."""

    def forward(self, hidden_states, **given):
        if hidden_states.shape[1] > 1:
            return super().forward(hidden_states, **given)
        return self.alone(hidden_states, **given)


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (1, 2)])
def test_a_subclass_that_calculates_its_attention_itself_is_seen(layers, tmp_path):
    model = ready(tiny_model("llama"))
    for number in layers:
        attention = model.model.layers[number].self_attn
        attention.__class__ = by_hand(type(attention))
    trace = seen(model, tmp_path)
    found = {site.layer: site.level for site in trace.meta.sites}
    assert found == {n: 3 if n in layers else 1 for n in range(4)}


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (1, 2)])
def test_attention_that_was_put_into_a_module_is_seen(layers, tmp_path):
    model = ready(tiny_model("llama"))
    for number in layers:
        attention = model.model.layers[number].self_attn
        attention.forward = by_hand(type(attention)).forward.__get__(attention)
    trace = seen(model, tmp_path)
    found = {site.layer: site.level for site in trace.meta.sites}
    assert found == {n: 3 if n in layers else 1 for n in range(4)}


def test_a_module_whose_own_forward_is_only_wrapped_still_asks(tmp_path):
    model = ready(tiny_model("llama"))
    for layer in model.model.layers:

        def counted(*given, original=layer.self_attn.forward, **more):
            return original(*given, **more)

        layer.self_attn.forward = counted
    trace = seen(model, tmp_path)
    assert [site.level for site in trace.meta.sites] == [1] * 4
    assert SLOWER not in trace.meta.not_recorded


def test_a_module_that_only_asks_for_the_attention_of_prompts_is_seen_whole(tmp_path):
    model = ready(tiny_model("llama"))
    for layer in model.model.layers:
        kind = type(layer.self_attn)
        mixed = type("Attention", (Sometimes, kind), {"alone": by_hand(kind).forward})
        layer.self_attn.__class__ = mixed
    trace = seen(model, tmp_path)
    assert all(len(step.sites[0].sites) == 4 for step in trace)


class Around(nn.Module):
    """Holds an attention of transformers, and calls it, or calculates what it would say.

    Args:
        original: It.
        alone: Of these numbers of tokens it is not asked.
    """

    def __init__(self, original, alone):
        super().__init__()
        self.original, self.alone = original, alone
        self._mix = by_hand(type(original)).forward

    def forward(self, hidden_states, **given):
        if hidden_states.shape[1] in self.alone:
            return self._mix(self.original, hidden_states, **given)
        return self.original(hidden_states, **given)

    def weights(self, scores):
        return scores.softmax(-1)


@pytest.mark.parametrize("alone", [range(99), (), (1,)])
def test_a_module_around_one_that_asks_is_seen_whether_or_not_it_asks_it(alone, tmp_path):
    model = ready(tiny_model("llama"))
    for layer in model.model.layers:
        layer.self_attn = Around(layer.self_attn, alone)
    trace = seen(model, tmp_path)
    assert all(len(step.sites[0].sites) == 4 for step in trace)
    paths = {site.module for site in trace.meta.sites if site.level > 1}
    assert paths == ({f"model.layers.{n}.self_attn" for n in range(4)} if alone else set())


def test_a_model_that_asked_is_watched_for_nothing_from_then_on():
    from kvtrace.record.capture.watch import Watch

    model, forwards = gpt2(reorder_and_upcast_attn=False), []
    kind = type(model.transformer.h[0].mlp)
    plain, ids = kind.forward, torch.tensor([[5, 6, 7]])
    with torch.no_grad(), Watch(model, forwards.append):
        cache = model(ids).past_key_values
        assert kind.forward is plain
        for _ in range(3):
            model(ids[:, :1], past_key_values=cache)
    assert [one.batch is not None for one in forwards] == [False, False, True, True]
