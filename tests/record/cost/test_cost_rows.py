"""Products of other rows than the new ones: those of logits, and of buffers with room for more."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from builders.recorded import record
from builders.tiny_models import tiny_model
from builders.ways import IDS, generate, ready


def counted(model, run):
    """What torch counts in each forward of a run."""
    found = []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        before = model.register_forward_pre_hook(
            lambda *_: found.append(-counter.get_total_flops())
        )
        after = model.register_forward_hook(
            lambda *_: found.append(found.pop() + counter.get_total_flops())
        )
        run()
    before.remove()
    after.remove()
    return found


CASES = [
    ("camembert", {"prefill_chunk_size": 5}),
    ("camembert", {"prompt_lookup_num_tokens": 3}),
    ("bert", {}),
    ("gemma3n_text", {}),
    ("gemma3n_text", {"prompt_lookup_num_tokens": 3}),
    ("minicpm3", {"prefill_chunk_size": 5, "cache_implementation": "static"}),
]


@pytest.mark.parametrize(("model_type", "options"), CASES)
def test_every_step_costs_what_torch_counts(model_type, options, tmp_path):
    model = ready(tiny_model(model_type, attn_implementation="eager"))
    run = generate(model, **options)
    trace, _, _ = record(model, run, tmp_path / "a.kvt")
    assert [step.cost.cached.total for step in trace] == counted(model, run)
    assert not any("extrapolated" in text for text in trace.meta.not_recorded)


@pytest.mark.parametrize("model_type", ["qwen3_5_text", "olmo_hybrid"])
def test_a_single_row_after_chunks_costs_what_it_costs_a_recurrent_layer(model_type, tmp_path):
    model = ready(tiny_model(model_type, attn_implementation="eager"))
    run = generate(model, prefill_chunk_size=5)
    trace, _, _ = record(model, run, tmp_path / "a.kvt")
    assert [step.cost.cached.total for step in trace] == counted(model, run)


@pytest.mark.parametrize("model_type", ["llama", "minicpm3"])
def test_drafts_of_the_first_layers_cost_as_much_as_those(model_type, tmp_path):
    model = ready(tiny_model(model_type, attn_implementation="eager"))
    run = generate(model, assistant_early_exit=2)
    trace, held, _ = record(model, run, tmp_path / "a.kvt")
    assert [step.cost.cached.total for step in trace] == counted(model, run)
    live = [sum(keys.nbytes + values.nbytes for keys, values in one.values()) for one in held]
    assert [step.cost.cache_bytes for step in trace] == live


@pytest.mark.parametrize("model_type", ["camembert", "gemma3n_text", "llama"])
def test_without_a_cache_the_last_token_alone_is_asked_for_as_well(model_type, tmp_path):
    model = ready(tiny_model(model_type, attn_implementation="eager"))
    run = generate(model)
    trace, _, tokens = record(model, run, tmp_path / "a.kvt")
    for step in trace:
        ids = tokens[:, : IDS.shape[1] + step.number]
        options = {"use_cache": False, "logits_to_keep": 1}
        (again,) = counted(model, lambda ids=ids, options=options: model(ids, **options))
        assert step.cost.recomputed.total == again
