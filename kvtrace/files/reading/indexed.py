"""The tables of a file's INDEX frames, if all of them are whole and say only what can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.errors import TraceError
from kvtrace.files.index import IndexPart, read_chain
from kvtrace.files.layout import Kind
from kvtrace.files.reading.frames import FrameFile
from kvtrace.files.tables import Groups
from kvtrace.files.validate import MAX_CELL


class Indexed(Struct, frozen=True):
    """What a chain of INDEX frames says.

    Attributes:
        chain: The frames, oldest first.
        groups: Cache layers that were written together.
        frames, overview, writes: Rows of the tables of these names.
    """

    chain: list[IndexPart]
    groups: Groups
    frames: NDArray[np.void]
    overview: NDArray[np.void]
    writes: NDArray[np.void]


def indexed(file: FrameFile, offset: int) -> Indexed | None:
    """Read the chain that ends with the INDEX frame there; None: it can't be trusted."""
    try:
        chain = read_chain(file, offset)
    except TraceError:
        return None
    place = chain[-1].place
    groups = Groups(place.groups)
    found = Indexed(
        chain,
        groups,
        np.concatenate([part.frames for part in chain]),
        np.concatenate([part.overview for part in chain]),
        np.concatenate([part.writes for part in chain]),
    )
    return found if len(groups) == len(place.groups) and _plausible(found) else None


def _plausible(found: Indexed) -> bool:
    """Whether every number of the tables stays inside the file, and steps ascend."""
    frames, overview, writes = found.frames, found.overview, found.writes
    end, groups = found.chain[-1].frame.offset, len(found.groups)
    steps = frames["step"][frames["kind"] == Kind.STEP]
    checks: Sequence[NDArray[np.bool_]] = (
        frames["offset"] < end,
        frames["payload"] < end,
        frames["group"] < groups,
        frames["part"] <= end,
        frames["step"] >= -1,
        frames["cell"] < MAX_CELL,
        overview["number"] >= 0,
        (overview["parent"] >= -1) & (overview["parent"] < overview["number"]),
        np.diff(overview["number"]) > 0,
        (writes["group"] >= 0) & (writes["group"] < groups),
        (writes["rows"] > 0) & (writes["rows"] <= end),
        (writes["sequences"] > 0) & (writes["sequences"] <= end),
        (writes["first_cell"] >= 0) & (writes["first_cell"] < MAX_CELL),
    )
    return np.array_equal(steps, overview["number"]) and all(bool(one.all()) for one in checks)
