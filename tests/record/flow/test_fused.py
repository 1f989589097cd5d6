"""Attention in one call: SDPA with all its arguments, torch's own layers, flex_attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from builders.attentions import HEADS, SLOPES, Model, hidden, token_ids, turned
from kvtrace.record.flow import FlowWatch
from kvtrace.trace.mask import Mask


def calls_of(spelling, *, tokens=6, sequences=2):
    model = Model(spelling)
    with torch.no_grad():
        plain = model(token_ids(sequences, tokens))[0]
        with FlowWatch(model, sink=(calls := []).append) as watch:
            seen = model(token_ids(sequences, tokens))[0]
    assert torch.equal(plain, seen)
    assert watch.unseen == ()
    assert len(calls) == 2
    return calls


def sdpa(**arguments):
    def spelling(q, k, v):
        q, k, v = turned(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, **arguments).transpose(1, 2)

    return spelling


def test_causal_without_a_mask():
    (call, _) = calls_of(sdpa(is_causal=True))
    assert torch.equal(call.visible[0, 0], torch.ones(6, 6, dtype=torch.bool).tril())
    assert (call.level, call.scale) == (2, pytest.approx(8**-0.5))


def test_causal_over_more_keys_than_queries_is_aligned_to_the_top_left():
    def short(q, k, v):
        q, k, v = turned(q, k, v)
        y = F.scaled_dot_product_attention(q[:, :, -2:], k, v, is_causal=True)
        return F.pad(y, (0, 0, 4, 0)).transpose(1, 2)

    (call, _) = calls_of(short)
    assert torch.equal(call.visible[0, 0], torch.ones(2, 6, dtype=torch.bool).tril())


def test_a_bool_mask_a_float_mask_and_a_scale():
    allowed = torch.ones(6, 6, dtype=torch.bool).tril()
    (call, _) = calls_of(sdpa(attn_mask=allowed, scale=0.7))
    assert torch.equal(call.visible[0, 0], allowed)
    assert (call.scale, call.bias) == (0.7, None)
    bias = SLOPES[None, :, None, None] * torch.arange(6.0)
    (call, _) = calls_of(sdpa(attn_mask=bias.masked_fill(~allowed, -torch.inf)))
    assert torch.equal(call.visible[0, 0], allowed)
    torch.testing.assert_close(call.bias[0], bias[0].expand(4, 6, 6).tril())


def test_padding_is_visible_per_sequence():
    allowed = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    allowed[1, :, :, :2] = False
    allowed[1, :, :2, :2] |= torch.eye(2, dtype=torch.bool)
    (call, _) = calls_of(sdpa(attn_mask=allowed))
    assert torch.equal(call.visible, allowed)
    rules = Mask(offset=0, padding=(0, 2)).visible(1, 6, 6)
    assert torch.equal(call.visible[1, 0, 2:], torch.from_numpy(rules)[2:])


def test_enable_gqa_keeps_the_kv_heads():
    def grouped(q, k, v):
        q, k, v = turned(q, k[:, :, :2], v[:, :, :2])
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y.transpose(1, 2)

    (call, _) = calls_of(grouped)
    assert (call.queries.shape[1], call.keys.shape[1], call.values.shape[1]) == (HEADS, 2, 2)


def test_three_axes_are_sequences_times_heads():
    def merged(q, k, v):
        b, t = q.shape[:2]
        q, k, v = (x.transpose(1, 2).reshape(b * HEADS, t, -1) for x in (q, k, v))
        y = F.scaled_dot_product_attention(query=q, key=k, value=v, is_causal=True)
        return y.view(b, HEADS, t, -1).transpose(1, 2)

    (call, _) = calls_of(merged)
    assert call.keys.shape == (2, HEADS, 6, 8)


def flexible(q, k, v):
    def score_mod(score, b, h, i, j):
        return score - SLOPES[h] * (i - j)

    def mask_mod(b, h, i, j):
        return (j <= i) & (i - j < 3)

    m = create_block_mask(mask_mod, None, None, q.shape[1], k.shape[1], device="cpu")
    return flex_attention(*turned(q, k, v), score_mod=score_mod, block_mask=m).transpose(1, 2)


@pytest.mark.filterwarnings("ignore")
def test_flex_attention_is_seen_under_any_name():
    (call, _) = calls_of(flexible)
    distance = torch.arange(6)[:, None] - torch.arange(6)[None, :]
    window = (distance >= 0) & (distance < 3)
    assert torch.equal(call.visible[0, 0], window)
    expected = (-SLOPES[:, None, None] * distance).masked_fill(~window, 0)
    torch.testing.assert_close(call.bias.expand(2, 4, 6, 6)[0], expected, rtol=0, atol=1e-5)
    assert call.code.startswith("test_fused.py:")


class Library(nn.Module):
    """torch's own layers."""

    def __init__(self, layer):
        torch.manual_seed(0)
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layer = layer

    def forward(self, ids):
        x = self.embed(ids)
        mask = hidden(x, x)
        if isinstance(self.layer, nn.MultiheadAttention):
            if not self.layer.batch_first:
                x = x.transpose(0, 1)
            return self.layer(x, x, x, attn_mask=mask, need_weights=False)[0]
        return self.layer(x, mask)


def multihead(**options):
    return nn.MultiheadAttention(32, HEADS, **options)


