"""Writing what can be read of a damaged or torn trace to a new, whole one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from kvtrace.errors import TraceError
from kvtrace.files.extents import StepRows
from kvtrace.files.source import FileSource
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import Ending, Source, Step, Tensor
from kvtrace.trace.dtypes import Array

_MOST_LOST = 1000


class Stored(Source, Protocol):
    """A source that hands out everything a file holds."""

    def written(self, step: int, layer: int, tensor: Tensor) -> Array | None:
        """What a step wrote of a site or cache layer, [sequences, heads, rows, dim]."""

    def pass_numbers(self, lane: str) -> Sequence[int]:
        """Numbers of the passes of a lane."""


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
    """Copy every readable step, comparison, pass and note.

    A step with one damaged tensor is left out whole: half a step would read as a whole one.

    Raises:
        TraceError: No step can be read; `output` was not touched.
        OutputExistsError: `output` exists.
        WriteError: The disk is full, or fails.
    """
    source = FileSource(path)
    if not any(_whole(source, number) for number in source.step_numbers()):
        raise TraceError(
            f"{source.name}: not one whole step can be read; nothing to recover. "
            "Use another copy, or record again."
        )
    with TraceWriter(output, source.meta, force=force) as writer:
        saved, lost = copy(source, writer)
        lost += [f"step {number} is not in the file" for number in _gaps(source.step_numbers())]
        if source.ending is None:
            lost.append("the recording did not end: steps after the last one are not in the file")
        writer.end(source.ending or Ending("recovered", "recovered from an incomplete trace"))
    text = tuple(dict.fromkeys([*lost, *(damage.text for damage in source.damage)]))
    return Recovery(saved, bool(text), text)


def copy(source: Stored, writer: TraceWriter) -> tuple[int, list[str]]:
    """Copy steps, comparisons, passes and notes, a step at a time.

    Returns:
        Steps copied, and what was lost, in sentences.
    """
    lost: list[str] = []
    saved = 0
    for number in source.step_numbers():
        saved += _kept(partial(_copy_step, source, writer, number, lost), lost)
    _copy_passes(source, writer, lost)
    for note in source.notes:
        writer.note(note)
    return saved, lost


def _whole(source: FileSource, number: int) -> bool:
    try:
        _rows(source, source.step(number))
    except TraceError:
        return False
    return True


def _kept(copy: Callable[[], None], lost: list[str]) -> bool:
    """Whether something could be copied; what could not is said."""
    try:
        copy()
    except TraceError as error:
        lost.append(str(error))
        return False
    return True


def _gaps(numbers: Sequence[int]) -> list[int]:
    """Numbers that are missing between the steps that are there."""
    pairs = zip([-1, *numbers], numbers, strict=False)
    missing = (number for before, after in pairs for number in range(before + 1, after))
    return list(islice(missing, _MOST_LOST))


def _copy_step(source: Stored, writer: TraceWriter, number: int, lost: list[str]) -> None:
    step = source.step(number)
    writer.append(step, _rows(source, step))
    for lane in source.meta.lanes:
        _kept(partial(_copy_comparison, source, writer, step, lane.name), lost)


def _copy_comparison(source: Stored, writer: TraceWriter, step: Step, lane: str) -> None:
    comparison = source.lane_step(lane, step.number)
    if comparison is not None:
        writer.compare(comparison)


def _copy_passes(source: Stored, writer: TraceWriter, lost: list[str]) -> None:
    for lane in source.meta.lanes:
        for number in source.pass_numbers(lane.name):
            _kept(partial(_copy_pass, source, writer, lane.name, number), lost)


def _copy_pass(source: Stored, writer: TraceWriter, lane: str, number: int) -> None:
    step = source.pass_step(lane, number)
    if step is not None:
        rows = _gathered(
            step,
            lambda tensor, index: source.pass_rows(lane, number, tensor, index, None),
            lambda site: source.pass_mask(lane, number, site),
            lambda site: source.pass_bias(lane, number, site),
        )
        writer.keep_pass(lane, step, rows)


def _rows(source: Stored, step: Step) -> StepRows:
    """All rows of a step as they were stored."""
    number = step.number
    return _gathered(
        step,
        lambda tensor, index: source.written(number, index, tensor),
        lambda site: source.full_mask(number, site),
        lambda site: source.bias(number, site),
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
