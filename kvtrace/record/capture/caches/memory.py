"""Memory of what a cache layer of no plain class holds: its rows, in whatever form, and the rest.

Knows no rows: packed ones with their scales, chunks, a buffer with room left, an indexer's keys.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

_ELSEWHERE = {"conv_states", "recurrent_states"}
"""Where a layer has what is counted elsewhere."""


def held_memory(cache: object, index: int, layer: object | None) -> int:
    """Bytes that a layer holds; memory that several of its tensors share counts once.

    Args:
        cache: It.
        index: The cache's own number of the layer.
        layer: None where the cache has no objects for its layers, but lists of their rows.
    """
    waiting = [] if layer is None else [*_rows(layer), *_others(layer)]
    if layer is None:
        waiting += [one for value in vars(cache).values() for one in _numbered(value, index)]
    found: dict[int, dict[tuple[int, int], int]] = {}
    room: dict[int, int] = {}
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor) and hasattr(one, "__tensor_flatten__"):
            # a packed tensor passes itself off as what it stands for
            waiting += [getattr(one, name) for name in one.__tensor_flatten__()[0]]
        elif isinstance(one, Tensor) and (one.is_floating_point() or one.dim() > 1):
            storage = one.untyped_storage()
            place = storage.data_ptr()
            found.setdefault(place, {})[one.data_ptr(), one.nbytes] = one.nbytes
            room[place] = storage.nbytes()
        elif isinstance(one, tuple | list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
    return sum(min(sum(parts.values()), room[place]) for place, parts in found.items())


def _rows(layer: object) -> Iterator[object]:
    """Its keys and values, unless they are made anew whenever somebody asks for them."""
    for name in ("keys", "values"):
        one, again = getattr(layer, name, None), getattr(layer, name, None)
        if not (isinstance(one, Tensor) and isinstance(again, Tensor)):
            continue
        if one.data_ptr() == again.data_ptr():
            yield one


def _others(layer: object) -> Iterator[object]:
    yield from (one for name, one in vars(layer).items() if name not in _ELSEWHERE)


def _numbered(value: object, index: int) -> Iterator[object]:
    """What a list or a table has for one layer."""
    table = dict(enumerate(value)) if isinstance(value, list | tuple) else value
    if isinstance(table, dict) and index in table:
        yield table[index]
