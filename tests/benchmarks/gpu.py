"""What recording costs on a GPU: time between CUDA events against the plain run, alternating.

Needs a GPU; without one it has nothing to say. Before anything is timed, the recorded keys and
values are held against the live cache, bit by bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import kvtrace
from benchmarks.table import Row
from kvtrace.trace import Tensor
from kvtrace.trace.dtypes import widen

NAME = "Recording against plain generate on a GPU"

PROMPT, NEW = 16, 64


def possible() -> bool:
    """Whether there is a GPU."""
    return torch.cuda.is_available()


def run() -> list[Row]:
    """GPT-2 124M in fp32, and a 1.1B Llama shape in bf16; random weights."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        small = GPT2LMHeadModel(GPT2Config(bos_token_id=1, eos_token_id=2)).eval()
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
    )
    with torch.device("cuda"):
        large = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.kvt"
        return [
            _row("recording GPT-2 124M, fp32", small, path),
            _row("recording a 1.1B Llama, bf16", large, path),
        ]


def _row(what: str, model: Any, path: Path, runs: int = 9) -> Row:
    model.generation_config.pad_token_id = 0
    ids = torch.randint(3, 900, (1, PROMPT), generator=torch.Generator().manual_seed(1)).cuda()

    def plain(**options: Any) -> None:
        model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **options)

    def recorded() -> None:
        with kvtrace.record(model, path, force=True, recompute="off"):
            plain()

    plain()
    _hold_against_the_live_cache(model, path, plain)
    pairs = [(_milliseconds(plain), _milliseconds(recorded)) for _ in range(runs)]
    ratios = [with_ / without for without, with_ in pairs]
    base = median(without for without, _ in pairs)
    device = torch.cuda.get_device_name()
    note = f"{min(ratios):.3f} to {max(ratios):.3f} in {runs} runs; plain {base:.0f} ms on {device}"
    return Row(f"{what}, {PROMPT}+{NEW} tokens", median(ratios), "×", None, note)


def _hold_against_the_live_cache(model: Any, path: Path, generate: Callable[..., None]) -> None:
    cache = DynamicCache(config=model.config)
    with kvtrace.record(model, path, force=True, recompute="off"):
        generate(past_key_values=cache)
    trace = kvtrace.open(path)
    for layer, live in enumerate(cache.layers):
        store = trace.cache_layer(layer)
        for tensor, rows in ((Tensor.KEYS, live.keys), (Tensor.VALUES, live.values)):
            found = trace.source.cells(store.index, tensor, 0, rows.shape[2], None)
            true = rows[0].float().cpu().numpy()
            if (widen(found, store.dtype) != true).any():
                raise SystemExit(f"layer {layer}: {tensor.name} are not what the cache holds")


def _milliseconds(run_once: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run_once()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
