"""Several processes that share the heads of one model: which of them this is, and what it holds.

Which heads are here is told by the config, which stays whole, or else by how the weights of the
attention module are divided. Nobody else is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from msgspec.structs import replace
from torch import nn

from kvtrace.configs import count
from kvtrace.record.card import text_config
from kvtrace.record.processes.local import here
from kvtrace.trace import CacheLayer, Meta, Rank, Site

_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_KV_NAMES = re.compile(r"(^|_)(k|key|kv|qkv|wk|wkv|wqkv|keys|attn)(_|$)|query_key_value")


def rank_of(model: nn.Module) -> Rank | None:
    """The place of this process among those that share the model's heads; None: it has them all."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    spread: list[Any] = [one for one in model.parameters() if here(one) is not one]
    for parameter in spread:
        axis = _divided_along(parameter, model)
        if axis is not None:
            return _place(parameter.device_mesh, axis)
    size, mesh = getattr(model, "_tp_size", None), getattr(model, "_device_mesh", None)
    if not isinstance(size, int) or size < 2:
        return None
    if mesh is None:
        return Rank(dist.get_rank() % size, size, dist.get_rank() // size)
    names = mesh.mesh_dim_names or ()
    return _place(mesh, names.index("tp") if "tp" in names else mesh.ndim - 1)


def _divided_along(parameter: Any, model: nn.Module) -> int | None:
    """The axis of its mesh along which a parameter is divided for good, if there is one."""
    names = parameter.device_mesh.mesh_dim_names or ()
    for axis, placement in enumerate(parameter.placements):
        named = axis < len(names) and names[axis] == "tp"
        divided = placement.is_shard() and parameter.device_mesh.size(axis) > 1
        if divided and (named or not _gathers(model)):
            return axis
    return None


def _gathers(model: nn.Module) -> bool:
    """Whether divided weights are whole again while they are used (FSDP)."""
    kind = getattr(getattr(dist, "fsdp", None), "FSDPModule", None)
    return kind is not None and any(isinstance(one, kind) for one in model.modules())


def _place(mesh: Any, axis: int) -> Rank:
    """This process along one axis of a mesh; the other axes count replicas."""
    replica = 0
    for other in range(mesh.ndim):
        if other != axis:
            replica = replica * mesh.size(other) + mesh.get_local_rank(other)
    return Rank(mesh.get_local_rank(axis), mesh.size(axis), replica)


def own_path(path: Path, rank: Rank | None) -> Path:
    """Where this process writes: `run.kvt` becomes `run.rank0.kvt`, one file for each process."""
    if rank is None:
        return path
    return path.with_name(f"{path.stem}.rank{dist.get_rank()}{path.suffix}")


def of_rank(meta: Meta, rank: Rank) -> Meta:
    """META of a trace that holds one rank's heads, and says so wherever it is looked at."""
    banner = "; ".join(part for part in (meta.model.banner, rank.sentence) if part)
    return replace(meta, rank=rank, model=replace(meta.model, banner=banner))


@dataclass(slots=True)
class Share:
    """Says of sites and cache layers which heads of the whole model they are.

    Attributes:
        model: The watched model.
        rank: This process.
    """

    model: nn.Module
    rank: Rank
    _sites: list[tuple[int, int]] = field(default_factory=list)
    _layers: list[tuple[int, int]] = field(default_factory=list)

    def placed(
        self, sites: Sequence[Site], layers: Sequence[CacheLayer]
    ) -> tuple[tuple[Site, ...], tuple[CacheLayer, ...]]:
        """The same with their heads placed; what was once said of a place stays."""
        readers = {site.reads: site for site in reversed(sites)}
        self._sites += [self._site(one) for one in sites[len(self._sites) :]]
        self._layers += [
            self._layer(one, readers.get(one.index)) for one in layers[len(self._layers) :]
        ]
        return (
            tuple(
                replace(site, first_head=first, all_heads=every)
                for site, (first, every) in zip(sites, self._sites, strict=True)
            ),
            tuple(
                replace(layer, first_kv_head=first, all_kv_heads=every)
                for layer, (first, every) in zip(layers, self._layers, strict=True)
            ),
        )

    def _site(self, site: Site) -> tuple[int, int]:
        known = count(text_config(self.model), *_HEADS)
        return self._part(site.num_heads, known, site.module, kv=False)

    def _layer(self, layer: CacheLayer, reader: Site | None) -> tuple[int, int]:
        """Latents and recurrent states serve every head: each process has all of them."""
        if layer.kind in ("latent", "state"):
            return 0, layer.num_kv_heads
        known = count(text_config(self.model), *_KV_HEADS, *_HEADS)
        module = "" if reader is None else reader.module
        return self._part(layer.num_kv_heads, known, module, kv=True)

    def _part(self, heads: int, known: int, module: str, *, kv: bool) -> tuple[int, int]:
        """(first, all) of some heads that are here."""
        number, size = self.rank.number, self.rank.size
        dealt = heads * size
        if known not in (heads, dealt) and not (kv and heads == 1 and 0 < known < size):
            known = dealt if self._divided(module, kv=kv) else heads
        if known == heads:
            return 0, heads
        # fewer kv heads than processes: neighbours hold the same one
        return (number * heads if known == dealt else number * known // size), known

    def _divided(self, path: str, *, kv: bool) -> bool:
        """Whether the matrices that make the heads of an attention module are divided."""
        try:
            module = self.model.get_submodule(path)
        except AttributeError:
            return True
        matrices = {
            name: parameter for name, parameter in module.named_parameters() if parameter.ndim > 1
        }
        named = {
            name: parameter
            for name, parameter in matrices.items()
            if any(_KV_NAMES.search(part) for part in name.split("."))
        }
        chosen = (named if kv and named else matrices).values()
        return any(here(one) is not one for one in chosen)
