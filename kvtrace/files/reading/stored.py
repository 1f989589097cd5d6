"""Everything that a source holds of a step or pass, as it was stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol, runtime_checkable

from msgspec.structs import replace

from kvtrace.errors import TraceError
from kvtrace.files.extents import StepRows
from kvtrace.trace import CacheStep, Source, Step, Tensor, Trace
from kvtrace.trace.dtypes import Array

_CELLS_AT_ONCE = 1024


@runtime_checkable
class Stored(Source, Protocol):
    """A source that hands out everything a file holds."""

    def written(self, step: int, layer: int, tensor: Tensor) -> Array | None:
        """What a step wrote of a site or cache layer, [sequences, heads, rows, dim]."""

    def pass_numbers(self, lane: str) -> Sequence[int]:
        """Numbers of the passes of a lane."""


def held(trace: Trace, told: Callable[[float], None] = lambda _: None) -> Trace:
    """A trace of which every row was held against its checksum: `damage` names the rest.

    Args:
        trace: Of a file; any other is as it is.
        told: Hears which share of the steps has been read.
    """
    if isinstance(trace.source, Stored):
        read_everything(trace.source, told)
    return trace


def read_everything(source: Stored, told: Callable[[float], None]) -> None:
    """Hold every row against its checksum; `source.damage` then names what can't be read.

    Args:
        source: What to read.
        told: Hears which share of the steps has been read.
    """
    numbers = source.step_numbers()
    for done, number in enumerate(numbers):
        told(done / len(numbers))
        with suppress(TraceError):
            rows_of_step(source, source.step(number), [])
        for lane in source.meta.lanes:
            with suppress(TraceError):
                source.lane_step(lane.name, number)
    for lane in source.meta.lanes:
        for number in source.pass_numbers(lane.name):
            with suppress(TraceError):
                step = source.pass_step(lane.name, number)
                if step is not None:
                    rows_of_pass(source, lane.name, step)
    for store in source.meta.cache_layers:
        _read_copies(source, store.index)


def _read_copies(source: Stored, layer: int) -> None:
    """The cells of a cache layer, from the copies where there are any."""
    for write in source.writes(layer):
        end = int(write["first_cell"]) + int(write["rows"]) * int(write["sequences"])
        for first in range(int(write["first_cell"]), end, _CELLS_AT_ONCE):
            for tensor in (Tensor.KEYS, Tensor.VALUES):
                with suppress(TraceError):
                    source.cells(layer, tensor, first, min(_CELLS_AT_ONCE, end - first), None)


def rows_of_step(source: Stored, step: Step, lost: list[str]) -> StepRows:
    """The rows of a step as they were stored; those that can't be read are named in `lost`."""
    written = {layer: cache for cache in step.caches for layer in cache.layers}

    def tensor(tensor: Tensor, index: int) -> Array | None:
        try:
            return source.written(step.number, index, tensor)
        except TraceError as error:
            copied = None
            if tensor in (Tensor.KEYS, Tensor.VALUES):
                copied = _copied(source, written[index], index, tensor)
            if copied is None:
                lost.append(str(error))
            return copied

    def beside(read: Callable[[int, int], Array | None], site: int) -> Array | None:
        try:
            return read(step.number, site)
        except TraceError as error:
            lost.append(str(error))
            return None

    found = _gathered(step, tensor, partial(beside, source.full_mask), partial(beside, source.bias))
    both = found.keys.keys() & found.values.keys()
    return replace(
        found,
        keys={layer: found.keys[layer] for layer in found.keys if layer in both},
        values={layer: found.values[layer] for layer in found.values if layer in both},
    )


def _copied(source: Stored, cache: CacheStep, layer: int, tensor: Tensor) -> Array | None:
    """The same rows from the copies that are kept of decoded cells, if all of them are whole."""
    count = len(cache.attended) * cache.rows
    try:
        rows = source.cells(layer, tensor, cache.first_cell, count, None)
    except TraceError:
        return None
    heads, _, dim = rows.shape
    return rows.reshape(heads, -1, cache.rows, dim).transpose(1, 0, 2, 3)


def rows_of_pass(source: Stored, lane: str, step: Step) -> StepRows:
    """All rows of a pass.

    Raises:
        TraceError: Some are damaged.
    """
    number = step.number
    return _gathered(
        step,
        lambda tensor, index: source.pass_rows(lane, number, tensor, index, None),
        lambda site: source.pass_mask(lane, number, site),
        lambda site: source.pass_bias(lane, number, site),
    )


def _gathered(
    step: Step,
    tensor: Callable[[Tensor, int], Array | None],
    mask: Callable[[int], Array | None],
    bias: Callable[[int], Array | None],
) -> StepRows:
    sites = [(site, group.mask) for group in step.sites for site in group.sites]
    layers = [layer for cache in step.caches if cache.rows for layer in cache.layers]
    return StepRows(
        _there({site: tensor(Tensor.QUERIES, site) for site, _ in sites}),
        _there({site: tensor(Tensor.OUTPUT, site) for site, _ in sites}),
        _there({layer: tensor(Tensor.KEYS, layer) for layer in layers}),
        _there({layer: tensor(Tensor.VALUES, layer) for layer in layers}),
        _there({site: mask(site) for site, rules in sites if rules.full}),
        _there({site: bias(site) for site, rules in sites if rules.bias}),
    )


def _there(found: dict[int, Array | None]) -> dict[int, Array]:
    return {index: rows for index, rows in found.items() if rows is not None}
