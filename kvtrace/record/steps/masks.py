"""Masks said compactly: causal, window, chunk, padding as numbers; in full where none fits.

Every rule is checked against the mask itself, cell by cell; nothing is assumed of it.
"""

from __future__ import annotations

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.trace import Mask
from kvtrace.trace.dtypes import Array

Table = NDArray[np.bool_]
Slots = NDArray[np.int64]


class Compact(Struct, frozen=True):
    """A mask as the trace keeps it.

    Attributes:
        mask: The rules.
        full: The whole mask where they don't fit, uint8 [sequences|1, heads|1, new, seq].
        bias: The additive term, float32, same shape; None without one.
    """

    mask: Mask
    full: Array | None = None
    bias: Array | None = None


class Compactor:
    """Makes masks compact, once per mask object; good for one forward."""

    def __init__(self, sequences: int, origin: int, chunk: int | None = None) -> None:
        """For one forward.

        Args:
            sequences: Rows of the batch.
            origin: Position of its first token.
            chunk: Chunk size that the model's config names, if any.
        """
        self._sequences = sequences
        self._origin = origin
        self._chunk = chunk
        self._seen: dict[tuple[object, ...], tuple[Tensor, Compact]] = {}
        self._offsets: dict[int | None, Compact] = {}
        self._cut: dict[tuple[int, bytes], tuple[Tensor, Tensor]] = {}
        self._biases: dict[tuple[int, int], tuple[Tensor, Array]] = {}

    def compact(self, call: AttentionCall, seq: int, slots: Slots | None = None) -> Compact:
        """The mask of a call over the first `seq` rows of its keys, or over those of some slots."""
        if slots is not None:
            call, seq = self._picked(call, slots), len(slots)
        new = call.queries.shape[2]
        if call.visible is None:
            ruled = call.causal or (new == 1 and call.kind == "self")
            # of a whole buffer, a kernel that counts from 0 on was given no more than its keys
            found = self.plain(min(seq, call.keys.shape[2]) - new if ruled else None)
        else:
            key = (id(call.visible), new, seq, call.window)
            known = self._seen.get(key)
            if known is None:
                known = self._seen[key] = (call.visible, self._reduced(call, new, seq))
            found = known[1]
        if call.bias is None:
            return found
        return replace(found, mask=replace(found.mask, bias=True), bias=self._bias(call.bias, seq))

    def _picked(self, call: AttentionCall, slots: Slots) -> AttentionCall:
        """A call as if it had been given only the rows of some slots."""
        visible, bias = self._columns(call.visible, slots), self._columns(call.bias, slots)
        return replace(call, visible=visible, bias=bias)

    def _columns(self, table: Tensor | None, slots: Slots) -> Tensor | None:
        if table is None or table.shape[-1] == 1:
            return table
        key = (id(table), slots.tobytes())
        known = self._cut.get(key)
        if known is None:
            known = self._cut[key] = (table, table[..., slots.tolist()])
        return known[1]

    def plain(self, offset: int | None) -> Compact:
        """No mask but the causal one, if that."""
        found = self._offsets.get(offset)
        if found is None:
            found = self._offsets[offset] = Compact(Mask(offset=offset))
        return found

    def _bias(self, bias: Tensor, seq: int) -> Array:
        key = (id(bias), seq)
        known = self._biases.get(key)
        if known is None:
            rows = bias[..., :seq].detach().to(torch.float32).cpu().numpy()
            known = self._biases[key] = (bias, _whole(rows, seq))
        return known[1]

    def _reduced(self, call: AttentionCall, new: int, seq: int) -> Compact:
        """Rules that say exactly what the mask says, else the mask."""
        assert call.visible is not None
        visible = call.visible[..., :seq].detach().cpu().numpy()
        table = _whole(visible, seq)
        if table.shape[2] != new:
            table = np.broadcast_to(table, (*table.shape[:2], new, seq))
        if table.shape[1] > 1 and bool((table == table[:, :1]).all()):
            table = table[:, :1]
        if table.shape[1] == 1:
            mask = self._rules(np.broadcast_to(table[:, 0], (self._sequences, new, seq)), call)
            if mask is not None:
                return Compact(mask)
        return Compact(Mask(full=True), np.ascontiguousarray(table, np.uint8))

    def _rules(self, table: Table, call: AttentionCall) -> Mask | None:
        """The first set of rules that fits [sequences, new, seq]."""
        _, new, seq = table.shape
        if table.all():
            return Mask(offset=seq - new) if new == 1 and call.kind == "self" else Mask()
        seen: Table = np.asarray(table.any(axis=1), np.bool_)
        pads = np.where(seen.any(axis=1), seen.argmax(axis=1), seq)
        padding = tuple(int(pad) for pad in pads) if pads.any() else ()
        offset = seq - new
        windows = [size for size in (call.window, *_windows(table, offset, pads)) if size]
        rules = []
        # a window or a chunk can hide the left as well as padding does: padding is the last guess
        for hidden in dict.fromkeys(((), padding)):
            rules += [Mask(offset=offset, padding=hidden), Mask(padding=hidden)]
            for window in dict.fromkeys(windows):
                rules.append(Mask(offset=offset, window=window, padding=hidden))
            if self._chunk:
                rules.append(
                    Mask(offset=offset, chunk=self._chunk, origin=self._origin, padding=hidden)
                )
        return next((rule for rule in rules if _fits(rule, table)), None)


def _windows(table: Table, offset: int, pads: NDArray[np.intp]) -> list[int]:
    """Windows that the last query rows suggest: they see less at the left than earlier rows do."""
    found = []
    for sequence in range(len(table)):
        row = table[sequence, -1]
        first = int(row.argmax())
        if row.any() and first > pads[sequence]:
            found.append(table.shape[1] - 1 + offset - first + 1)
    return sorted(set(found))[:3]


def _fits(rule: Mask, table: Table) -> bool:
    sequences, new, seq = table.shape
    if not rule.padding:
        return bool((table == rule.visible(0, new, seq)).all())
    return all(
        np.array_equal(table[sequence], rule.visible(sequence, new, seq))
        for sequence in range(sequences)
    )


def _whole(rows: NDArray[np.generic], seq: int) -> NDArray[np.generic]:
    """Four dimensions, with every column there."""
    while rows.ndim < 4:
        rows = rows[None]
    return np.broadcast_to(rows, (*rows.shape[:3], seq)) if rows.shape[3] != seq else rows
