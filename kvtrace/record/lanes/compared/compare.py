"""A recomputed batch of paths against the trace, site by site, some steps at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.compared import cached
from kvtrace.record.lanes.compared.differ import apart, beyond
from kvtrace.record.lanes.compared.heads import with_heads
from kvtrace.record.lanes.compared.margins import margins
from kvtrace.record.lanes.compared.tally import Tally
from kvtrace.record.lanes.passes.batch import Batch
from kvtrace.record.lanes.paths import Node, Path
from kvtrace.trace import Lane, Note, Site, Step, Tensor, Trace, stands_for_none
from kvtrace.trace.dtypes import Floats

STEPS_AT_ONCE = 128
"""Steps whose comparisons are in memory together."""


_SAME_SCALE, _NEARER = 1e-5, 0.05
"""Scales that differ by rounding; how much nearer queries are where the scale is in them."""


@dataclass(slots=True)
class Comparer:
    """Compares one lane with the cached one.

    Attributes:
        trace: What was recorded.
        lane: The other lane.
        memory: Rows that were read already.
        findings: What could not be compared, each said once.
    """

    trace: Trace
    lane: Lane
    memory: cached.Memory = field(default_factory=cached.Memory)
    findings: dict[str, Note] = field(default_factory=dict)
    _uneven: dict[str, int] = field(default_factory=dict)

    def compare(self, forward: Forward, batch: Batch, tally: Tally) -> None:
        """Enter the steps of a tally, as far as they lie on the paths of this batch."""
        calls = {(call.module, call.call): call for call in forward.calls}
        steps = {number: self.trace.step(number) for number in tally.steps}
        for site in self.trace.meta.sites:
            there = [step for step in steps.values() if step.site_step(site.index) is not None]
            if site.kind == "encoder" or not there:
                continue
            call = calls.get((site.module, site.call)) or _inside(site, forward.calls)
            if call is None:
                self.find("UNKNOWN", site, "did not attend without a cache, but did with it")
                continue
            _OneSite(self, site, call, batch, {step.number: step for step in there}).compare(tally)

    def at_scales(self, forward: Forward, batch: Batch) -> Forward:
        """A forward whose queries have the factor on q·k in them where the cached ones do.

        Two ways through a model may differ in that: one multiplies queries, the other scores.
        """
        steps = {node.step: self.trace.step(node.step) for one in batch.paths for node in one.nodes}
        sites = {(site.module, site.call): site for site in self.trace.meta.sites}
        changed: dict[int, AttentionCall] = {}
        for place, call in enumerate(forward.calls):
            site = sites.get((call.module, call.call))
            if site is None or not site.scale or site.kind == "encoder":
                continue
            factor = call.scale / site.scale
            if abs(factor - 1) < _SAME_SCALE:
                continue
            if _OneSite(self, site, call, batch, steps).has(factor):
                changed[place] = replace(call, queries=call.queries * factor, scale=site.scale)
        calls = tuple(changed.get(place, call) for place, call in enumerate(forward.calls))
        return replace(forward, calls=calls) if changed else forward

    def uneven(self, site: Site) -> None:
        """A site with rows that are not one a token: all of them are said together."""
        self._uneven.setdefault(site.module, site.index)
        first, more = next(iter(self._uneven)), len(self._uneven) - 1
        whole = (
            f"UNKNOWN: {first}{f' and {more} more' if more else ''}: rows that are not one a token "
            f"are others when the text is longer; {self.lane.name} lane not compared there"
        )
        self.findings["uneven"] = Note("finding", whole, site=self._uneven[first])

    def find(self, name: str, site: Site, text: str) -> None:
        """Something that can't be compared, under the name of a kind of divergence."""
        whole = f"{name}: {site.module} {text}; {self.lane.name} lane not compared there"
        self.findings.setdefault(whole, Note("finding", whole, site=site.index))


