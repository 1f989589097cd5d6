"""Cross-layer attention: half the cache, the same numbers as a model that computed them."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from builders.recorded import assert_attention_explains_itself, assert_caches_agree, record
from kvtrace.analysis.cost.savings import savings
from kvtrace.trace import Tensor
from kvtrace_fixtures import BUILT_IN

NEW = 4


@pytest.fixture(scope="module")
def model():
    from kvtrace_fixtures.measure import load

    return load("demo-cla")[0]


@pytest.fixture(scope="module")
def recorded(model, tmp_path_factory):
    ids = torch.randint(1, 500, (1, 9), generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("cla") / "a.kvt"

    def run():
        model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)

    trace, held, _ = record(model, run, path, recompute="once")
    return trace, held


def test_odd_layers_read_the_cache_of_the_layer_before(recorded):
    trace, _ = recorded
    sites = trace.meta.sites
    assert [(one.source, one.shared_from, one.reads) for one in sites] == [
        ("cache", None, 0),
        ("shared", 0, 0),
        ("cache", None, 1),
        ("shared", 2, 1),
    ]
    assert len(trace.meta.cache_layers) == 2
    both = [trace.cache(3, layer) for layer in (2, 3)]
    assert np.array_equal(both[0].keys, both[1].keys)


def test_the_cache_is_half_of_what_it_would_be(recorded):
    trace, held = recorded
    rows = 9 + NEW - 1
    found = next(one for one in savings(trace, NEW - 1) if "layer" in one.what)
    # 2 caches × rows × 2 kv heads × (16 + 16) numbers of 4 bytes
    assert found.held_bytes == 2 * rows * 2 * 32 * 4 == trace.step(NEW - 1).cost.cache_bytes
    assert found.otherwise_bytes == 2 * found.held_bytes
    assert_caches_agree(trace, held)


def test_what_was_recorded_explains_the_output_and_both_lanes_are_equal(recorded):
    trace, _ = recorded
    assert_attention_explains_itself(trace)
    for number in trace.numbers:
        found = trace.compared(number)
        assert not np.isnan(found.max_abs[:, Tensor.QUERIES]).any()
        assert np.nanmax(found.relative) < 2e-5


def test_layers_without_keys_of_their_own_cost_none(model, recorded):
    trace, _ = recorded
    # of each token: 4 × (96 → 96) for queries, 2 × (96 → 32) for keys and values each
    assert trace.step(2).cost.cached.qkv == 2 * 96 * (4 * 96 + 2 * 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(1, 10)[None], use_cache=False)
    counted = trace.step(0).cost.cached
    assert counted.body + counted.head_all == counter.get_total_flops()


def test_it_is_known_by_its_type_without_remote_code():
    assert BUILT_IN["demo-cla"].architecture == "kvtrace_fixtures.cla"
    assert not list(BUILT_IN["demo-cla"].directory.glob("*.py"))
