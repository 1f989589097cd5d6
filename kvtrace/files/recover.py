"""Writing what can be read of a damaged or torn trace to a new, whole one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

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
        lost += [f"step {number} is not in the file" for number in _gaps(numbers)]
        if source.ending is None:
            lost.append("the recording did not end: steps after the last one are not in the file")
            writer.end(Ending("recovered", "recovered from an incomplete trace"))
        else:
            writer.end(source.ending)
    return Recovery(saved, bool(lost), tuple(lost))


def _gaps(numbers: Sequence[int]) -> list[int]:
    """Numbers that are missing between the steps that are there; at most a thousand."""
    pairs = zip([-1, *numbers], numbers, strict=False)
    missing = (number for before, after in pairs for number in range(before + 1, after))
    return list(islice(missing, 1000))


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
    sites = [(site, group.mask) for group in step.sites for site in group.sites]
    layers = [layer for cache in step.caches if cache.rows for layer in cache.layers]
    number, own = step.number, lane == CACHED

    def of_sites(tensor: Tensor) -> dict[int, Array]:
        found = {site: source.site_rows(number, site, tensor, lane, None) for site, _ in sites}
        return _there(found)

    def of_layers(tensor: Tensor) -> dict[int, Array]:
        return _there({layer: source.written(number, layer, tensor, lane) for layer in layers})

    return StepRows(
        of_sites(Tensor.QUERIES),
        of_sites(Tensor.OUTPUT),
        of_layers(Tensor.KEYS),
        of_layers(Tensor.VALUES),
        _there({site: source.full_mask(number, site) for site, mask in sites if own and mask.full}),
        _there({site: source.bias(number, site) for site, mask in sites if own and mask.bias}),
    )


def _there(found: dict[int, Array | None]) -> dict[int, Array]:
    return {index: rows for index, rows in found.items() if rows is not None}
