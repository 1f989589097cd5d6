"""Floor 2: the trace on disk. Standard library and numpy; knows nothing of torch or screens."""

from pathlib import Path

from kvtrace.files.describe import FileReport, describe
from kvtrace.files.extents import StepRows
from kvtrace.files.notes import append_note
from kvtrace.files.recover import Recovery, recover
from kvtrace.files.source import FileSource
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import Trace

__all__ = [
    "FileReport",
    "FileSource",
    "Recovery",
    "StepRows",
    "TraceWriter",
    "append_note",
    "describe",
    "open_trace",
    "recover",
]


def open_trace(path: Path | str) -> Trace:
    """Open a trace, complete or not, also while it is being written.

    Raises:
        TraceError: It is no trace, or nothing of it can be read.
        VersionError: A newer kvtrace wrote it.
    """
    return Trace(FileSource(Path(path)))
