from dataclasses import replace

import pytest

from builders import synthetic_trace
from kvtrace.analysis.nature import attention_is, latents_of, readers, rows_are


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
        "4 heads on 2 kv heads",
        "window 8",
        "static cache",
        "learned sinks",
        "softcap 50",
    )


def test_a_layer_that_takes_over_rows_names_whose(trace):
    changed(trace, 2, {"source": "shared", "shared_from": 0, "reads": 0})
    assert rows_are(trace, 2) == "cache of L0"
    assert "K, V cache of L0" in attention_is(trace, 2)
    assert readers(trace, 0) == (2,)
    assert readers(trace, 1) == ()


def test_rows_expanded_from_latents_are_no_cache(trace):
    meta = trace.meta
    latent = replace(meta.cache_layers[1], index=3, kind="latent", num_kv_heads=1)
    trace.source.meta = replace(meta, cache_layers=(*meta.cache_layers, latent))
    changed(trace, 1, {"source": "derived"}, {"kind": "derived", "layer": -1})
    assert rows_are(trace, 1) == "from latents"
    assert latents_of(trace, 1) == latent
    assert latents_of(trace, 0) is None


def test_encoder_rows_and_rows_never_kept_say_so(trace):
    assert rows_are(changed(trace, 0, {"kind": "cross"}), 0) == "of the encoder"
    assert rows_are(changed(trace, 1, {"source": "uncached"}), 1) == "not cached"
    assert attention_is(trace, 0)[0] == "cross-attention"


def test_a_bias_is_told_of_the_step_that_had_it(trace):
    step = trace.step(2)
    group = replace(step.sites[0], mask=replace(step.sites[0].mask, bias=True))
    trace.source.steps[2] = replace(step, sites=(group,))
    assert "additive bias" in attention_is(trace, 1, 2)
    assert "additive bias" not in attention_is(trace, 1, 3)
