"""What the attention of one forward did: sites, masks, rows to copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from kvtrace.files import StepRows
from kvtrace.record.calls import AttentionCall
from kvtrace.record.forward import Forward
from kvtrace.record.ledger import LedgerStep
from kvtrace.record.masks import Compact, Compactor
from kvtrace.record.rows import Copied, Copying, nonfinite
from kvtrace.record.sites import Sites
from kvtrace.trace import Mask, SiteStep, dtypes
from kvtrace.trace.dtypes import Array

Checked = tuple[float, float]
"""(error, scale) of the self-check of one call."""


@dataclass(slots=True)
class Attended:
    """The attention of one forward, as the trace will say it.

    Attributes:
        sites: Site of each call, in order.
        calls: The calls themselves.
        masks: Of each call.
    """

    sites: list[int] = field(default_factory=list)
    calls: list[AttentionCall] = field(default_factory=list)
    masks: list[Compact] = field(default_factory=list)
    copying: Copying = field(default_factory=Copying)

    def collect(
        self, forward: Forward, entry: LedgerStep, sites: Sites, compactor: Compactor
    ) -> None:
        """Name the sites, read the masks, start the copy of all rows."""
        readers: dict[int, int] = {}
        for call, read, store in zip(forward.calls, entry.reads, entry.stores, strict=True):
            first = readers.get(store)
            if first is not None and sites.sites[first].module == call.module:
                first = None
            site = sites.of(call, read, store, first)
            readers.setdefault(store, site)
            self.sites.append(site)
            self.calls.append(call)
            self.masks.append(compactor.compact(call, entry.seq[store]))
        for site, call in zip(self.sites, self.calls, strict=True):
            self.copying.add(("q", site), call.queries)
        for site, call in zip(self.sites, self.calls, strict=True):
            self.copying.add(("o", site), call.output)
        for store, (keys, values) in entry.rows.items():
            self.copying.add(("k", store), keys)
            self.copying.add(("v", store), values)
        self.copying.start()

    def step_rows(self, copied: Copied) -> StepRows:
        """The rows, by site and cache layer."""
        by_kind: dict[str, dict[int, Array]] = {"q": {}, "o": {}, "k": {}, "v": {}}
        for name, rows in copied.rows.items():
            kind, index = name
            by_kind[kind][index] = rows
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
        return StepRows(by_kind["q"], by_kind["o"], by_kind["k"], by_kind["v"], masks, biases)

    def site_steps(
        self, copied: Copied, checked: Mapping[int, Checked], stores: Sequence[int]
    ) -> tuple[SiteStep, ...]:
        """Sites with the same mask together.

        Args:
            copied: Their rows.
            checked: Place of a call to the outcome of its self-check.
            stores: Cache layer of each call.
        """
        bad = _nonfinite(copied)
        groups: dict[Mask, list[int]] = {}
        for place, compact in enumerate(self.masks):
            groups.setdefault(compact.mask, []).append(place)
        largest = _largest(copied)
        out = []
        for mask, places in groups.items():
            errors, scales, counts = [], [], []
            for place in places:
                site, store = self.sites[place], stores[place]
                outcome = checked.get(place)
                errors.append(None if outcome is None else outcome[0])
                scales.append(largest.get(site, 0.0))
                counts.append(
                    sum(bad.get(key, 0) for key in (("q", site), ("o", site)))
                    + sum(bad.get(key, 0) for key in (("k", store), ("v", store)))
                    if bad
                    else 0
                )
            sites = tuple(self.sites[place] for place in places)
            out.append(SiteStep(sites, mask, tuple(errors), tuple(scales), tuple(counts)))
        return tuple(out)


def _nonfinite(copied: Copied) -> dict[object, int]:
    """Name to its number of NaN and Inf; empty when there are none at all."""
    found: dict[object, int] = {}
    for dtype, flat in copied.flat.items():
        if not nonfinite(flat, dtype).any():
            continue
        for name in copied.order[dtype]:
            count = int(nonfinite(copied.rows[name], dtype).sum())
            if count:
                found[name] = count
    return found


def _largest(copied: Copied) -> dict[int, float]:
    """Site to its largest finite |output|; outputs of one size are looked at together."""
    found: dict[int, float] = {}
    for dtype, flat in copied.flat.items():
        start = 0
        for size, names in groupby(copied.order[dtype], lambda name: copied.rows[name].size):
            batch = list(names)
            end = start + size * len(batch)
            outputs = [i for i, name in enumerate(batch) if name[0] == "o"]
            if outputs and size:
                block = flat[start:end].reshape(len(batch), size)[outputs[0] : outputs[-1] + 1]
                top = _max_abs(block, dtype)
                for name, value in zip(batch[outputs[0] : outputs[-1] + 1], top, strict=True):
                    found[name[1]] = value
            start = end
    return found


def _max_abs(rows: Array, dtype: str) -> list[float]:
    """Largest finite magnitude of each row."""
    wide = np.abs(dtypes.widen(rows, dtype))
    top = wide.max(axis=1)
    if not np.isfinite(top).all():
        top = np.where(np.isfinite(wide), wide, 0).max(axis=1)
    values: list[float] = top.tolist()
    return values
