"""The tensors in what people put together: lists, tuples and tables of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor


def tensors_in(value: object, depth: int) -> Iterator[Tensor]:
    """A value itself if it is one, else those in it, in order.

    Args:
        value: Anything.
        depth: How many collections within one another are looked into.
    """
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(one, depth - 1)
