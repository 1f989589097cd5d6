"""Writing what can be read of a damaged or torn trace to a new, whole one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct

from kvtrace.errors import TraceError
from kvtrace.files.disk import check_other
from kvtrace.files.reading.source import FileSource
from kvtrace.files.reading.stored import Stored, rows_of_pass, rows_of_step
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import NOT_RECOVERED, RECOVERED, Ending, Note, Step, Trace


class Loss(Struct, frozen=True):
    """Something that could not be copied.

    Attributes:
        text: What, in a sentence.
        step: It, or rows of it; None: of another lane, or of the whole.
    """

    text: str
    step: int | None = None


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

    A step without its rows, or a mask or bias, is kept: reading them says that they are not
    recorded. Notes in the copy name all that was lost.

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
        gone = Trace(source).missing  # the copy lacks them as visibly
        beside = [*gone]
        if source.ending is None:
            beside.append("the recording did not end: steps after the last one are not in the file")
        lost += [Loss(text) for text in (*beside, *(damage.text for damage in source.damage))]
        lost = _once(source.name, lost)
        write_down([one for one in lost if one.text not in gone], writer)
        writer.end(source.ending or Ending(RECOVERED, "recovered from an incomplete trace"))
    return Recovery(saved, bool(lost), tuple(one.text for one in lost))


def copy(source: Stored, writer: TraceWriter) -> tuple[int, list[Loss]]:
    """Copy steps, comparisons, passes and notes, a step at a time.

    Returns:
        Steps copied, and what was lost.
    """
    lost: list[Loss] = []
    saved = 0
    for number in source.step_numbers():
        saved += _kept(partial(_copy_step, source, writer, number, lost), lost, number)
    _copy_passes(source, writer, lost)
    for note in source.notes:
        writer.note(note)
    return saved, lost


def write_down(lost: Sequence[Loss], writer: TraceWriter) -> None:
    """Say in the copy what it lacks."""
    for one in lost:
        writer.note(Note("note", f"{NOT_RECOVERED} {one.text}", step=one.step))


def _once(name: str, lost: Sequence[Loss]) -> list[Loss]:
    """Each loss once; of those that are told with and without their place or cause, the former."""
    each = {one.text: one for one in reversed(lost)}  # the first of a text stays
    start = f"{name}: "
    longer = [text.removeprefix(start) for text in each if start in text]
    short = {text.partition(more)[0] for text in longer for more in (" at byte ", f": {start}")}
    return [one for one in dict.fromkeys(lost) if one == each[one.text] and one.text not in short]


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


def _kept(copy: Callable[[], None], lost: list[Loss], step: int | None = None) -> bool:
    """Whether something could be copied; what could not is said."""
    try:
        copy()
    except TraceError as error:
        lost.append(Loss(str(error), step))
        return False
    return True


def _copy_step(source: Stored, writer: TraceWriter, number: int, lost: list[Loss]) -> None:
    step = source.step(number)
    missing: list[str] = []
    writer.append(step, rows_of_step(source, step, missing))
    lost += [Loss(text, number) for text in missing]
    for lane in source.meta.lanes:
        _kept(partial(_copy_comparison, source, writer, step, lane.name), lost)


def _copy_comparison(source: Stored, writer: TraceWriter, step: Step, lane: str) -> None:
    comparison = source.lane_step(lane, step.number)
    if comparison is not None:
        writer.compare(comparison)


def _copy_passes(source: Stored, writer: TraceWriter, lost: list[Loss]) -> None:
    for lane in source.meta.lanes:
        for number in source.pass_numbers(lane.name):
            _kept(partial(_copy_pass, source, writer, lane.name, number), lost)


def _copy_pass(source: Stored, writer: TraceWriter, lane: str, number: int) -> None:
    step = source.pass_step(lane, number)
    if step is not None:
        rows = rows_of_pass(source, lane, step)
        writer.keep_pass(lane, step, rows)
