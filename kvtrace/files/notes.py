"""Adding a note to a trace that is closed."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

from kvtrace.errors import TraceError
from kvtrace.files import codec
from kvtrace.files.catalog import Catalog
from kvtrace.files.disk import Appender
from kvtrace.files.frames import FrameFile
from kvtrace.files.layout import HEAD_BYTES, Head, Kind, aligned
from kvtrace.trace import Note


def append_note(path: Path, note: Note) -> None:
    """Append a note after everything else.

    Raises:
        TraceError: It is no trace, or its end is torn (recover it first).
        OutputExistsError: Somebody is writing it.
        WriteError: The disk is full, or fails.
    """
    catalog = Catalog(FrameFile(path))
    file = Appender(path, append=True)
    try:
        if catalog.end != file.size:
            raise TraceError(
                f"{catalog.file.name}: its end is torn at byte {catalog.end}; "
                "run `kvtrace recover` and add the note to what that writes."
            )
        body = codec.encode(note)
        head = Head(Kind.NOTE, 0, catalog.next_sequence, len(body), 0, 0, crc32(body))
        pad = bytes(aligned(HEAD_BYTES + len(body)) - HEAD_BYTES - len(body))
        file.append(head.pack() + body + pad)
    finally:
        file.close()
