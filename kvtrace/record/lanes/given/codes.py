"""Several ids for one position, as codebooks have: kept, for a trace holds the first of them.

A pass over a whole path is given all of them again, in the layout they came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from kvtrace.record.capture.forward import Forward
from kvtrace.record.capture.tokens.inputs import tokens_of
from kvtrace.record.lanes.given.embedded import along
from kvtrace.record.lanes.paths import Path

CODES = "several ids for each position"
"""Stands for them among the arguments of a pass; no parameter is called so."""

Layout = Literal["last", "middle", "beside"]
"""Of codes: [sequences, new, codes], [sequences, codes, new], or [sequences × codes, new]."""


@dataclass(slots=True)
class Codes:
    """By step, what went in: [sequences, new, codes]."""

    _given: dict[int, Tensor] = field(default_factory=dict)
    _layout: Layout | None = None

    def add(self, step: int, forward: Forward) -> None:
        """A forward became a step: keep its ids, if there are several for a position."""
        given, layout = tokens_of(forward.arguments), self._layout or layout_of(forward)
        if given is None or layout is None:
            return
        self._layout = layout
        rows = given if layout == "last" else given.transpose(1, -1)
        if layout == "beside":
            rows = given.reshape(forward.sequences, -1, forward.new).transpose(1, 2)
        if tuple(rows.shape[:2]) == (forward.sequences, forward.new):
            self._given[step] = rows.detach().clone()

    def mixed(self, paths: Sequence[Path]) -> bool:
        """Whether some steps of these paths had several ids for a position, and some had one."""
        steps = {node.step for path in paths for node in (*path.shared, *path.nodes)}
        return 0 < len(steps & self._given.keys()) < len(steps)

    def of(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """The ids that were given along these paths, in their layout."""
        found = along(paths, self._given)
        if found is None or self._layout == "last":
            return {} if found is None else {CODES: found}
        turned = found.transpose(1, 2)
        return {CODES: turned if self._layout == "middle" else turned.flatten(0, 1)}


def layout_of(forward: Forward) -> Layout | None:
    """How several ids for each position came in; None where there is one, or nobody knows."""
    given, taken = tokens_of(forward.arguments), forward.tokens
    if given is None or taken is None or given.dim() not in (2, 3):
        return None
    sequences, new = forward.sequences, forward.new
    if given.dim() == 2:
        several = given.shape[0] > sequences and given.shape == (given.shape[0], new)
        return "beside" if several and not given.shape[0] % sequences else None
    if given.shape[:2] == (sequences, new):
        return "last"
    return "middle" if (given.shape[0], given.shape[2]) == (sequences, new) else None
