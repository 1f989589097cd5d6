"""Steps that are like the one before cost what each of them would cost alone."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import kvtrace
from kvtrace.trace import Flops

LAYERS, WIDTH, HEADS, VOCAB = 2, 32, 4, 96
PROMPT, NEW = 6, 14


def by_hand(rows: int, seq: int, logits: int, whole: int) -> Flops:
    """Of one forward; `rows` over all sequences, each of them attending to `seq`."""
    square, row = 2 * WIDTH * WIDTH * LAYERS, 2 * WIDTH * VOCAB
    mixed = 2 * WIDTH * LAYERS * rows * seq
    return Flops(
        qkv=3 * square * rows,
        scores=mixed,
        mix=mixed,
        output=square * rows,
        mlp=8 * square * rows,
        head=row * logits,
        head_last=row * whole,
        head_all=row * rows,
    )


@pytest.mark.parametrize("sequences", [1, 3])
def test_every_step_of_a_run_costs_what_its_shapes_say(sequences, tmp_path):
    torch.manual_seed(0)
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCAB}
    config = GPT2Config(**sizes, n_positions=64, bos_token_id=1, eos_token_id=2)
    model = GPT2LMHeadModel(config).eval()
    model.generation_config.pad_token_id = 0
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    path = tmp_path / "run.kvt"
    with kvtrace.record(model, path, recompute="off"):
        for _ in range(2):  # the second text begins anew, with another prompt
            ids = torch.randint(3, VOCAB, (sequences, PROMPT))
            model.generate(ids, attention_mask=torch.ones_like(ids), **length)
    steps = list(kvtrace.open(path))
    assert len(steps) == 2 * NEW
    for step in steps:
        seq = step.positions[0][-1] + 1
        cached = by_hand(sequences * step.new, seq, sequences, sequences)
        assert step.cost.cached == cached, step.number
        whole = by_hand(sequences * seq, seq, sequences, sequences)
        assert step.cost.recomputed == whole, step.number
