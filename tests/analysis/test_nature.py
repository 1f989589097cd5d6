import numpy as np
import pytest
from msgspec.structs import replace

from builders import synthetic_trace
from kvtrace.analysis.nature import attention_is, latents_of, readers, rows_are
from kvtrace.trace import Trace


@pytest.fixture
def trace():
    return synthetic_trace()


def changed(trace, layer, site=None, store=None):
    """The same trace with something else said of a layer."""
    meta = trace.meta
    sites, stores = list(meta.sites), list(meta.cache_layers)
    sites[layer] = replace(sites[layer], **(site or {}))
    stores[layer] = replace(stores[layer], **(store or {}))
    trace.source.meta = replace(meta, sites=tuple(sites), cache_layers=tuple(stores))
    return trace


def test_what_is_usual_is_not_mentioned(trace):
    assert rows_are(trace, 1) == "cache"
    assert attention_is(changed(trace, 1, {"num_kv_heads": 4}), 1) == ()


def test_groups_windows_sinks_caps_and_kinds_are_named(trace):
    site = {"window": 8, "sinks": (0.0,) * 4, "softcap": 50.0}
    assert attention_is(changed(trace, 1, site, {"kind": "static"}), 1) == (
        "GQA: 4 heads on 2 kv heads",
        "sliding window 8",
        "static cache",
        "learned sinks",
        "softcap 50",
    )


def test_a_layer_that_takes_over_rows_names_whose(trace):
    changed(trace, 2, {"source": "shared", "shared_from": 0, "reads": 0})
    assert rows_are(trace, 2) == "cache of L0"
    assert "shares K, V of L0" in attention_is(trace, 2)
    assert readers(trace, 0) == (2,)
    assert readers(trace, 1) == ()


def test_rows_expanded_from_latents_are_no_cache(trace):
    meta = trace.meta
    latent = replace(meta.cache_layers[1], index=3, kind="latent", num_kv_heads=1)
    trace.source.meta = replace(meta, cache_layers=(*meta.cache_layers, latent))
    changed(trace, 1, {"source": "derived"}, {"kind": "derived", "layer": -1})
    assert rows_are(trace, 1) == "from latents"
    assert latents_of(trace, 1) == latent
    assert f"MLA: latent {latent.key_dim} + rotary {latent.value_dim}" in attention_is(trace, 1)
    assert latents_of(trace, 0) is None


def test_encoder_rows_and_rows_never_kept_say_so(trace):
    assert rows_are(changed(trace, 0, {"kind": "cross"}), 0) == "of the encoder"
    assert rows_are(changed(trace, 1, {"source": "uncached"}), 1) == "not cached"
    assert attention_is(trace, 0)[0] == "cross-attention"


def test_a_window_says_how_many_rows_it_has_let_go(trace):
    changed(trace, 1, {"window": 4}, {"kind": "sliding", "window": 4})
    step = trace.step(2)
    (group,) = step.caches
    trace.source.steps[2] = replace(step, caches=(replace(group, length_after=4),))
    last = max(row[-1] for row in step.positions)
    assert f"sliding window 4, {last + 1 - 4} evicted" in attention_is(trace, 1, 2)
    assert "sliding window 4" in attention_is(trace, 1)


def test_a_window_of_a_cache_that_keeps_all_says_so(trace):
    words = attention_is(changed(trace, 1, {"window": 4}, {"kind": "dynamic"}), 1)
    assert "sliding window 4, all rows kept" in words


def test_absorbed_latents_say_what_of_a_key_is_rotary(trace):
    store = {"kind": "latent", "key_dim": 24, "value_dim": 16, "shared_dim": 16}
    words = attention_is(changed(trace, 1, {"num_kv_heads": 1}, store), 1)
    assert words == ("MLA: latent 16 + rotary 8, absorbed",)


def test_peoples_own_latents_are_told_by_the_rotary_key_behind_each_and_tied_rows_may_be(trace):
    store = {"kind": "dynamic", "num_kv_heads": 1, "key_dim": 24, "value_dim": 16, "shared_dim": 16}
    words = attention_is(changed(trace, 1, {"num_kv_heads": 1}, store), 1)
    assert words == ("MLA: latent 16 + rotary 8, absorbed",)
    tied = store | {"key_dim": 16}
    words = attention_is(changed(trace, 1, {"num_kv_heads": 1}, tied), 1)
    assert words == ("MQA or absorbed MLA: 4 heads on 1 row, its K and V in one",)
    apart = tied | {"shared_dim": 0}
    words = attention_is(changed(trace, 1, {"num_kv_heads": 1}, apart), 1)
    assert words == ("MQA: 4 heads on 1 kv head",)


def biased(trace, bias):
    """The words for a step whose layer 1 has this bias, [heads, seq]."""
    step = trace.step(2)
    group = replace(step.sites[0], mask=replace(step.sites[0].mask, bias=True))
    trace.source.steps[2] = replace(step, sites=(group,))
    if bias is not None:
        trace.source.biases[2, trace.site(1).index] = np.array(bias, np.float32)[None, :, None, :]
    return attention_is(trace, 1, 2)


def test_a_bias_is_told_of_the_step_that_had_it(trace):
    assert "additive bias" in biased(trace, None)
    assert "additive bias" not in attention_is(trace, 1, 3)


def test_a_bias_of_zeros_is_none(trace):
    assert not [words for words in biased(trace, [[0.0] * 7] * 4) if "bias" in words]


def test_a_bias_that_falls_with_the_distance_is_alibi(trace):
    rows = np.arange(7.0)
    assert "ALiBi bias" in biased(trace, [rows * slope for slope in (0.5, 0.25, 0.125, 0.0625)])
    assert "additive bias" in biased(trace, [rows**2 * slope for slope in (0.5, 0.25, 0.1, 0.06)])
    assert "additive bias" in biased(trace, [rows * 0.5] * 4)
    assert "additive bias" in biased(trace, [[0.5]] * 4)


@pytest.mark.parametrize(
    ("rows", "words"), [({7: 8, 8: 1, 9: 2, 10: 3}, "chunks of 8"), ({}, "sliding window 8")]
)
def test_chunks_begin_anew_and_windows_move_along(trace, monkeypatch, rows, words):
    """Rows that the query of a position sees: a chunk's first one sees only itself."""
    changed(trace, 1, {"window": 8}, {"kind": "sliding", "window": 8})
    at = {trace.step(number).positions[0][-1]: number for number in trace.numbers}

    def visible(trace, number, layer, sequence=0, query=None):
        position = trace.step(number).positions[0][-1]
        row = np.arange(position + 1) > position - rows.get(position, 8)
        return row[None, None]

    monkeypatch.setattr(Trace, "visible", visible)
    for position in (8, 9, 10):
        assert attention_is(trace, 1, at[position])[1].startswith(words)


def test_rows_put_together_with_others_are_no_latents(trace):
    meta = trace.meta
    same = replace(meta.cache_layers[1], index=3, kind="latent")
    trace.source.meta = replace(meta, cache_layers=(*meta.cache_layers, same))
    changed(trace, 1, {"source": "derived"}, {"kind": "derived", "layer": -1})
    assert rows_are(trace, 1) == "derived"
