"""CPU time of something against the plain run: alternating, the median of the ratios."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import process_time

from benchmarks.table import Row


def against_plain(
    what: str, plain: Callable[[], None], other: Callable[[], None], goal: float | None, runs: int
) -> Row:
    """A row of how many times the CPU time of `plain` the other took, each warmed up once."""
    plain()
    other()
    pairs = [(_seconds(plain), _seconds(other)) for _ in range(runs)]
    ratios = [with_ / without for without, with_ in pairs]
    base = median(without for without, _ in pairs) * 1e3
    note = f"{min(ratios):.3f} to {max(ratios):.3f} in {runs} runs; plain {base:.0f} ms of CPU"
    return Row(what, median(ratios), "×", goal, note)


def _seconds(run_once: Callable[[], None]) -> float:
    start = process_time()
    run_once()
    return process_time() - start
