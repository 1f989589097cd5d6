"""Two real processes that share the heads of one model, and what each of them records."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import builders.two_ranks as script
import kvtrace
from builders.recorded import assert_attention_explains_itself
from kvtrace.files.ranks import merge
from kvtrace.trace import Rank, Tensor

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything that two ranks recorded, and the models they ran."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, kv_heads in (("gqa", 2), ("mqa", 1)):
        torch.manual_seed(0)
        config = LlamaConfig(**SIZES, num_key_value_heads=kv_heads, initializer_range=0.3)
        LlamaForCausalLM(config).save_pretrained(folder / name)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, script.__file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """The same runs in one process."""
    traces = {}
    for name in ("gqa", "mqa"):
        model = AutoModelForCausalLM.from_pretrained(folder / name).eval()
        path = folder / f"whole-{name}.kvt"
        with kvtrace.record(model, path):
            script.generate(model)
        traces[name] = kvtrace.open(path)
    with kvtrace.record(model := script.own_model(), folder / "whole-own.kvt"):
        script.decode(model)
    return {**traces, "own": kvtrace.open(folder / "whole-own.kvt")}


def test_each_rank_writes_a_file_of_its_own_that_says_which_heads_it_holds(folder):
    for number in (0, 1):
        meta = kvtrace.open(folder / "once" / f"run.rank{number}.kvt").meta
        assert meta.rank == Rank(number, 2)
        held = [(one.num_heads, one.first_head, one.all_heads) for one in meta.sites]
        assert held == [(2, 2 * number, 4)] * 2
        held = [
            (one.num_kv_heads, one.first_kv_head, one.all_kv_heads) for one in meta.cache_layers
        ]
        assert held[:2] == [(1, number, 2)] * 2
        assert meta.model.banner.startswith(f"rank {number} of 2")


def test_the_merged_trace_is_that_of_the_run_in_one_process(folder, alone, tmp_path):
    paths = sorted((folder / "once").glob("*.kvt"))
    done = merge(paths, tmp_path / "whole.kvt")
    assert (done.lossy, done.text) == (False, ())
    merged, single = kvtrace.open(tmp_path / "whole.kvt"), alone["gqa"]
    assert merged.meta.sites == single.meta.sites
    assert merged.meta.cache_layers == single.meta.cache_layers
    assert (merged.meta.rank, merged.meta.model.banner) == (None, "")
    assert list(merged.numbers) == list(single.numbers)
    for one, other in zip(merged, single, strict=True):
        assert one.tokens == other.tokens
        assert one.chosen == other.chosen
        assert (one.caches, one.cost.cached) == (other.caches, other.cost.cached)
        assert one.cost.cache_bytes == other.cost.cache_bytes
    assert merged.compared(2) is not None


def test_rows_of_the_first_layer_are_equal_and_later_ones_within_rounding(folder, alone):
    merged, single = kvtrace.open(folder / "once"), alone["gqa"]
    for number in single.numbers:
        for layer in (0, 1):
            for tensor in (Tensor.QUERIES, Tensor.OUTPUT):
                one = merged.source.site_rows(number, layer, tensor, None)
                other = single.source.site_rows(number, layer, tensor, None)
                assert one.shape == other.shape
                assert np.abs(one - other).max() <= (4e-6 if layer == 0 else 1e-5)
    for layer in (0, 1):
        rows = len(script.PROMPT[0]) + script.NEW - 1
        for tensor in (Tensor.KEYS, Tensor.VALUES):
            one = merged.source.cells(layer, tensor, 0, rows, None)
            other = single.source.cells(layer, tensor, 0, rows, None)
            assert np.abs(one - other).max() <= (4e-6 if layer == 0 else 1e-5)
            assert np.abs(one[0] - other[1]).max() > 0.01


def test_what_the_ranks_recorded_explains_what_they_computed(folder):
    assert_attention_explains_itself(kvtrace.open(folder / "once"))


@pytest.mark.parametrize("mode", ["once", "each"])
def test_ranks_recompute_the_tokens_together(folder, mode):
    trace = kvtrace.open(folder / mode)
    assert trace.meta.lane("recomputed").mode == mode
    for number in trace.numbers:
        found = trace.compared(number)
        assert found.max_abs.shape[2] == 4
        assert np.nanmax(found.relative) < 2e-5
        assert not np.isnan(found.max_abs[:, Tensor.QUERIES]).any()


def test_ranks_of_a_model_that_was_not_named_write_files_of_their_own(folder):
    trace = kvtrace.open(folder / "met")
    assert (len(trace), trace.meta.sites[1].num_heads) == (script.NEW, 4)
    assert trace.compared(1) is not None


def test_a_rank_that_records_alone_says_that_it_compared_nothing(folder):
    trace = kvtrace.open(folder / "alone.rank0.kvt")
    assert len(trace) == script.NEW
    assert trace.meta.lanes == ()
    assert "not every rank that shares this model records" in trace.notes[0].text
    assert trace.ending.reason == "length"


def test_no_rank_waits_for_one_that_failed(folder):
    whole = kvtrace.open(folder / "failed.rank0.kvt")
    assert "not every rank that shares this model" in whole.notes[0].text
    assert kvtrace.open(folder / "failed.rank1.kvt").ending.reason == "error"


def test_a_kv_head_that_both_ranks_hold_is_one_in_the_merged_trace(folder, alone, tmp_path):
    paths = sorted(Path(folder).glob("mqa.rank*.kvt"))
    for path in paths:
        layers = kvtrace.open(path).meta.cache_layers[:2]
        assert [(x.num_kv_heads, x.first_kv_head, x.all_kv_heads) for x in layers] == [
            (1, 0, 1)
        ] * 2
    assert merge(paths, tmp_path / "mqa.kvt").text == ()
    merged, single = kvtrace.open(tmp_path / "mqa.kvt"), alone["mqa"]
    assert merged.meta.sites == single.meta.sites
    assert [step.tokens for step in merged] == [step.tokens for step in single]
    one = merged.source.cells(1, Tensor.KEYS, 0, 8, None)
    assert np.abs(one - single.source.cells(1, Tensor.KEYS, 0, 8, None)).max() < 1e-5


def test_a_model_of_ones_own_that_torch_divided_is_recorded_too(folder, alone, tmp_path):
    merge(sorted(folder.glob("own.rank*.kvt")), tmp_path / "own.kvt")
    merged, single = kvtrace.open(tmp_path / "own.kvt"), alone["own"]
    assert [(x.num_heads, x.num_kv_heads) for x in merged.meta.sites] == [(4, 2)] * 2
    assert [step.tokens for step in merged] == [step.tokens for step in single]
    for one, other in zip(merged, single, strict=True):
        # the output matrix is not divided: both ranks multiply all of it
        mine, theirs = one.cost.cached, other.cost.cached
        assert (mine.qkv, mine.scores, mine.mix) == (theirs.qkv, theirs.scores, theirs.mix)
        assert (mine.output, mine.head) == (theirs.output, 2 * theirs.head)
        assert mine.other == theirs.other == 0
    for tensor in (Tensor.KEYS, Tensor.VALUES):
        rows = len(script.PROMPT[0]) + script.NEW - 1
        store = single.meta.sites[1].reads
        one = merged.source.cells(merged.meta.sites[1].reads, tensor, 0, rows, None)
        assert np.abs(one - single.source.cells(store, tensor, 0, rows, None)).max() < 1e-5
    assert merged.compared(2) is not None
