"""Cached rows over time: from the K,V that one site attended to at successive steps.

No cache is looked for. What a step attended to is compared with what the step before did, slot by
slot first and then by content: rows are unchanged, new, changed, moved or gone. Only 64-bit
hashes are kept between steps, and the lengths of keys, by which a rotation is recognised. Pure
tensors in, plain numbers out; knows no cache class, no trace and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Cells = NDArray[np.int64]

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
UNWRITTEN = -1
"""Cell of a slot that no query has ever seen."""


@dataclass(frozen=True, slots=True)
class RowStep:
    """What became of the rows in one step.

    Cells are numbered from 0 in the order of writing, within a step sequence by sequence, then
    slot by slot; every sequence writes equally many.

    Attributes:
        cells: Cell of each slot, per sequence; `UNWRITTEN` for slots nobody ever saw.
        first_cell: Number of the first cell written by this step.
        written: Slots written, per sequence, ascending; equally many each.
        changed: Of those, slots that held another live row the step before.
        moved: Per sequence: (slot before, slot now) of rows found elsewhere, in the same sequence.
        taken: Per sequence: the sequence whose rows it holds now, itself where nothing moved.
        gone: Per sequence: cells that it held the step before and that are nowhere now.
        keys_only: All changed rows kept their values: only their keys were made anew.
        rotated: … and the keys kept their length, as a rotation to other positions does.
    """

    cells: tuple[tuple[int, ...], ...]
    first_cell: int
    written: tuple[tuple[int, ...], ...]
    changed: tuple[tuple[int, ...], ...]
    moved: tuple[tuple[tuple[int, int], ...], ...]
    taken: tuple[int, ...]
    gone: tuple[tuple[int, ...], ...]
    keys_only: bool = False
    rotated: bool = False

    @property
    def rows(self) -> int:
        """Cells written per sequence."""
        return len(self.written[0]) if self.written else 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """Slots of one step, [sequences, seq] each; rows that were never seen are not live.

    Attributes:
        keys, values: Hashes.
        lengths: Euclidean length of the keys.
        live: Whether a query saw it, now or before.
    """

    keys: NDArray[np.int64]
    values: NDArray[np.int64]
    lengths: NDArray[np.float32]
    live: NDArray[np.bool_]

    def same(self, sequence: int, other: _Seen, source: int) -> NDArray[np.bool_]:
        """Slot by slot, whether a sequence holds what another held, as far as both reach."""
        count = min(self.keys.shape[1], other.keys.shape[1])
        equal: NDArray[np.bool_] = (
            (self.keys[sequence, :count] == other.keys[source, :count])
            & (self.values[sequence, :count] == other.values[source, :count])
            & other.live[source, :count]
        )
        return equal

    def content(self, sequence: int, slot: int) -> tuple[int, int]:
        """What identifies a row."""
        return int(self.keys[sequence, slot]), int(self.values[sequence, slot])


@dataclass(slots=True)
class RowFollower:
    """Follows the rows of one site through the steps of one text."""

    next_cell: int = 0
    _before: _Seen | None = None
    _cells: Cells = field(default_factory=lambda: np.empty((0, 0), np.int64))

    def forget(self) -> None:
        """Begin a new text: nothing of the next step was there before."""
        self._before, self._cells = None, np.empty((0, 0), np.int64)

    def step(self, keys: Tensor, values: Tensor, visible: Tensor | None = None) -> RowStep:
        """Compare a step with the one before.

        Args:
            keys: As attended to, [sequences, kv_heads, seq, key_dim].
            values: [sequences, kv_heads, seq, value_dim].
            visible: Broadcasts to [sequences, heads, new, seq]; None: every row is seen.
        """
        now = self._seen(keys, values, visible)
        known, taken, moved = self._recognised(now)
        written = _equally_many(known, now.live)
        changed = [self._held(b, slots) for b, slots in enumerate(written)]
        first, rows = self.next_cell, len(written[0]) if written else 0
        cells = known.copy()
        for b, slots in enumerate(written):
            cells[b, slots] = np.arange(first + b * rows, first + (b + 1) * rows)
        self.next_cell += rows * len(written)
        gone = [
            tuple(int(c) for c in np.setdiff1d(before, line) if c != UNWRITTEN)
            for before, line in zip(self._cells, cells, strict=False)
        ]
        keys_only, rotated = self._rotation(now, changed)
        self._before, self._cells = now, cells
        return RowStep(
            cells=tuple(tuple(line) for line in cells.tolist()),
            first_cell=first,
            written=tuple(map(tuple, written)),
            changed=tuple(map(tuple, changed)),
            moved=tuple(map(tuple, moved)),
            taken=tuple(taken),
            gone=tuple(gone) or tuple(() for _ in written),
            keys_only=keys_only,
            rotated=rotated,
        )

    def _seen(self, keys: Tensor, values: Tensor, visible: Tensor | None) -> _Seen:
        """Hashes of a step; a row seen before stays live while its content stays."""
        sequences, _, seq, _ = keys.shape
        live = np.ones((sequences, seq), bool)
        if visible is not None:
            # a slot is written in all sequences at once, even where padding hides it in one
            seen = visible.any(dim=2).any(dim=1).any(dim=0).expand(seq).cpu().numpy()
            live = np.broadcast_to(seen, (sequences, seq)).copy()
        lengths = keys.detach().float().norm(dim=(1, 3)).cpu().numpy()
        now = _Seen(hashes(keys), hashes(values), lengths, live)
        if self._before is not None:
            for b in range(min(sequences, len(self._before.keys))):
                same = now.same(b, self._before, b)
                live[b, : len(same)] |= same
        return now

    def _recognised(self, now: _Seen) -> tuple[Cells, list[int], list[list[tuple[int, int]]]]:
        """Known cells per sequence and slot, whose rows each holds, and what moved."""
        known = np.full(now.keys.shape, UNWRITTEN)
        taken, moved = [], []
        for b in range(len(known)):
            source = self._source(now, b)
            taken.append(source)
            moved.append(self._match(now, b, source, known[b]))
        return known, taken, moved

    def _source(self, now: _Seen, sequence: int) -> int:
        """The sequence of the step before whose rows this one holds: itself, if as good as any."""
        before = self._before
        if before is None:
            return sequence
        counts = [int(now.same(sequence, before, b).sum()) for b in range(len(before.keys))]
        if sequence < len(counts) and counts[sequence] == max(counts):
            return sequence
        return counts.index(max(counts))

    def _match(self, now: _Seen, sequence: int, source: int, line: Cells) -> list[tuple[int, int]]:
        """Fill in the known cells of one sequence: slot by slot first, then by content."""
        before, shifts = self._before, list[tuple[int, int]]()
        if before is None:
            return shifts
        held = self._cells[source]
        same = now.same(sequence, before, source) & (held[: now.keys.shape[1]] != UNWRITTEN)
        line[: len(same)][same] = held[: len(same)][same]
        stayed = np.zeros(len(held), bool)
        stayed[: len(same)] = same
        free: dict[tuple[int, int], list[int]] = {}
        for slot in np.flatnonzero((held != UNWRITTEN) & ~stayed).tolist():
            free.setdefault(before.content(source, slot), []).append(slot)
        if not free:
            return shifts
        for slot in np.flatnonzero(now.live[sequence] & (line == UNWRITTEN)).tolist():
            places = free.get(now.content(sequence, slot))
            if places:
                old = places.pop(0)
                line[slot] = held[old]
                shifts.append((old, slot))
        return shifts

    def _held(self, sequence: int, slots: Sequence[int]) -> list[int]:
        """Of some slots those that held a row before."""
        if sequence >= len(self._cells):
            return []
        held = self._cells[sequence]
        return [slot for slot in slots if slot < len(held) and held[slot] != UNWRITTEN]

    def _rotation(self, now: _Seen, changed: Sequence[Sequence[int]]) -> tuple[bool, bool]:
        """Whether changed rows kept their values, and their keys their lengths.

        A row that moved and was rotated on its way is compared with the row of the same values;
        the newest row of a full window overwrites one and has no earlier self.
        """
        before = self._before
        pairs = [(b, slot) for b, slots in enumerate(changed) for slot in slots]
        if before is None or not pairs:
            return False, False
        lengths = []
        for b, slot in pairs:
            places = np.flatnonzero(before.values[b] == now.values[b, slot])
            if len(places):
                old = slot if slot in places else places[0]
                lengths.append((float(now.lengths[b, slot]), float(before.lengths[b, old])))
        if not lengths or len(lengths) < len(pairs) - len(changed):
            return False, False
        return True, all(abs(a - b) <= 1e-3 * max(a, b, 1e-9) for a, b in lengths)


def _equally_many(known: Cells, live: NDArray[np.bool_]) -> list[list[int]]:
    """Slots to be written, as many in each sequence: the last known ones are written once more."""
    wanted: list[list[int]] = [
        np.flatnonzero(mask).tolist() for mask in (known == UNWRITTEN) & live
    ]
    most = max(map(len, wanted), default=0)
    for line, slots in zip(known, wanted, strict=True):
        missing = most - len(slots)
        if missing:
            slots += np.flatnonzero(line != UNWRITTEN)[-missing:].tolist()
            slots.sort()
    return wanted


_factors: dict[tuple[int, torch.device], Tensor] = {}


def hashes(rows: Tensor) -> NDArray[np.int64]:
    """One number per sequence and row that takes in every bit of it, all heads.

    A weighted sum of the bits modulo 2^64 with odd random weights: two rows that differ agree with
    a probability of at most 2^-32 (multilinear hashing, Carter and Wegman 1979).

    Args:
        rows: [sequences, heads, seq, dim].
    """
    sequences, _, seq, _ = rows.shape
    flat = rows.detach().transpose(1, 2).reshape(sequences, seq, -1)
    bits = flat.view(_BITS[flat.element_size()]).to(torch.int64)
    key = (bits.shape[-1], bits.device)
    if key not in _factors:
        generator = torch.Generator().manual_seed(0x5EED)
        drawn = torch.randint(-(2**62), 2**62, (key[0],), generator=generator) * 2 + 1
        _factors[key] = drawn.to(key[1])
    found: NDArray[np.int64] = (bits * _factors[key]).sum(dim=-1).cpu().numpy()
    return found
