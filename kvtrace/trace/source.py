"""The seam between a trace and whatever holds its rows: a file, or memory in tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kvtrace.trace.dtypes import Array
from kvtrace.trace.lane import LaneStep
from kvtrace.trace.meta import Meta, Tensor
from kvtrace.trace.notes import Damage, Ending, Note
from kvtrace.trace.step import Step

CACHED = "cached"
"""Name of the lane that was recorded; every other lane is compared with it."""

OVERVIEW = np.dtype(
    [
        ("number", "<i8"),
        ("parent", "<i8"),  # -1: none
        ("phase", "u1"),  # 0 prefill, 1 decode
        ("sequences", "<i4"),
        ("new", "<i4"),
        ("token", "<i8"),  # last token in, sequence 0; -1: none
        ("chosen", "<i8"),  # sequence 0; -1: not known
        ("elapsed_ns", "<i8"),
        ("cached_flops", "<i8"),
        ("recomputed_flops", "<i8"),
        ("cache_bytes", "<i8"),
    ]
)
"""One row a step, cheap for thousands of steps: what the timeline and the cost chart draw."""

WRITES = np.dtype([("step", "<i8"), ("first_cell", "<i8"), ("rows", "<i8"), ("sequences", "<i8")])
"""One row for each step that wrote to a cache layer, ascending in `first_cell`."""


class Source(Protocol):
    """Hands out checked rows as they were stored. Sources may grow; see `refresh`."""

    @property
    def name(self) -> str:
        """What to call the trace: a file name without its folder."""

    @property
    def meta(self) -> Meta:
        """The newest META."""

    @property
    def notes(self) -> Sequence[Note]:
        """Notes in the order they were added."""

    @property
    def ending(self) -> Ending | None:
        """How it ended; None: incomplete, or still being written."""

    @property
    def damage(self) -> Sequence[Damage]:
        """What can't be read; also grows as damaged parts are met."""

    def refresh(self) -> bool:
        """Look for what was added since, or is gone; whether anything is different."""

    def again(self) -> Source:
        """The same rows for another thread: what was opened, whatever its name stands for now."""

    @property
    def fate(self) -> str:
        """What became of the name of the file since it was opened, a sentence; empty: nothing."""

    def step_numbers(self) -> Sequence[int]:
        """Numbers of the steps that are there, ascending; gaps are steps lost to damage."""

    def step(self, number: int) -> Step:
        """One step.

        Raises:
            MissingError: It is not in this trace.
        """

    def overview(self) -> NDArray[np.void]:
        """All steps at a glance, dtype `OVERVIEW`, ascending; without reading each step."""

    def writes(self, layer: int) -> NDArray[np.void]:
        """Which step wrote which cells of a cache layer, dtype `WRITES`."""

    def token_text(self, token: int) -> str | None:
        """Text of a token id, raw; None if the trace does not know it."""

    def site_rows(self, step: int, site: int, tensor: Tensor, head: int | None) -> Array | None:
        """QUERIES or OUTPUT of a step as stored, [sequences, heads, new, dim].

        With `head`, only that one: [sequences, 1, new, dim]. None: not recorded.

        Raises:
            TraceError: The rows are damaged.
        """

    def cells(self, layer: int, tensor: Tensor, first: int, count: int, head: int | None) -> Array:
        """KEYS or VALUES of consecutive cells of a cache layer, [kv_heads, count, dim].

        With `head`, only that kv head: [1, count, dim].

        Raises:
            TraceError: The rows are damaged, or not there.
        """

    def full_mask(self, step: int, site: int) -> Array | None:
        """The stored mask where no rules fit: uint8 0 or 1, [sequences|1, heads|1, new, seq]."""

    def bias(self, step: int, site: int) -> Array | None:
        """The stored additive bias: float32, [sequences|1, heads|1, new, seq]."""

    def lane_step(self, lane: str, step: int) -> LaneStep | None:
        """The comparison of a lane for a step; None: not compared."""

    def pass_step(self, lane: str, number: int) -> Step | None:
        """A lane's own forward over a whole path of tokens; None: not kept.

        Raises:
            TraceError: It is damaged.
        """

    def pass_rows(
        self, lane: str, number: int, tensor: Tensor, index: int, head: int | None
    ) -> Array | None:
        """Rows of a pass, [sequences, heads, places, dim]; with `head`, one. None: not kept.

        `index` is a site for QUERIES and OUTPUT, a cache layer for KEYS and VALUES.

        Raises:
            TraceError: The rows are damaged.
        """

    def pass_mask(self, lane: str, number: int, site: int) -> Array | None:
        """The stored mask of a pass: uint8, [sequences|1, heads|1, places, places]."""

    def pass_bias(self, lane: str, number: int, site: int) -> Array | None:
        """The stored bias of a pass: float32, [sequences|1, heads|1, places|1, places]."""
