"""Writing what can be read of a damaged or torn trace to a new, whole one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec import Struct

from kvtrace.errors import TraceError
from kvtrace.files.disk import check_other
from kvtrace.files.reading.source import FileSource
from kvtrace.files.reading.stored import Stored, rows_of_pass, rows_of_step
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import RECOVERED, Ending, Note, Step, Trace


class Recovery(Struct, frozen=True):
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

    A step without its rows, or a mask or bias, is kept, and a note in it names them: reading them
    says that they are not recorded.

    Raises:
        TraceError: No step can be read; `output` was not touched.
        OutputExistsError: `output` exists, or is `path`.
        WriteError: The disk is full, or fails.
    """
    check_other(output, [path])
    source = _opened(path)
    if not any(_readable(source, number) for number in source.step_numbers()):
        raise TraceError(
            f"{source.name}: not one step can be read; nothing to recover. "
            "Use another copy, or record again."
        )
    with TraceWriter(output, source.meta, force=force) as writer:
        saved, lost = copy(source, writer)
        lost += Trace(source).missing
        if source.ending is None:
            lost.append("the recording did not end: steps after the last one are not in the file")
        writer.end(source.ending or Ending(RECOVERED, "recovered from an incomplete trace"))
    told = dict.fromkeys([*lost, *(damage.text for damage in source.damage)])
    name = f"{source.name}: "
    at_byte = {one.removeprefix(name).partition(" at byte ")[0] for one in told if name in one}
    text = tuple(one for one in told if one not in at_byte)  # the same, without the place
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


def _opened(path: Path) -> FileSource:
    """The file, also where its first bytes are damaged.

    Raises:
        TraceError: What is wrong with it, if it has nothing else either.
    """
    try:
        return FileSource(path)
    except TraceError as error:
        try:
            return FileSource(path, without_start=True)
        except TraceError:
            raise error from None


def _readable(source: FileSource, number: int) -> bool:
    try:
        source.step(number)
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


def _copy_step(source: Stored, writer: TraceWriter, number: int, lost: list[str]) -> None:
    step = source.step(number)
    missing: list[str] = []
    writer.append(step, rows_of_step(source, step, missing))
    for text in missing:
        writer.note(Note("note", f"not recovered: {text}", step=number))
    lost += missing
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
        rows = rows_of_pass(source, lane, step)
        writer.keep_pass(lane, step, rows)
