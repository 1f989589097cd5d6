"""Floor 2: the trace on disk. Standard library and numpy; knows nothing of torch or screens.

Reading is here, and what a viewer loads; `writer`, `notes`, `describe` and `recover` are in files
of their own.
"""

from pathlib import Path

from kvtrace.files.extents import Stacked, StepRows
from kvtrace.files.reading.source import FileSource
from kvtrace.paths import is_folder
from kvtrace.trace import Trace

__all__ = [
    "FileSource",
    "Stacked",
    "StepRows",
    "open_trace",
]


def open_trace(path: Path | str) -> Trace:
    """Open a trace, complete or not, also while it is being written.

    A folder is opened as the ranks of one run (see `kvtrace.files.ranks`): all heads of the model.

    Raises:
        TraceError: It is no trace, or nothing of it can be read.
        VersionError: A newer kvtrace wrote it.
    """
    path = Path(path)
    if is_folder(path):  # not of a name that no file can have: opening it says why
        from kvtrace.files.ranks import open_ranks, rank_files

        return Trace(open_ranks(rank_files(path)))
    return Trace(FileSource(path))
