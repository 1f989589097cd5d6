"""Whether later tokens change what a model computes for earlier ones, without any cache.

Asked once lanes part: a model that looks ahead can't be equalled by any cache. Positions that are
encoded otherwise in a longer text move queries and keys alone, a scale that depends on the length
moves no row that goes in: those have names of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import inf

import torch
from torch import Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.compared.tolerance import tolerance
from kvtrace.record.lanes.given.extras import Extras
from kvtrace.record.lanes.given.tables import given_table
from kvtrace.record.lanes.passes.batch import Batch, CannotRecomputeError
from kvtrace.record.lanes.passes.recompute import Recomputer
from kvtrace.record.lanes.passes.repeats import varies
from kvtrace.record.lanes.passes.rounds import rounds_inside
from kvtrace.record.lanes.paths import Path
from kvtrace.trace import Lane, Note, Trace

_TIMES = 4.0
"""Times what is rounding in the dtype of the lane: in other shapes, numbers round otherwise."""
FEW = 2
"""Tokens of a short text; one alone may be taken for a step that has a cache."""


def looks_ahead(
    again: Recomputer, trace: Trace, lane: Lane, whole: tuple[Batch, Forward], extras: Extras
) -> Note | None:
    """A finding, where rows of the first step come out otherwise without the tokens after it.

    A note, where they come out otherwise in every call.

    Args:
        again: Computes the tokens again.
        trace: What was recorded.
        lane: The one that parts from the cached one. Narrow types are only asked whether they
            repeat: the choice of an expert may flip by rounding there.
        whole: What was computed over all tokens.
        extras: Arguments of the run besides tokens and cache.
    """
    batch, forward = whole
    nodes = [node for path in batch.paths for node in path.nodes]
    end = min(node.end for node in nodes)
    later = [node.step for node in nodes if node.end > end]
    whole_known = all(len(path.tokens) >= end for path in batch.paths)
    if not later or not whole_known:
        return None
    dtype = None if lane.dtype == trace.meta.model.dtype else lane.dtype
    cut = _cut(batch.paths, end, extras)
    try:
        short = again.run(cut, dtype=dtype)
    except CannotRecomputeError:
        return None
    # a wider lane is not exact to its own last bits: models round to float32 inside, in softmax,
    # norms and rotary tables
    limit, _ = tolerance("float32", max(1, len(trace.meta.sites)))
    wide = lane.dtype in ("float32", "float64")
    found = _moved(short.calls, forward.calls, cut.paths, _TIMES * limit) if wide else None
    few = max(path.padding for path in batch.paths) + FEW
    # where the caller said who sees whom, the first tokens see later ones on purpose
    if wide and found is None and few < end and given_table(cut.extra) is None:
        # layers that round by the largest number of a text: it may have been among the first
        end, fewer = few, _cut(batch.paths, few, extras)
        with suppress(CannotRecomputeError):
            tokens = again.run(fewer, dtype=dtype)
            found = _moved(tokens.calls, forward.calls, fewer.paths, _TIMES * limit)
    # the first rows of a longer text may draw the same random numbers
    if found is not None or dtype is None:
        random = varies(again, cut, short, dtype)
        if random is not None:
            return random
    if wide and (found is not None or dtype is None):
        moved, plain = (0.0 if found is None else found[1]), (forward if dtype is None else None)
        rounding = rounds_inside(again, batch, _TIMES * limit, moved=moved, plain=plain)
        if rounding is not None:
            return rounding
    if found is None:
        return None
    call, far = found
    sites = trace.meta.sites
    site = next((s.index for s in sites if (s.module, s.call) == (call.module, call.call)), None)
    module = call.module or "the model"
    first = "the first token" if end == 1 else f"the first {end} tokens"
    text = (
        f"NOT-CAUSAL: without any cache, rows of {first} in {module} move by "
        f"{far:.1e} of their largest value when the later tokens follow; no cache can equal that"
    )
    return Note("finding", text, step=min(later), site=site)


def _cut(paths: Sequence[Path], end: int, extras: Extras) -> Batch:
    """The same texts, of so many tokens."""
    cut = [
        Path(p.tokens[:end], p.padding, [], p.root, p.row, [n for n in p.nodes if n.end <= end])
        for p in paths
    ]
    return Batch(cut, [end - 1], extras.of(cut))


def _moved(
    short: Sequence[AttentionCall],
    whole: Sequence[AttentionCall],
    paths: Sequence[Path],
    limit: float,
) -> tuple[AttentionCall, float] | None:
    """The first attention whose rows moved, and how far.

    None also where the length alone explains it, by positions or by the scale.
    """
    rows = len(paths[0].tokens)
    known = {(call.module, call.call): call for call in whole if call.kind == "self"}
    for one in short:
        other = known.get((one.module, one.call))
        if other is None or one.queries.shape[2] != rows:
            continue
        far = [
            max(_apart(mine, theirs, place, path.padding, rows) for place, path in enumerate(paths))
            for mine, theirs in (
                (one.queries, other.queries),
                (one.values, other.values),
                (one.output, other.output),
            )
        ]
        if max(far) > limit:
            turned = far[0] > limit and far[1] <= limit
            return None if turned or _rescaled(one, other, limit, far) else (one, max(far))
    return None


def _rescaled(one: AttentionCall, other: AttentionCall, limit: float, far: Sequence[float]) -> bool:
    """Whether only the factor on the scores differs: it depends on the length, no row does."""
    factor = one.scale / other.scale if other.scale else inf
    return max(far[:2]) <= limit and abs(factor - 1) > limit


def _apart(mine: Tensor, theirs: Tensor, place: int, start: int, rows: int) -> float:
    """The largest difference of the rows that both have, over the largest number."""
    if mine.shape[2] < rows or theirs.shape[2] < rows or mine.shape[1] != theirs.shape[1]:
        return 0.0
    one, other = (x[place, :, start:rows].detach().float() for x in (mine, theirs))
    if one.shape != other.shape or not one.numel():
        return 0.0
    return float((one - other).abs().max() / other.abs().max().clamp(min=torch.finfo().tiny))