LAYERS = {
    "fast": lambda: multihead(batch_first=True).eval(),
    "slow": lambda: multihead(batch_first=True).train(),
    "tokens first": lambda: multihead().eval(),
    "extra keys": lambda: multihead(batch_first=True, add_bias_kv=True, add_zero_attn=True).eval(),
    "layer": lambda: nn.TransformerEncoderLayer(32, HEADS, 64, batch_first=True).eval(),
    "norm first": lambda: nn.TransformerEncoderLayer(
        32, HEADS, 64, batch_first=True, norm_first=True
    ).eval(),
}


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_torchs_own_layers_are_seen_and_keep_their_bits(name, sequences):
    model = Library(LAYERS[name]())
    ids = token_ids(sequences, 6)
    with torch.no_grad():
        plain = model(ids)
        with FlowWatch(model, sink=(calls := []).append) as watch:
            seen = model(ids)
    assert torch.equal(plain, seen)
    assert watch.unseen == ()
    (call,) = calls
    assert call.module == ("layer" if "Multi" in type(model.layer).__name__ else "layer.self_attn")
    assert call.queries.shape == (sequences, HEADS, 6, 8)
    attention = model.layer if call.module == "layer" else model.layer.self_attn
    x = model.embed(ids)
    if name == "norm first":
        x = model.layer.norm1(x)
    q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    for found, whole in ((call.queries, q), (call.keys, k), (call.values, v)):
        rows = whole.detach().view(sequences, 6, HEADS, 8).transpose(1, 2)
        torch.testing.assert_close(found[:, :, :6], rows)
    fused = name in ("fast", "layer", "norm first")
    assert any("a fused kernel hides its rows" in note for note in watch.notes) == fused


@pytest.mark.parametrize("name", ["fast", "layer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_fused_kernel_may_round_as_its_type_does(name, dtype):
    model = Library(LAYERS[name]()).to(dtype)
    ids = token_ids(2, 12)
    with torch.no_grad(), FlowWatch(model, sink=(calls := []).append) as watch:
        model(ids)
    assert (len(calls), watch.unseen) == (1, ())


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("padded", [0, 2])
@pytest.mark.parametrize("norm", [None, nn.LayerNorm(32, bias=True)])
def test_an_encoder_that_packs_its_rows_without_the_padding_is_seen(norm, padded):
    layer = nn.TransformerEncoderLayer(32, HEADS, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, norm=norm).eval()
    x, padding = torch.randn(2, 6, 32), torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 6 - padded :] = True
    with torch.no_grad():
        plain = model(x, src_key_padding_mask=padding)
        with FlowWatch(model, sink=(calls := []).append) as watch:
            seen = model(x, src_key_padding_mask=padding)
    assert torch.equal(plain, seen)
    assert watch.unseen == ()
    assert [call.module for call in calls] == ["layers.0.self_attn", "layers.1.self_attn"]
    for call in calls:
        shown = torch.ones(2, 6) if call.visible is None else call.visible[:, 0, 0]
        assert torch.equal(shown.expand(2, 6) == 0, padding)


def test_weights_asked_for_are_the_same():
    model = multihead(batch_first=True).eval()
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        plain = model(x, x, x, average_attn_weights=False)
        with FlowWatch(model, sink=(calls := []).append):
            seen = model(x, x, x, average_attn_weights=False)
    assert torch.equal(plain[1], seen[1])
    assert len(calls) == 1


def test_cross_attention_reads_other_rows():
    model = multihead(batch_first=True).eval()
    x, memory = torch.randn(2, 3, 32), torch.randn(2, 7, 32)
    with torch.no_grad(), FlowWatch(model, sink=(calls := []).append) as watch:
        model(x, memory, memory)
    assert watch.unseen == ()
    (call,) = calls
    assert (call.queries.shape[2], call.keys.shape[2]) == (3, 7)


def test_rows_that_all_sequences_share_are_rows_of_each():
    class Shares(nn.Module):
        def forward(self, q, rows):
            return F.scaled_dot_product_attention(q, rows, rows)

    q, rows = torch.randn(3, 2, 1, 8), torch.randn(1, 2, 7, 8)
    with torch.no_grad(), FlowWatch(model := Shares(), sink=(calls := []).append):
        model(q, rows)
    (call,) = calls
    assert torch.equal(call.keys, rows.expand(3, -1, -1, -1))
    assert torch.equal(call.values, call.keys)


@pytest.mark.parametrize("sequences", [2, 3])
@pytest.mark.parametrize("new", [1, 4])
def test_so_are_those_that_a_product_spreads_over_the_sequences(sequences, new):
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 32)

        def forward(self, ids, rows):
            q = self.embed(ids).unflatten(-1, (4, 8)).transpose(1, 2)
            weights = (q @ rows.transpose(-2, -1) * 8**-0.5).softmax(-1)
            return (weights @ rows).transpose(1, 2).flatten(2)

    ids, rows = torch.arange(sequences * new).view(sequences, new), torch.randn(1, 4, 7, 8)
    with torch.no_grad(), FlowWatch(model := Shares(), sink=(calls := []).append):
        output = model(ids, rows)
    (call,) = calls
    assert torch.equal(call.keys, rows.expand(sequences, -1, -1, -1))
    assert call.queries.shape == (sequences, 4, new, 8)
    assert torch.allclose(call.output.transpose(1, 2).flatten(2), output, atol=1e-6)
