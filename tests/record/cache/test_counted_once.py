"""Rows that attention of the model's own reads out of a cache that was seen anyway."""

import torch

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import IDS, ready


def test_rows_that_another_attention_reads_in_a_seen_cache_take_no_memory_again(tmp_path):
    # its predicting stream attends to the main stream's rows and to one of its own
    model = ready(tiny_model("prophetnet", attn_implementation="eager"))
    held = []

    def look(module, args, out):
        layers = out.past_key_values.layers
        held.append(sum(one.keys.nbytes + one.values.nbytes for one in layers))

    hook = model.register_forward_hook(look)
    with kvtrace.record(model, tmp_path / "run.kvt", recompute="off"), torch.no_grad():
        model.generate(IDS, max_new_tokens=4, do_sample=False)
    hook.remove()
    assert [step.cost.cache_bytes for step in kvtrace.open(tmp_path / "run.kvt")] == held
