"""How far a buffer is written, where a class of somebody's says how many rows it has seen.

Its count may be what is wrong: a pointer that stands, or that layers share. The rows themselves
tell where the newest one stands.
"""

from __future__ import annotations

from torch import Tensor


def reached(said: int, newest: Tensor, buffer: Tensor, capacity: object) -> int:
    """Rows up to the newest one, or what was said where it stands there or nowhere.

    Args:
        said: Rows that the layer says it has seen.
        newest: Keys that went in, [sequences, kv_heads, new, dim].
        buffer: Keys that came back, [sequences, kv_heads, capacity, dim].
        capacity: Rows there is room for, as the layer says; None: it grows.
    """
    alike = capacity is not None and newest.shape[:2] == buffer.shape[:2]
    if not alike or not 0 < said <= buffer.shape[2]:
        return said
    row = newest[0, :, -1].to(buffer.dtype)
    if bool((buffer[0, :, said - 1] == row).all()):
        return said
    there = (buffer[0] == row[:, None]).all(-1).all(0).nonzero()
    return int(there[-1]) + 1 if len(there) else said
