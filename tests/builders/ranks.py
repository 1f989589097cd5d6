"""A trace of a whole model, dealt out to the ranks that would have recorded it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from msgspec.structs import fields, replace

from builders.memory import MemorySource
from builders.written import write_trace
from kvtrace.files.comparison import ARRAYS
from kvtrace.trace import Cost, Flops, Rank, Tensor, Trace


def write_ranks(folder: Path, trace: Trace, size: int, name: str = "run") -> list[Path]:
    """Each rank's file, `run.rank0.kvt` and so on."""
    return write_each(folder, deal(trace, size), name)


def write_each(folder: Path, ranks: list[Trace], name: str = "run") -> list[Path]:
    """The files of what ranks recorded, which need not be alike."""
    return [
        write_trace(folder / f"{name}.rank{number}.kvt", one) for number, one in enumerate(ranks)
    ]


def deal(trace: Trace, size: int) -> list[Trace]:
    """The same heads to every rank; a kv head to several where there are fewer than ranks."""
    return [Trace(_rank(trace.source, Rank(number, size))) for number in range(size)]


def _rank(whole: MemorySource, rank: Rank) -> MemorySource:
    source = deepcopy(whole)
    sites, layers = [], []
    for site, layer in zip(whole.meta.sites, whole.meta.cache_layers, strict=True):
        heads = site.num_heads // rank.size
        kv_heads = max(1, layer.num_kv_heads // rank.size)
        first_kv = rank.number * layer.num_kv_heads // rank.size
        every, every_kv = site.num_heads, layer.num_kv_heads
        place = {"first_head": rank.number * heads, "all_heads": every}
        sites.append(replace(site, num_heads=heads, num_kv_heads=kv_heads, **place))
        place = {"first_kv_head": first_kv, "all_kv_heads": every_kv}
        layers.append(replace(layer, num_kv_heads=kv_heads, **place))
    card = whole.meta.model
    source.meta = replace(
        whole.meta,
        model=replace(card, weight_bytes=_share(card.weight_bytes, rank), banner=rank.sentence),
        sites=tuple(sites),
        cache_layers=tuple(layers),
        rank=rank,
    )
    for (number, index, tensor), rows in whole.site_tensors.items():
        source.site_tensors[number, index, tensor] = rows[:, _own(source, index, tensor)]
    for (index, tensor), rows in whole.cell_tensors.items():
        source.cell_tensors[index, tensor] = rows[_own(source, index, tensor)].copy()
    for (lane, number, tensor, index), rows in whole.pass_tensors.items():
        own = rows[:, _own(source, index, tensor)]
        source.pass_tensors[lane, number, tensor, index] = own
    for key, found in whole.lane_steps.items():
        source.lane_steps[key] = _compared(source, found)
    for number, step in whole.steps.items():
        source.steps[number] = replace(step, cost=_cost(step.cost, rank))
    return source


def _own(source: MemorySource, index: int, tensor: Tensor) -> slice:
    if tensor in (Tensor.KEYS, Tensor.VALUES):
        layer = source.meta.cache_layers[index]
        return slice(layer.first_kv_head, layer.first_kv_head + layer.num_kv_heads)
    site = source.meta.sites[index]
    return slice(site.first_head, site.first_head + site.num_heads)


def _compared(source: MemorySource, whole):
    arrays = {}
    for name in ARRAYS:
        theirs = getattr(whole, name)
        mine = theirs[:, :, : source.meta.max_heads].copy()
        mine[:] = theirs[0, int(Tensor.KEYS), -1]  # nothing: more heads than kv heads
        for index in range(len(source.meta.sites)):
            for tensor in Tensor:
                own = theirs[index, tensor, _own(source, index, tensor)]
                mine[index, tensor, : len(own)] = own
        arrays[name] = mine
    return replace(whole, **arrays)


def _cost(cost: Cost, rank: Rank) -> Cost:
    parts = (cost.cached, cost.recomputed)
    flops = [Flops(*(_share(getattr(one, f.name), rank) for f in fields(Flops))) for one in parts]
    rest = [_share(getattr(cost, field.name), rank) for field in fields(Cost)[2:]]
    return Cost(*flops, *rest)


def _share(number: int, rank: Rank) -> int:
    """A part of a number; those of all ranks make it up."""
    return number // rank.size + (number % rank.size if rank.number == 0 else 0)
