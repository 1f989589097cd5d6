"""What recording costs: CPU time against the plain run, alternating, trace on disk included."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import kvtrace
from benchmarks.pairs import against_plain
from benchmarks.table import Row

NAME = "Recording against plain generate"

PROMPT, NEW = 16, 64


def run() -> list[Row]:
    """Two sizes without other lanes, then what comparing adds."""
    torch.set_num_threads(1)
    small = _model(n_embd=64, n_head=4, n_layer=12, vocab_size=1000)
    large = _model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.kvt"
        return [
            _row("recording GPT-2 124M", large, path, 1.02, 7, recompute="off"),
            _row("recording 12 layers × 64 wide", small, path, 1.08, 25, recompute="off"),
            _row("recording and the recomputed lane, 124M", large, path, None, 5),
            _row("recording, both lanes, 124M", large, path, 2.5, 5, referee=True),
            _check_row(large, 2.5, 3),
        ]


def _model(**sizes: int) -> GPT2LMHeadModel:
    """Random weights; never ends a text early."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()
    model.generation_config.pad_token_id = 0
    return model


def _row(what: str, model: Any, path: Path, goal: float | None, runs: int, **options: Any) -> Row:
    ids = torch.randint(3, 900, (1, PROMPT), generator=torch.Generator().manual_seed(1))

    def plain() -> None:
        model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)

    def recorded() -> None:
        with kvtrace.record(model, path, force=True, **options):
            plain()

    return against_plain(f"{what}, {PROMPT}+{NEW} tokens", plain, recorded, goal, runs)


def _check_row(model: Any, goal: float, runs: int) -> Row:
    """All of `kvtrace.check`: every way of driving, lanes, referee and verdict."""
    ids = torch.randint(3, 900, (1, PROMPT), generator=torch.Generator().manual_seed(1))

    def plain() -> None:
        model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)

    def checked() -> None:
        kvtrace.assert_cache_consistent(model, ids, new_tokens=NEW)

    what = f"kvtrace.check in every way, referee included, 124M, {PROMPT}+{NEW} tokens"
    return against_plain(what, plain, checked, goal, runs)
