"""The cached lane's rows of one site along one path, read back from the trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.record.lanes.paths import Node
from kvtrace.trace import CacheStep, Site, Step, Tensor, Trace, dtypes, stands_for_none
from kvtrace.trace.dtypes import Floats

NOWHERE = -1

MOST_BYTES = 64 << 20
"""Of rows that are remembered."""


class Rows(Struct, frozen=True):
    """Rows of several steps, one stretch after the other.

    Attributes:
        rows: [heads, rows, dim].
        where: Row of the path that each one belongs to, [rows].
        starts: First row of each stretch.
        nodes: What each stretch is.
    """

    rows: Floats
    where: NDArray[np.int64]
    starts: NDArray[np.int64]
    nodes: Sequence[Node]


@dataclass(slots=True)
class Memory:
    """Rows that were read for one lane, for the next to be held against: as far as they fit.

    Attributes:
        bytes_left: Room for more.
    """

    bytes_left: int = 0
    _known: dict[tuple[int, Tensor, tuple[Node, ...]], Rows | None] = field(default_factory=dict)

    def rows(
        self, site: int, tensor: Tensor, nodes: Sequence[Node], read: Callable[[], Rows | None]
    ) -> Rows | None:
        """Those of a site along some stretches.

        Args:
            site: Index of the site.
            tensor: Which.
            nodes: Stretches of one path.
            read: Reads them.
        """
        key = site, tensor, tuple(nodes)
        if key in self._known:
            return self._known[key]
        found = read()
        size = 0 if found is None else found.rows.nbytes
        if size <= self.bytes_left:
            self.bytes_left -= size
            self._known[key] = found
        return found


def site_rows(
    trace: Trace,
    site: Site,
    tensor: Tensor,
    nodes: Sequence[Node],
    read: dict[tuple[int, int], Floats],
) -> Rows | None:
    """QUERIES or OUTPUT of a site; None if nothing of it was recorded.

    Args:
        trace: The recorded run.
        site: Of whom.
        tensor: Which.
        nodes: Stretches of one path at whose steps the site attended.
        read: What was read of this tensor, by step and tensor: one read serves all sequences.
    """
    parts, there = [], []
    for node in nodes:
        key = (node.step, int(tensor))
        if key not in read:
            raw = trace.source.site_rows(node.step, site.index, tensor, None)
            if raw is None:
                continue
            read[key] = dtypes.widen(raw, site.dtype)
        parts.append(read[key][node.sequence])
        there.append(node)
    where = [
        _where(trace.step(node.step), site.index, node, part.shape[1])
        for node, part in zip(there, parts, strict=True)
    ]
    return _joined(parts, where, there)


def _where(step: Step, site: int, node: Node, rows: int) -> NDArray[np.int64]:
    """Row of the path of each query row; -1: nobody knows.

    A site may attend for the last tokens only, where nothing after it needs the others.
    """
    if rows == node.end - node.start:
        return np.arange(node.start, node.end)
    group = step.site_step(site)
    last = group is not None and group.mask.offset is not None and rows < node.end - node.start
    return np.arange(node.end - rows, node.end) if last else np.full(rows, -1, np.int64)


def kv_rows(
    trace: Trace,
    site: Site,
    tensor: Tensor,
    nodes: Sequence[Node],
    steps: Mapping[int, Step],
    place: int,
) -> Rows | None:
    """KEYS or VALUES that the steps wrote for a site, wherever its cache put them.

    Args:
        trace: The recorded run.
        site: Of whom.
        tensor: Which.
        nodes: Stretches of one path at whose steps the site attended.
        steps: Those steps.
        place: Of position 0 on the path: hidden rows are at its left, and some count from 1.
    """
    spans: list[tuple[int, int]] = []
    where, there = [], []
    for node in nodes:
        group = steps[node.step].cache_step(site.reads)
        if group is None or group.rows == 0:
            continue
        first = group.first_cell + node.sequence * group.rows
        spans.append((first, group.rows))
        in_turn = trace.meta.cache_layers[site.reads].held and not group.rewritten
        in_turn = in_turn and not any(stands_for_none(run.position) for run in group.attended[0])
        if site.kind != "cross" and in_turn and group.rows == node.end - node.start:
            where.append(np.arange(node.start, node.end))
        else:
            shift = 0 if site.kind == "cross" else place
            found = _positions(group, node.sequence, first)
            where.append(np.where(found == NOWHERE, NOWHERE, found + shift))
        there.append(node)
    dtype = trace.meta.cache_layers[site.reads].dtype
    read = _cells(trace, site.reads, tensor, spans)
    return _joined([dtypes.widen(part, dtype) for part in read], where, there)


def _positions(group: CacheStep, sequence: int, first: int) -> NDArray[np.int64]:
    """Logical position of each cell written, from where the attention found it; -1: nowhere."""
    out = np.full(group.rows, NOWHERE, np.int64)
    for run in group.attended[sequence]:
        low, high = max(run.cell, first), min(run.cell + run.count, first + group.rows)
        if low < high and not stands_for_none(run.position):
            start = run.position + low - run.cell
            out[low - first : high - first] = np.arange(start, start + high - low)
    return out


def _cells(
    trace: Trace, store: int, tensor: Tensor, spans: Sequence[tuple[int, int]]
) -> list[dtypes.Array]:
    """The cells of each span; spans that follow one another are read in one go."""
    parts: list[dtypes.Array] = []
    at = 0
    while at < len(spans):
        first, count = spans[at]
        end = at + 1
        while end < len(spans) and spans[end][0] == first + count:
            count += spans[end][1]
            end += 1
        rows = trace.source.cells(store, tensor, first, count, None)
        for start, length in spans[at:end]:
            parts.append(rows[:, start - first : start - first + length])
        at = end
    return parts


def _joined(
    parts: Sequence[Floats], where: Sequence[NDArray[np.int64]], nodes: Sequence[Node]
) -> Rows | None:
    if not parts or len(parts) != len(nodes):
        return None
    lengths = [part.shape[1] for part in parts]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    rows = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    return Rows(rows, np.concatenate(where), starts, nodes)
