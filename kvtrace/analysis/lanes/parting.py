"""Where the lanes part first, and where they differ most."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from msgspec import Struct

from kvtrace.analysis.heads.tensors import CACHE_TENSORS, attended_runs
from kvtrace.analysis.lanes.compare import Verdict, head_verdicts, tolerance_of, verdict
from kvtrace.errors import KvtraceError
from kvtrace.trace import LaneStep, Tensor, Trace
from kvtrace.trace.view import cells_of


class Place(Struct, frozen=True):
    """One element where the lanes differ.

    Attributes:
        step, layer: Where; layer is an index into `Meta.sites`.
        tensor: Which tensor.
        head: Of that tensor: a kv head for K and V.
        query_head: The first query head that reads it.
        sequence, new_row: Row of the batch, and row among the step's new ones.
        row: The same row among the attended ones; None for Q and output.
        dim: Feature.
        max_abs, relative: The difference.
        verdict: What it means.
    """

    step: int
    layer: int
    tensor: Tensor
    head: int
    query_head: int
    sequence: int
    new_row: int
    row: int | None
    dim: int
    max_abs: float
    relative: float
    verdict: Verdict

    @property
    def text(self) -> str:
        """Where and how much, for people."""
        letter = {0: "Q", 1: "K", 2: "V", 3: "output"}[int(self.tensor)]
        return (
            f"step {self.step}, layer {self.layer}, {letter} head {self.head}, dim {self.dim}: "
            f"{self.max_abs:.2e} ({self.relative:.1e} relative, {self.verdict})"
        )


def first_parting(
    trace: Trace, lane: str = "recomputed", steps: Iterable[int] | None = None
) -> Place | None:
    """The first place beyond the tolerance, in causal order: step, layer, Q, K, V, output.

    None: none among the steps that were compared.
    """
    tolerance = tolerance_of(trace, lane)
    for number in trace.numbers if steps is None else steps:
        relative = head_verdicts(trace, number, lane)
        if relative is None:
            continue
        found = np.argwhere(np.nan_to_num(relative, nan=-1.0, posinf=np.inf) > tolerance)
        if not found.size:
            continue
        layer, tensor = (int(i) for i in found[0][:2])
        head = int(np.nan_to_num(relative[layer, tensor], nan=-1.0, posinf=np.inf).argmax())
        return place(trace, number, (layer, tensor, head), lane)
    return None


def largest_difference(
    trace: Trace, lane: str = "recomputed", steps: Iterable[int] | None = None
) -> Place | None:
    """The element whose relative difference is largest; None: nothing was compared."""
    best: tuple[float, int, tuple[int, int, int]] | None = None
    for number in trace.numbers if steps is None else steps:
        relative = head_verdicts(trace, number, lane)
        if relative is None or not relative.size or bool(np.isnan(relative).all()):
            continue
        ranked = np.nan_to_num(relative, nan=-1.0, posinf=np.inf)
        layer, tensor, head = (int(i) for i in np.unravel_index(ranked.argmax(), ranked.shape))
        value = float(ranked[layer, tensor, head])
        if best is None or value > best[0]:
            best = value, number, (layer, tensor, head)
    return None if best is None else place(trace, best[1], best[2], lane)


def worst(trace: Trace, number: int, lane: str = "recomputed") -> Verdict:
    """The verdict over everything new in a step."""
    relative = head_verdicts(trace, number, lane)
    if relative is None or bool(np.isnan(relative).all()):
        return Verdict.NOT_COMPARED
    return verdict(float(np.nanmax(relative)), tolerance_of(trace, lane))


def place(trace: Trace, number: int, at: tuple[int, int, int], lane: str) -> Place | None:
    """The largest difference of (layer, tensor, head) in a step; None: not compared."""
    compared = trace.compared(number, lane)
    if compared is None or compared.row[at] < 0:
        return None
    layer, tensor, head = at
    site = trace.site(layer)
    kind = Tensor(tensor)
    group = site.num_heads // site.num_kv_heads if kind in CACHE_TENSORS else 1
    relative = float(compared.relative[at])
    return Place(
        step=number,
        layer=layer,
        tensor=kind,
        head=head,
        query_head=head * group,
        sequence=max(int(compared.sequence[at]), 0),
        new_row=int(compared.row[at]),
        row=_attended_row(trace, compared, at),
        dim=int(compared.dim[at]),
        max_abs=float(compared.max_abs[at]),
        relative=relative,
        verdict=verdict(relative, tolerance_of(trace, lane)),
    )


def _attended_row(trace: Trace, compared: LaneStep, at: tuple[int, int, int]) -> int | None:
    """Where a new K or V row stands among those the attention was given."""
    layer, tensor, _ = at
    if Tensor(tensor) not in CACHE_TENSORS:
        return None
    sequence = max(int(compared.sequence[at]), 0)
    try:
        group = trace.cache_step(compared.step, layer)
        runs = attended_runs(trace, compared.step, layer, sequence)
    except KvtraceError:
        return None
    cell = group.first_cell + sequence * group.rows + int(compared.row[at])
    found = np.flatnonzero(cells_of(runs) == cell)
    return int(found[0]) if found.size else None
