"""From the rows of a step to the units of a frame, and from a frame to its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from zlib import crc32

import numpy as np

from kvtrace.errors import TraceError
from kvtrace.files.extents import ROWS_PER_FRAME, Layout, Stacked, StepRows
from kvtrace.files.layout import HEAD_BYTES, Head, Kind, aligned
from kvtrace.trace import Step, Tensor, dtypes
from kvtrace.trace.dtypes import Array

Unit = Array | memoryview
"""A piece of payload that is read and checked in one go."""

_TENSORS = tuple(Tensor)


def packed(
    kind: Kind,
    flags: int,
    sequence: int,
    identity: bytes,
    body: bytes,
    units: Sequence[Unit] = (),
) -> tuple[Head, list[bytes | memoryview]]:
    """A frame as its head and the pieces that make its bytes."""
    views = [unit if type(unit) is memoryview else unit.data for unit in units]
    raw = [unit for unit in views if unit.nbytes]
    crcs = np.array([crc32(unit) for unit in raw], "<u4").tobytes()
    payload = sum([unit.nbytes for unit in raw])
    crc = crc32(body, crc32(crcs))
    head = Head(kind, flags, sequence, len(body), len(raw), payload, crc, identity)
    pad = bytes(head.payload_start - HEAD_BYTES - head.body_bytes)
    return head, [head.pack(), crcs, body, pad, *raw, bytes(aligned(payload) - payload)]


def _stacked(layout: Layout, rows: StepRows) -> list[Unit]:
    """The units of rows that lie together for all layers; empty where they do not."""
    pieces: list[list[memoryview]] = []
    for tensor in _TENSORS:
        stack = rows.of(tensor)
        if not isinstance(stack, Stacked) or tensor not in layout.alike:
            return []
        indices, shape, dtype = layout.alike[tensor]
        whole = stack.whole
        fits = stack.indices == indices and whole.shape[1:] == shape
        if not (fits and whole.dtype == dtypes.storage(dtype) and whole.flags.c_contiguous):
            return []
        flat, size = whole.data.cast("B"), whole[0].nbytes
        pieces.append([flat[start : start + size] for start in range(0, len(flat), size)])
    queries, keys, values, output = pieces
    return [*queries, *output, *chain.from_iterable(zip(keys, values, strict=True))]


def units_of(layout: Layout, step: Step, rows: StepRows, part: int | None) -> list[Unit]:
    """The payload units of a frame, in order.

    Raises:
        TraceError: Rows do not have the shape or dtype that META and the step say.
    """
    if part is None and (whole := _stacked(layout, rows)):
        return whole
    out: list[Unit] = []
    arrays = (rows.queries, rows.keys, rows.values, rows.output)
    for (tensor, index), extent in layout.extents.items():
        array = arrays[tensor][index]
        start = 0 if part is None else part * ROWS_PER_FRAME
        cut = array[:, :, start : start + extent.shape[2]] if part is not None else array
        if cut.shape != extent.shape or array.dtype != dtypes.storage(extent.dtype):
            raise TraceError(
                f"step {step.number}, {tensor.name.lower()} of layer {index}: {array.dtype} "
                f"{list(array.shape)}, but META and the step say {extent.dtype} "
                f"{list(extent.shape)}. Check what was handed to the writer."
            )
        if part is None:
            out.append(np.ascontiguousarray(array))
        else:
            out += [head for sequence in np.ascontiguousarray(cut) for head in sequence]
    return out
