"""Writing what can be read of a damaged or torn trace to a new, whole one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvtrace.errors import TraceError
from kvtrace.files.extents import StepRows
from kvtrace.files.source import FileSource
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import CACHED, Ending, Step, Tensor
from kvtrace.trace.dtypes import Array


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was saved.

    Attributes:
        steps: Steps written.
        lossy: Something could not be read: steps, tensors, or how it ended.
        text: What was lost, in sentences.
    """

    steps: int
    lossy: bool
    text: tuple[str, ...]


def recover(path: Path, output: Path, *, force: bool = False) -> Recovery:
    """Copy every readable step, comparison and note.

    A step with one damaged tensor is left out whole: half a step would read as a whole one.

    Raises:
        TraceError: Nothing can be read.
        OutputExistsError: `output` exists.
        WriteError: The disk is full, or fails.
    """
    source = FileSource(path)
    numbers = source.step_numbers()
    lost = [damage.text for damage in source.damage]
    saved = 0
    with TraceWriter(output, source.meta, force=force) as writer:
        for number in numbers:
            try:
                step = source.step(number)
                rows = _rows(source, step, CACHED)
            except TraceError as error:
                lost.append(str(error))
                continue
            writer.append(step, rows)
            saved += 1
            _copy_lanes(source, writer, step, lost)
        for note in source.notes:
            writer.note(note)
        gap = source.lost_steps()
        lost += [f"step {number} is not in the file" for number in gap]
        if source.ending is None:
            lost.append("the recording did not end: steps after the last one are not in the file")
            writer.end(Ending("recovered", "recovered from an incomplete trace"))
        else:
            writer.end(source.ending)
    return Recovery(saved, bool(lost), tuple(lost))


def _copy_lanes(source: FileSource, writer: TraceWriter, step: Step, lost: list[str]) -> None:
    for lane in source.meta.lanes:
        try:
            comparison = source.lane_step(lane.name, step.number)
            if comparison is not None:
                rows = _rows(source, step, lane.name) if comparison.rows_stored else None
                writer.compare(comparison, rows)
        except TraceError as error:
            lost.append(str(error))


def _rows(source: FileSource, step: Step, lane: str) -> StepRows:
    """All rows of a step as they were stored."""
    queries: dict[int, Array] = {}
    output: dict[int, Array] = {}
    masks: dict[int, Array] = {}
    biases: dict[int, Array] = {}
    for group in step.sites:
        for site in group.sites:
            for tensor, into in ((Tensor.QUERIES, queries), (Tensor.OUTPUT, output)):
                found = source.site_rows(step.number, site, tensor, lane, None)
                if found is not None:
                    into[site] = found
            if lane == CACHED and group.mask.full:
                masks[site] = _required(source.full_mask(step.number, site), "mask", step)
            if lane == CACHED and group.mask.bias:
                biases[site] = _required(source.bias(step.number, site), "bias", step)
    keys: dict[int, Array] = {}
    values: dict[int, Array] = {}
    for cache in step.caches:
        for layer in cache.layers if cache.rows else ():
            for tensor, into in ((Tensor.KEYS, keys), (Tensor.VALUES, values)):
                rows = source.written(step.number, layer, tensor, lane)
                if rows is not None:
                    into[layer] = np.ascontiguousarray(rows)
    return StepRows(queries, output, keys, values, masks, biases)


def _required(found: Array | None, what: str, step: Step) -> Array:
    if found is None:
        raise TraceError(f"step {step.number}: the {what} is missing.")
    return found