@dataclass(slots=True)
class _OneSite:
    """One site in one batch.

    Attributes:
        front: Rows in front of those of the tokens, which stand for none: learned ones.
        behind: Rows behind those, which stand for none: an encoder's, say.
    """

    comparer: Comparer
    site: Site
    call: AttentionCall
    batch: Batch
    steps: dict[int, Step]
    read: dict[tuple[int, int], Floats] = field(default_factory=dict)
    front: int = 0
    behind: int = 0

    def compare(self, tally: Tally) -> None:
        """All tensors, all paths."""
        uneven = self._uneven()
        for tensor in Tensor:
            kv = tensor in (Tensor.KEYS, Tensor.VALUES)
            if kv and self.site.source == "shared":
                continue
            if uneven[kv]:
                self.comparer.uneven(self.site)
                continue
            lane = self._lane(tensor, kv=kv)
            if lane is None:
                continue
            for place, path in enumerate(self.batch.paths):
                nodes = [
                    node
                    for node in path.nodes
                    if node.step in self.steps and path.compares(node.step)
                ]
                rows = self._rows(tensor, path, nodes, kv=kv) if nodes else None
                if rows is not None:
                    padding = 0 if kv and self.site.kind == "cross" else path.padding
                    self._enter(tally, tensor, rows, lane[place], padding)

    def has(self, factor: float) -> bool:
        """Whether this factor is what tells the lane's queries from the cached ones."""
        there = {n: one for n, one in self.steps.items() if one.site_step(self.site.index)}
        self.steps = there
        lane = self._lane(Tensor.QUERIES, kv=False) if there else None
        for place, path in enumerate(self.batch.paths if lane is not None else ()):
            nodes = [one for one in path.nodes if one.step in there and path.compares(one.step)]
            rows = self._rows(Tensor.QUERIES, path, nodes[:1], kv=False) if nodes else None
            if rows is None or lane is None:
                continue
            known = (rows.where >= path.padding) & (rows.where < lane.shape[2])
            mine, theirs = rows.rows[:, known], lane[place][:, rows.where[known]]
            near, far = (np.abs(mine - one).max(initial=0.0) for one in (theirs * factor, theirs))
            return bool(near < _NEARER * far)
        return False

    def _uneven(self) -> tuple[bool, bool]:
        """Whether rows are not one a token, so that a longer text has others.

        Returns:
            Of queries and output, and of keys and values.
        """
        lengths, around = set(), set()
        for step in self.steps.values():
            group = step.cache_step(self.site.reads)
            runs = group.attended[0] if group is not None and group.attended else ()
            lengths.add(sum(run.count for run in runs))
            none = [stands_for_none(run.position) for run in runs]
            if (none and all(none)) or step.new_at(self.site.index) > step.new:
                return True, True
            around.add(margins(runs))
        if around:
            found = around.pop()
            if around or found is None:
                return False, True
            self.front, self.behind = found
            if any(found) and self.call.keys.shape[2] != self.batch.rows + sum(found):
                return False, True
        return False, self.site.kind == "cross" and len(lengths) > 1

    def _rows(
        self, tensor: Tensor, path: Path, nodes: Sequence[Node], *, kv: bool
    ) -> cached.Rows | None:
        trace, site = self.comparer.trace, self.site

        def read() -> cached.Rows | None:
            if kv:
                return cached.kv_rows(
                    trace, site, tensor, nodes, self.steps, path.padding - path.first
                )
            return cached.site_rows(trace, site, tensor, nodes, self.read)

        return self.comparer.memory.rows(site.index, tensor, nodes, read)

    def _lane(self, tensor: Tensor, *, kv: bool) -> Floats | None:
        """The lane's tensor, [sequences, heads, rows, dim]; None, and a finding, if it misfits."""
        source = lane_tensor(self.call, tensor)
        site, heads = self.site, self.site.heads(tensor)
        if kv:
            source = with_heads(source, heads)[:, :, self.front :]
            source = source[:, :, : source.shape[2] - self.behind]
        cross = kv and site.kind == "cross"
        rows = source.shape[2] if cross else self.batch.rows
        wanted = (len(self.batch.paths), heads, rows, site.dim(tensor))
        if tuple(source.shape) != wanted:
            alike = self.call.queries.shape[1] == site.num_heads
            self.comparer.find(
                "KV-HEADS" if kv and alike and source.shape[1] != heads else "UNKNOWN",
                site,
                f"{tensor.name.lower()} are {list(source.shape)} without a cache, "
                f"expected {list(wanted)} from the cached run",
            )
            return None
        return as_floats(source)

    def _enter(
        self, tally: Tally, tensor: Tensor, rows: cached.Rows, lane: Floats, padding: int
    ) -> None:
        where = rows.where
        # what a padding token computes is nobody's promise
        known = (where >= padding) & (where < lane.shape[1])
        if not known.all():
            rows = _only(rows, known)
            where = rows.where
            if not len(where):
                return
        first, last = int(where[0]), int(where[-1])
        plain = last - first + 1 == len(where) and bool((np.diff(where) == 1).all())
        theirs = lane[:, first : last + 1] if plain else lane[:, where]
        mine = rows.rows.astype(lane.dtype, copy=False)
        found = apart(mine, theirs, rows.starts)
        steps = np.array([tally.place[node.step] for node in rows.nodes])
        sequences = np.array([node.sequence for node in rows.nodes])
        limit = self.comparer.lane.tolerance
        if tally.add(steps, self.site.index, int(tensor), sequences, found, limit):
            counts = beyond(mine, theirs, rows.starts, limit * found.reference)
            tally.count_beyond(steps, self.site.index, int(tensor), counts)


def _inside(site: Site, calls: Sequence[AttentionCall]) -> AttentionCall | None:
    """The site's call by a module inside of it: one that was put there during the run."""
    found = [call for call in calls if call.module.startswith(f"{site.module}.")]
    return found[site.call] if site.call < len(found) else None


def _only(rows: cached.Rows, known: NDArray[np.bool_]) -> cached.Rows:
    """Rows whose place in the path is known; stretches left without any are dropped."""
    counts = np.add.reduceat(known.astype(np.int64), rows.starts)
    kept = np.flatnonzero(counts)
    starts = np.concatenate([[0], np.cumsum(counts[kept])[:-1]]).astype(np.int64)
    nodes = [rows.nodes[int(one)] for one in kept]
    return cached.Rows(rows.rows[:, known], rows.where[known], starts[: len(kept)], nodes)


def lane_tensor(call: AttentionCall, tensor: Tensor) -> torch.Tensor:
    """One of the four tensors of a call."""
    return (call.queries, call.keys, call.values, call.output)[tensor]


def as_floats(tensor: torch.Tensor) -> Floats:
    """In main memory, float32 or float64."""
    wide = tensor.detach().to("cpu")
    if wide.dtype != torch.float64:
        wide = wide.float()
    found: Floats = wide.numpy()
    return found


def in_turn(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """Steps in portions."""
    for start in range(0, len(numbers), STEPS_AT_ONCE):
        yield numbers[start : start + STEPS_AT_ONCE]
