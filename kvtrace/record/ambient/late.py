"""A trace file that is created when the first attention was seen, so that none is left without."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path

from kvtrace.files import StepRows
from kvtrace.files.writer import TraceWriter
from kvtrace.record.processes.ranks import own_path
from kvtrace.trace import Ending, LaneStep, Meta, Note, Rank, Step

WAITING = 256
"""Steps without attention that are kept in case attention follows."""


class LateWriter:
    """Takes in a trace as a `TraceWriter` does, and makes one when there is something to show."""

    def __init__(self, create: Callable[[Meta], TraceWriter]) -> None:
        """No file yet.

        Args:
            create: Makes the writer.
        """
        self.writer: TraceWriter | None = None
        self._create = create
        self._waiting: list[tuple[Step, StepRows]] = []

    def extend(self, meta: Meta) -> None:
        """META; the file begins with the first that names a site."""
        if self.writer is not None:
            self.writer.extend(meta)
        elif meta.sites:
            self.writer = self._create(meta)
            for step, rows in self._waiting:
                self.writer.append(step, rows)
            self._waiting.clear()

    def append(self, step: Step, rows: StepRows) -> None:
        """A step with its rows."""
        if self.writer is not None:
            self.writer.append(step, rows)
        elif len(self._waiting) < WAITING:
            self._waiting.append((step, rows))

    def compare(self, comparison: LaneStep) -> None:
        """A comparison."""
        if self.writer is not None:
            self.writer.compare(comparison)

    def keep_pass(self, lane: str, step: Step, rows: StepRows) -> None:
        """A lane's own forward."""
        if self.writer is not None:
            self.writer.keep_pass(lane, step, rows)

    def note(self, note: Note) -> None:
        """A note."""
        if self.writer is not None:
            self.writer.note(note)

    def end(self, ending: Ending) -> None:
        """Why it ended."""
        if self.writer is not None:
            self.writer.end(ending)

    def close(self) -> None:
        """Nothing more comes."""
        if self.writer is not None:
            self.writer.close()


def free_path(named: Path, taken: Container[Path], rank: Rank | None, *, force: bool) -> Path:
    """Where the next trace goes: the named file, else one beside it that is nobody's.

    Args:
        named: By the user.
        taken: By other traces of this recording.
        rank: Of this process, where several share the model.
        force: Replace files that exist.
    """
    path, number = own_path(named, rank), 1
    while path in taken or (number > 1 and path.exists() and not force):
        number += 1
        path = own_path(named.with_name(f"{named.stem}-{number}{named.suffix}"), rank)
    return path
