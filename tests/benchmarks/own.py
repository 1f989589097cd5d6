"""What recording people's own models costs: CPU time against the plain loop, alternating."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

import kvtrace
from benchmarks.pairs import against_plain
from benchmarks.table import Row
from kvtrace_fixtures.custom.tuple_cat import GPT

NAME = "Recording people's own models against the plain loop"

PROMPT, NEW = 16, 64


def run() -> list[Row]:
    """Two sizes, the data flow followed in every module."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    large = GPT(vocab=5000, width=768, heads=12, layers=12).eval()
    small = GPT(vocab=256, width=32, heads=4, layers=3).eval()
    return [
        _row("12 layers × 768", large, 1.10, 5),
        _row("3 layers × 32", small, None, 15),
    ]


def _row(what: str, model: nn.Module, goal: float | None, runs: int) -> Row:
    ids = torch.randint(3, 250, (1, PROMPT), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def plain() -> None:
        new, cache = ids, None
        for _ in range(NEW):
            logits, cache = model(new, cache)
            new = logits[:, -1].argmax(-1, keepdim=True)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.kvt"

        def recorded() -> None:
            with kvtrace.record(model, path, force=True, recompute="off"):
                plain()

        return against_plain(f"{what}, {PROMPT}+{NEW} tokens", plain, recorded, goal, runs)
