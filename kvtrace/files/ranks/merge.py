"""Writing the traces of several ranks as one trace of the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvtrace.errors import TraceError
from kvtrace.files.disk import check_other
from kvtrace.files.ranks.find import open_ranks
from kvtrace.files.recover import Loss, Recovery, copy, write_down
from kvtrace.files.writer import TraceWriter


def merge(paths: Sequence[Path], output: Path, *, force: bool = False) -> Recovery:
    """Copy every step that all ranks tell alike, with the heads of all of them.

    One step is in memory at a time. A missing rank, and steps that are left out, make it lossy.

    Raises:
        TraceError: They are not ranks of one run, or have no whole step in common; `output` was
            not touched.
        OutputExistsError: `output` exists, or is one of `paths`.
        WriteError: The disk is full, or fails.
    """
    check_other(output, paths)
    source = open_ranks(paths, output.name)
    if not source.step_numbers():
        raise TraceError(f"{source.name}: not one step is in all ranks; there is nothing to merge.")
    with TraceWriter(output, source.meta, force=force) as writer:
        saved, lost = copy(source, writer)
        write_down(lost, writer)
        if source.ending is not None:
            writer.end(source.ending)
        else:
            lost.append(Loss("not every rank says how the recording ended"))
    told = (
        *(one.text for one in lost),
        *source.left_out(),
        *(damage.text for damage in source.damage),
    )
    text = tuple(dict.fromkeys(told))
    return Recovery(saved, bool(text), text)
