"""The trace file at 1 GiB: appending to it, opening it, reading prefixes and heads of it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from msgspec.structs import replace

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.table import Row, markdown
from builders import Shape, synthetic_trace
from builders.written import rows_of
from kvtrace.files import StepRows, open_trace
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import Ending, Meta, Run, Step, Tensor, TopLogits, Trace

NAME = "The trace file"
GIBIBYTE = 1 << 30
PREFIX = 4096
REPEATS = 9


def run() -> list[Row]:
    """Write 1 GiB of GPT-2 steps under a temporary folder, and read it back."""
    gpt2 = Shape(layers=12, heads=12, kv_heads=12, dim=64, prompt=1, decode=1)
    small = Shape(layers=12, heads=4, kv_heads=4, dim=16, prompt=1, decode=1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.kvt"
        rows = [
            _append_row(Path(folder) / "small.kvt", small, 16 << 20, "12 × 64, 12 KiB", 0.15),
            _append_row(path, gpt2, GIBIBYTE, "GPT-2, 144 KiB", 0.25),
        ]
        return rows + _open_rows(path) + _read_rows(path)


def _decode_step(shape: Shape) -> tuple[Meta, Step, StepRows]:
    """A decode step as a recorder writes it: top-20 logits, self-check of every layer."""
    trace = synthetic_trace(shape)
    step = trace.step(1)
    numbers = np.random.default_rng(0).standard_normal(20 + 2 * shape.layers).tolist()
    checks, scales = tuple(numbers[20 : 20 + shape.layers]), tuple(numbers[20 + shape.layers :])
    step = replace(
        step,
        top=(TopLogits(tuple(range(1000, 1020)), tuple(numbers[:20]), 10.0),),
        sites=(replace(step.sites[0], check_error=checks, check_scale=scales),),
    )
    return trace.meta, step, rows_of(trace, step)


def _numbered(step: Step, number: int) -> Step:
    group = step.caches[0]
    runs = ((Run(0, number + 1, 0, 0),),)
    group = replace(group, first_cell=number, attended=runs, kept=runs)
    parent = number - 1 if number else None
    return replace(step, number=number, parent=parent, caches=(group,))


def _append_row(path: Path, shape: Shape, size: int, what: str, goal: float) -> Row:
    """Append steps up to a size, each beside a plain write of as many bytes."""
    meta, step, rows = _decode_step(shape)
    spent: list[float] = []
    plain: list[float] = []
    number, beside = 0, path.with_suffix(".plain")
    with TraceWriter(path, meta) as writer, beside.open("wb", buffering=0) as other:
        while writer.size < size:
            numbered, before = _numbered(step, number), writer.size
            spent.append(_seconds(lambda one=numbered: writer.append(one, rows)))
            raw = bytes(writer.size - before)
            plain.append(_seconds(lambda raw=raw: other.write(raw)))
            if other.tell() > 256 << 20:
                other.seek(0)
            number += 1
        writer.end(Ending("length"))
    beside.unlink()
    note = (
        f"{median(spent) / median(plain):.1f}× plain write() of the same bytes; "
        f"mean {1e3 * sum(spent) / number:.2f} ms with tiles and index, {number} steps"
    )
    return Row(f"append a step ({what} of rows)", 1e3 * median(spent), "ms", goal, note)


def _open_rows(path: Path) -> list[Row]:
    size = path.stat().st_size / GIBIBYTE
    opened = median(_seconds(lambda: open_trace(path)) for _ in range(REPEATS))
    steps = len(open_trace(path))
    return [Row(f"open {size:.2f} GiB, {steps} steps", 1e3 * opened, "ms", 5.0, "page cache warm")]


def _read_rows(path: Path) -> list[Row]:
    trace = open_trace(path)
    last = min(PREFIX, len(trace)) - 1
    cases = (
        (f"K and V of {last + 1} tokens, one layer", lambda layer: _prefix(trace, last, layer)),
        (
            f"K of {last + 1} tokens, one head of one layer",
            lambda layer: [_head(trace, last, layer)],
        ),
    )
    return [_read_row(path, what, read) for what, read in cases]


def _prefix(trace: Trace, last: int, layer: int) -> list[np.ndarray]:
    view = trace.cache(last, layer)
    return [view.keys, view.values]


def _head(trace: Trace, last: int, layer: int) -> np.ndarray:
    found = trace.source.cells(layer, Tensor.KEYS, 0, last + 1, 5)
    if found is None:
        raise RuntimeError("the benchmark's own trace has no keys")
    return found


def _read_row(path: Path, what: str, read: Callable[[int], list[np.ndarray]]) -> Row:
    """Read layer after layer, in turns with plain reads of as many bytes."""
    size = sum(rows.nbytes for rows in read(0))
    spent, plain = [], []
    for layer in range(1, 1 + REPEATS):
        spent.append(_seconds(lambda layer=layer: read(layer)))
        plain.append(_seconds(lambda layer=layer: _plain_read(path, layer * size, size)))
    note = f"{size / (1 << 20):.1f} MiB in {1e3 * median(spent):.1f} ms"
    return Row(f"{what}, against plain pread of the same bytes", _ratio(spent, plain), note=note)


def _plain_read(path: Path, offset: int, size: int) -> None:
    """As many bytes, in the pieces that a tile has for one layer."""
    fd = os.open(path, os.O_RDONLY)
    try:
        piece = size // 64
        for start in range(offset, offset + size, piece):
            os.pread(fd, piece, start)
    finally:
        os.close(fd)


def _ratio(spent: list[float], plain: list[float]) -> float:
    return median(one / other for one, other in zip(spent, plain, strict=True))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(markdown(NAME, run()))
