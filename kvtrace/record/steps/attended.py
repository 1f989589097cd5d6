"""What the attention of one forward did: sites, masks, rows to copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from msgspec.structs import replace
from torch import Tensor

from kvtrace.files import StepRows
from kvtrace.record.cache.step import LedgerStep
from kvtrace.record.capture.alike import Batch
from kvtrace.record.capture.forward import Forward
from kvtrace.record.steps.masks import Compact, Compactor
from kvtrace.record.steps.rows import Copied, Copying, Name
from kvtrace.record.steps.sites import Sites
from kvtrace.trace import Mask, SiteStep

Checked = tuple[float, float]
"""(error, scale) of the self-check of one call."""


@dataclass(slots=True)
class Attended:
    """The attention of one forward, as the trace will say it.

    Attributes:
        sites: Site of each call, in order.
        masks: Of each call.
        new: Query rows of each call, per sequence.
    """

    sites: list[int] = field(default_factory=list)
    masks: list[Compact] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    copying: Copying = field(default_factory=Copying)

    def collect(
        self,
        forward: Forward,
        entry: LedgerStep,
        sites: Sites,
        compactor: Compactor,
        before: list[int] | None,
        dtypes: Sequence[torch.dtype],
    ) -> None:
        """Name the sites, read the masks, start the copy of all rows.

        Args:
            forward: It.
            entry: What it did to the caches.
            sites: The table of sites.
            compactor: For the masks of this forward.
            before: Sites of the step before.
            dtypes: In which the rows of each cache layer are stored.
        """
        if entry.routine and before is not None:
            self.sites = before
            if forward.batch is not None:
                self._together(forward, forward.batch, entry, compactor)
                return
        else:
            self._name(forward, entry, sites)
        self.masks = [
            compactor.compact(call, entry.seq[store], entry.slots.get(store))
            for call, store in zip(forward.calls, entry.stores, strict=True)
        ]
        self.new = [call.queries.shape[2] for call in forward.calls]
        kinds = [sites.dtypes[site] for site in self.sites]
        self.copying.add("q", self.sites, _as(kinds, [call.queries for call in forward.calls]))
        self.copying.add("o", self.sites, _as(kinds, [call.output for call in forward.calls]))
        stores, rows = list(entry.rows), list(entry.rows.values())
        kinds = [dtypes[store] for store in stores]
        self.copying.add("k", stores, _as(kinds, [keys for keys, _ in rows]))
        self.copying.add("v", stores, _as(kinds, [values for _, values in rows]))
        self.copying.start()

    def _together(
        self, forward: Forward, batch: Batch, entry: LedgerStep, compactor: Compactor
    ) -> None:
        """The same of a step like the one before: one mask, and rows that are together."""
        compact = mask_of(forward, batch, compactor)
        self.masks = [compact] * len(self.sites)
        self.new = [forward.new] * len(self.sites)
        queries, output, keys, values = batch.pattern.each
        stores = list(entry.seq)
        self.copying.add_whole("q", self.sites, batch.queries, queries)
        self.copying.add_whole("o", self.sites, batch.output, output)
        self.copying.add_whole("k", stores, batch.keys, keys)
        self.copying.add_whole("v", stores, batch.values, values)
        self.copying.start()

    def _name(self, forward: Forward, entry: LedgerStep, sites: Sites) -> None:
        """The site of each call."""
        readers: dict[int, int] = {}
        for call, read, store in zip(forward.calls, entry.reads, entry.stores, strict=True):
            if call.layer < 0 and read.update is not None:
                # a module that is shared by layers knows none: its caller says whose cache it is
                call = replace(call, layer=forward.updates[read.update].layer)
            first = readers.get(store)
            if first is not None and sites.sites[first].module == call.module:
                first = None
            site = sites.of(call, read, store, first)
            readers.setdefault(store, site)
            self.sites.append(site)

    def step_rows(self, copied: Copied) -> StepRows:
        """The rows, by site and cache layer."""
        masks = {
            site: compact.full
            for site, compact in zip(self.sites, self.masks, strict=True)
            if compact.full is not None
        }
        biases = {
            site: compact.bias
            for site, compact in zip(self.sites, self.masks, strict=True)
            if compact.bias is not None
        }
        queries, output, keys, values = (copied.of(kind) for kind in "qokv")
        return StepRows(queries, output, keys, values, masks, biases)

    def site_steps(
        self, copied: Copied, checked: Mapping[int, Checked], stores: Sequence[int], step_new: int
    ) -> tuple[SiteStep, ...]:
        """Sites with the same mask together.

        Args:
            copied: Their rows.
            checked: Place of a call to the outcome of its self-check.
            stores: Cache layer of each call.
            step_new: Tokens of the step, per sequence.
        """
        bad = {} if copied.finite else dict(_nonfinite(copied))
        largest = _largest(copied)
        groups: dict[tuple[int, int], list[int]] = {}
        masks: dict[tuple[Mask, int], list[int]] = {}
        for place, (compact, new) in enumerate(zip(self.masks, self.new, strict=True)):
            members = groups.get((id(compact), new))
            if members is None:
                members = masks.setdefault((compact.mask, new), [])
                groups[id(compact), new] = members
            members.append(place)
        out = []
        for (mask, new), places in masks.items():
            sites = [self.sites[place] for place in places]
            outcomes = [checked.get(place) for place in places] if checked else [None] * len(places)
            counts = (0,) * len(places)
            if bad:
                counts = tuple(_count(bad, self.sites[place], stores[place]) for place in places)
            out.append(
                SiteStep(
                    tuple(sites),
                    mask,
                    tuple([None if one is None else one[0] for one in outcomes]),
                    tuple([largest.get(site, 0.0) for site in sites]),
                    counts,
                    None if new == step_new else new,
                )
            )
        return tuple(out)


def mask_of(forward: Forward, batch: Batch, compactor: Compactor) -> Compact:
    """The one mask of a step like the one before."""
    if batch.mask is None:
        return compactor.plain(batch.seq - forward.new)
    return compactor.compact(forward.calls[0], batch.seq)


def _count(bad: Mapping[Name, int], site: int, store: int) -> int:
    """NaN and Inf in the rows of a site and of the cache layer it reads."""
    names: list[Name] = [("q", site), ("o", site), ("k", store), ("v", store)]
    return sum(bad.get(name, 0) for name in names)


def _nonfinite(copied: Copied) -> Iterator[tuple[Name, int]]:
    for stack in copied.stacks:
        yield from stack.nonfinite()


def _largest(copied: Copied) -> dict[int, float]:
    """Site to its largest finite |output|."""
    found: dict[int, float] = {}
    for stack in copied.stacks:
        if stack.kind == "o":
            found.update(zip(stack.indices, stack.largest(), strict=True))
    return found


def _as(dtypes: Sequence[torch.dtype], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors in the dtypes they are stored in: that of a layer may hold two kinds of numbers."""
    pairs = zip(tensors, dtypes, strict=True)
    return [one if one.dtype == dtype else one.to(dtype) for one, dtype in pairs]
