"""Adding a note to a trace that is closed."""

from __future__ import annotations

from pathlib import Path

from kvtrace.errors import TraceError
from kvtrace.files import codec
from kvtrace.files.disk import Appender
from kvtrace.files.layout import NO_IDENTITY, Kind
from kvtrace.files.packing import packed
from kvtrace.files.reading.catalog import Catalog
from kvtrace.files.reading.frames import FrameFile
from kvtrace.trace import Note


def append_note(path: Path, note: Note) -> None:
    """Append a note after everything else.

    Raises:
        TraceError: It is no trace, or its end is torn (recover it first).
        OutputExistsError: Somebody is writing it.
        WriteError: The disk is full, or fails.
    """
    opened = FrameFile(path)
    file = Appender(path, append=True)
    try:
        catalog = Catalog(opened)
        if catalog.end != file.size:
            raise TraceError(
                f"{opened.name}: its end is torn at byte {catalog.end}; "
                "run `kvtrace recover` and add the note to what that writes."
            )
        identity = opened.identity or NO_IDENTITY
        _, pieces = packed(Kind.NOTE, 0, catalog.next_sequence, identity, codec.encode(note))
        file.append(b"".join(pieces))
    finally:
        file.close()
