"""Everything a trace says, item by item, so that two readings can be compared."""

from __future__ import annotations

import numpy as np

from kvtrace.errors import TraceError
from kvtrace.trace import CacheLayer, Tensor, Trace

LOST = "lost"


def read_all(trace: Trace) -> dict[object, object]:
    """Every item by its address; `LOST` for what raises a TraceError.

    Any other exception is a bug of the reader and passes through.
    """
    source, meta = trace.source, trace.meta
    items: dict[object, object] = {
        "meta": meta,
        "ending": trace.ending,
        "numbers": tuple(trace.numbers),
    }
    items |= {("note", place): note for place, note in enumerate(trace.notes)}
    items |= {("overview", int(row["number"])): row.tobytes() for row in trace.overview}
    items |= {("text", token): source.token_text(token) for token in range(12)}
    for number in trace.numbers:
        items["step", number] = attempt(source.step, number)
        items |= _rows_of_step(trace, number)
        for lane in meta.lanes:
            items |= _lane_at(trace, number, lane.name)
    for store in meta.cache_layers:
        for tensor in (Tensor.KEYS, Tensor.VALUES):
            items |= _cells(trace, store, tensor)
    return items


def _rows_of_step(trace: Trace, number: int) -> dict[object, object]:
    source, items = trace.source, {}
    for site in trace.meta.sites:
        for tensor in (Tensor.QUERIES, Tensor.OUTPUT):
            for head in (None, site.num_heads - 1):
                address = (number, site.index, tensor, head)
                items["rows", *address] = attempt(source.site_rows, *address)
        items["mask", number, site.index] = attempt(source.full_mask, number, site.index)
        items["bias", number, site.index] = attempt(source.bias, number, site.index)
    return items


def _lane_at(trace: Trace, number: int, lane: str) -> dict[object, object]:
    """A comparison, and the pass of that number."""
    source = trace.source
    items: dict[object, object] = {
        ("compared", lane, number): attempt(source.lane_step, lane, number),
        ("pass", lane, number): attempt(source.pass_step, lane, number),
    }
    for site in trace.meta.sites:
        for tensor in Tensor:
            address = (lane, number, tensor, site.index, None)
            items["pass rows", *address] = attempt(source.pass_rows, *address)
    return items


def _cells(trace: Trace, store: CacheLayer, tensor: Tensor) -> dict[object, object]:
    """The cells of every step alone, and the longest prefix, whole and of one head."""
    source, writes = trace.source, trace.source.writes(store.index)
    spans = [(int(one["first_cell"]), int(one["rows"] * one["sequences"])) for one in writes]
    addresses = [(store.index, tensor, *span, None) for span in spans]
    if spans:
        whole = (store.index, tensor, 0, sum(spans[-1]))
        addresses += [(*whole, None), (*whole, store.num_kv_heads - 1)]
    return {("cells", *address): attempt(source.cells, *address) for address in addresses}


def attempt(read, *address):
    try:
        return read(*address)
    except TraceError:
        return LOST


def same(one: object, other: object) -> bool:
    """Equality that looks into arrays and takes NaN for equal to itself."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        floats = one.dtype.kind == "f" and other.dtype.kind == "f"
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=floats)
    if type(one).__name__ == "LaneStep" and type(one) is type(other):
        return all(same(getattr(one, f), getattr(other, f)) for f in one.__slots__)
    return type(one) is type(other) and one == other


def wrong(found: dict[object, object], truth: dict[object, object]) -> list[object]:
    """Addresses whose item is neither true nor lost: damage read as good."""
    return [address for address, item in found.items() if not _true_or_lost(address, item, truth)]


def _true_or_lost(address: object, item: object, truth: dict[object, object]) -> bool:
    if item is None or (isinstance(item, str) and item == LOST):
        return True
    if address == "numbers":
        return set(item) <= set(truth["numbers"])
    if address not in truth:
        # a shorter prefix than any in the truth: its steps are compared one by one
        return address[0] == "cells" and address[3] == 0
    return same(item, truth[address])
