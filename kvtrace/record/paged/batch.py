"""A packed forward as its arguments tell it: which tokens are whose, and where their rows lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor

from kvtrace.record.paged.engine import Request, batch_of
from kvtrace.record.paged.places import Slots

WARMUP = "__warmup_"
"""What the engine calls requests that it makes up before it begins."""


class Group(Struct, frozen=True):
    """A group of layers whose rows lie in the same slots of the pool.

    Attributes:
        number: Its number.
        keys: Where the rows of each request begin among those attended to, and the last ends.
        reads: Slots that rows are read from, one a row attended to; empty: nothing is read.
        writes: Slots that new rows are written to, one a token; -1: nowhere.
        window: Rows that are kept; None: all.
        block: Slots of a block.
        capacity: Slots of the pool.
    """

    number: int
    keys: tuple[int, ...]
    reads: Slots
    writes: Slots
    window: int | None
    block: int
    capacity: int

    def old(self, place: int, new: int) -> Slots:
        """Slots that the older rows of a request are read from."""
        if not self.reads.size:
            return self.reads
        return self.reads[self.keys[place] : self.keys[place + 1] - new]


class Batch(Struct, frozen=True):
    """A packed forward.

    Attributes:
        pool: The engine's cache.
        requests: Who is in it, in the order of their tokens.
        starts: Where the tokens of each request begin, and the last ends.
        tokens: All ids.
        positions: Of all tokens.
        groups: Layer of the cache to its group.
    """

    pool: Any
    requests: tuple[Request, ...]
    starts: tuple[int, ...]
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    groups: Mapping[int, Group]

    @property
    def warms_up(self) -> bool:
        """Whether nobody asked for it."""
        return all(one.name.startswith(WARMUP) for one in self.requests)


def is_packed(arguments: Mapping[str, object]) -> bool:
    """Whether a forward is given several requests in one row, and a pool for their rows."""
    pool = arguments.get("cache")
    return hasattr(pool, "update") and isinstance(arguments.get("cu_seq_lens_q"), Tensor)


def batch(arguments: Mapping[str, Any]) -> Batch | None:
    """What its arguments say; None where this version of the engine says it otherwise.

    Args:
        arguments: Of a packed forward, by name.
    """
    try:
        return _batch(arguments)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None


def _batch(arguments: Mapping[str, Any]) -> Batch | None:
    pool, requests = arguments["cache"], batch_of(arguments["cache"])
    if arguments.get("block_table") is not None or not requests:
        return None
    _written(arguments["cu_seq_lens_q"].device)
    starts = [int(one) for one in arguments["cu_seq_lens_q"].tolist()[: len(requests) + 1]]
    sizes = [after - before for before, after in pairwise(starts)]
    if sizes != [one.new for one in requests] or not all(sizes):
        return None
    lengths = {name: one.tolist() for name, one in arguments["cu_seq_lens_k"].items()}
    made: dict[int, Group] = {}
    groups: dict[int, Group] = {}
    for layer, allocator in pool.layer_to_allocator.items():
        number = int(allocator.index)
        if number not in made:
            keys = lengths[allocator.layer_type][: len(starts)]
            made[number] = _group(allocator, keys, arguments, starts[-1])
        groups[layer] = made[number]
    tokens = arguments["input_ids"].reshape(-1)[: starts[-1]].tolist()
    positions = arguments["position_ids"].reshape(-1)[: starts[-1]].tolist()
    return Batch(pool, requests, tuple(starts), tuple(tokens), tuple(positions), groups)


def _written(device: torch.device) -> None:
    """Wait until a batch is on its device: engines write it beside the stream that runs the model.

    Read too early, slots are those that an engine fills its tables with before.
    """
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def _group(allocator: Any, keys: Sequence[int], arguments: Mapping[str, Any], new: int) -> Group:
    number = int(allocator.index)
    window = getattr(allocator, "sliding_window", None)
    block = int(allocator.tokens_per_page)
    reads = _slots(arguments["read_index"][number], allocator)
    writes = _slots(arguments["write_index"][number], allocator)[:new]
    if len(writes) != new or (reads.size and reads.size < keys[-1]):
        raise ValueError("indices do not fit the tokens")
    return Group(
        number,
        tuple(int(one) for one in keys),
        reads,
        writes,
        window if isinstance(window, int) else None,
        block,
        int(allocator.num_blocks) * block,
    )


def _slots(index: Tensor, allocator: Any) -> Slots:
    """The engine's indices as slots: it leaves room in a block for its other layers and values."""
    raw: Slots = index.detach().cpu().numpy().astype(np.int64)
    page, stride = int(allocator.tokens_per_page), int(allocator.block_physical_stride)
    blocks, places = np.divmod(raw, stride)
    slots = blocks * page + places
    # the first blocks take what nobody keeps
    return np.where((blocks < _first_block(allocator)) | (places >= page), -1, slots)


def _first_block(allocator: Any) -> int:
    """Blocks at the beginning of the pool that are given to nobody."""
    return int(allocator.write_trash_index) // int(allocator.block_physical_stride) + 1
