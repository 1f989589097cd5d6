"""What takes in how other lanes compare, and how it learns of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import replace

from kvtrace.files import StepRows
from kvtrace.trace import Lane, LaneStep, Meta, Note, Step


class LaneSink(Protocol):
    """Takes in comparisons; a `TraceWriter` is one."""

    def compare(self, comparison: LaneStep) -> None:
        """A comparison; a later one of the same step replaces it."""

    def keep_pass(self, lane: str, step: Step, rows: StepRows) -> None:
        """A lane's own forward, whole."""

    def extend(self, meta: Meta) -> None:
        """A META that names the lane."""

    def note(self, note: Note) -> None:
        """A note."""


def with_lanes(meta: Meta, lanes: Sequence[Lane]) -> Meta:
    """META that names these lanes too."""
    return replace(meta, lanes=(*meta.lanes, *lanes))
