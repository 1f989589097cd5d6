"""Whether a recorder's memory stays flat: 10,000 steps of tiny models, resident memory."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import kvtrace
from benchmarks.table import Row
from kvtrace_fixtures.custom import ring_window

NAME = "Memory while recording"

STEPS = int(os.environ.get("KVTRACE_FLAT_STEPS", "10000"))
FIRST = STEPS // 4
"""Steps after which everything that is made once has been made."""
GOAL_MIB = 2.0
"""What may come and go with the allocator."""

Step = Callable[[int], object]


def run() -> list[Row]:
    """A transformers model in texts of 64 tokens, and a ring buffer in one text without an end."""
    torch.set_num_threads(1)
    return [
        _row("GPT-2, 2 layers × 32, texts of 64 tokens", *_library()),
        _row("a model of one's own with a ring of 8 slots, one text", *_ring()),
    ]


def _library() -> tuple[nn.Module, Step]:
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=32, n_head=4, n_layer=2, vocab_size=200, bos_token_id=1, eos_token_id=2
    )
    model = GPT2LMHeadModel(config).eval()
    cache: list[object] = [None]

    def step(number: int) -> None:
        start = number % 64 == 0
        ids = torch.tensor([[3 + number % 190]])
        out = model(ids, past_key_values=None if start else cache[0], use_cache=True)
        cache[0] = out.past_key_values

    return model, step


def _ring() -> tuple[nn.Module, Step]:
    model = ring_window.build()
    model.pos = nn.Embedding(STEPS, model.embed.weight.shape[1])

    def step(number: int) -> None:
        model(torch.tensor([[number % 250]]), torch.tensor([number]))

    return model, step


def _row(what: str, model: nn.Module, step: Step) -> Row:
    sizes = []
    with (
        tempfile.TemporaryDirectory() as folder,
        torch.no_grad(),
        kvtrace.record(model, Path(folder) / "a.kvt", recompute="off"),
    ):
        for number in range(STEPS):
            step(number)
            if number in (FIRST, STEPS - 1):
                sizes.append(resident())
    grown = sizes[-1] - sizes[0]
    steps = STEPS - FIRST
    note = f"more at step {STEPS:,} than at {FIRST:,}, {grown / steps:,.0f} bytes a step"
    return Row(what, grown / (1 << 20), "MiB", GOAL_MIB, note)


def resident() -> int:
    """Bytes of this process in main memory."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    import resource  # only the highest so far is known elsewhere

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
