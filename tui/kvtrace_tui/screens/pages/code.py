"""The model's own code of a layer's attention, with the shapes and the FLOPs of this step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvtrace import units
from kvtrace.errors import KvtraceError
from kvtrace.text import safe
from kvtrace.trace import Site, Trace
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece
from kvtrace_tui.panes.pane import broken
from kvtrace_tui.sources import Source

Row = Sequence[Piece]
_LEVELS = {
    1: "seen through transformers' attention interface",
    2: "seen at scaled_dot_product_attention and its kin",
    3: "seen by following the data through its softmax",
    4: "named by its model",
}


def code_rows(
    trace: Trace, number: int, layer: int, source: Source, width: int
) -> tuple[list[Row], int, int]:
    """All lines, how many of them are about the whole, and the number of the one that is meant.

    What is about the whole is broken into lines of a width; code is as it is written.

    Raises:
        MissingError: There is no such layer.
    """
    site = trace.site(layer)
    about = (*_about(site), *_shapes(trace, number, site), *_where(source))
    rows: list[Row] = [[], *(line for row in about for line in broken(row, width, indent=9)), []]
    head, at = len(rows), 0
    gutter = len(str(len(source.lines)))
    for index, text in enumerate(source.lines, 1):
        here = index in (source.line, source.scores)
        at = len(rows) if index == source.line else at
        style = ink.SELECTED if here else ink.DIM
        rows.append([
            (" ▸ " if here else "   ", ink.ACCENT),
            (f"{index:>{gutter}}  ", style),
            (text, ink.STRONG if here else ink.TEXT),
        ])  # fmt: skip
    return rows, head, at


def _about(site: Site) -> Iterator[Row]:
    call = f", call {site.call} in a forward" if site.call else ""
    yield [
        (f" layer {site.index}  ", ink.STRONG),
        (safe(site.module, 120) or "the model", ink.TOKEN),
        (f"{call}  {safe(site.kind, 20)}-attention, ", ink.DIM),
        (_LEVELS.get(site.level, f"level {site.level}"), ink.DIM),
    ]


def _shapes(trace: Trace, number: int, site: Site) -> Iterator[Row]:
    """What went through it in this step, and what its two products cost, with and without cache."""
    try:
        new = trace.step(number).new_at(site.index)
        group = trace.cache_step(number, site.index)
    except KvtraceError as error:
        yield [(f" {safe(str(error), 300)}", ink.WARN)]
        return
    seq = max((sum(run.count for run in runs) for runs in group.attended), default=0)
    heads, kv = site.num_heads, site.num_kv_heads
    yield [
        (f" step {number}  ", ink.STRONG),
        (f"q [{heads}, {new}, {site.key_dim}]  k [{kv}, {seq}, {site.key_dim}]  "
         f"v [{kv}, {seq}, {site.value_dim}]  scores [{heads}, {new}, {seq}]  "
         f"output [{heads}, {new}, {site.value_dim}]", ink.TEXT),
    ]  # fmt: skip
    for name, width in (("q·kᵀ", site.key_dim), ("weights·v", site.value_dim)):
        cost = 2 * heads * new * seq * width * len(group.attended)
        yield [
            (f"   {name:<10}", ink.DIM),
            (f"2 × {heads} × {new} × {seq} × {width} = ", ink.DIM),
            (units.flops(cost), ink.CACHED),
            (_without(site, new, seq, width, len(group.attended)), ink.RECOMPUTED),
        ]


def _without(site: Site, new: int, seq: int, width: int, sequences: int) -> str:
    """The same product over all rows, where that is another number."""
    if site.kind != "self" or site.window or new >= seq:
        return ""
    cost = 2 * site.num_heads * seq * seq * width * sequences
    return f"   without the cache {seq} queries: {units.flops(cost)}"


def _where(source: Source) -> Iterator[Row]:
    yield [
        (f" {source.name or 'code'}  ", ink.STRONG),
        (source.path, ink.DIM),
        (f"  {source.remark}" if source.remark else "", ink.WARN if not source.lines else ink.DIM),
    ]
