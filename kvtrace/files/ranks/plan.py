"""From the META of each rank to the META of one model, and where each of its heads is."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from kvtrace.errors import TraceError
from kvtrace.files.ranks.heads import Heads, apart, said, side_by_side
from kvtrace.trace import CacheLayer, Lane, Meta, ModelCard, Site

_SAME_MODEL = ("class_name", "architecture", "vocab_size", "dtype", "parameter_count")
_SAME_SITE = (
    *("module", "call", "layer", "kind", "key_dim", "value_dim", "reads", "shared_from"),
    "all_heads",
)
_SAME_LAYER = ("layer", "key_dim", "value_dim", "dtype", "all_kv_heads")
_MAYBE_UNKNOWN = ("all_heads", "all_kv_heads")
"""0 where a rank does not know."""


class Plan(Struct, frozen=True):
    """One model, put together from ranks.

    Attributes:
        meta: Of the whole.
        sites: Query heads of each site.
        layers: kv heads of each cache layer.
        missing: What is in no rank that is here, in sentences.
    """

    meta: Meta
    sites: tuple[Heads, ...]
    layers: tuple[Heads, ...]
    missing: tuple[str, ...]


def plan(names: Sequence[str], metas: Sequence[Meta]) -> Plan:
    """Put the tables of all ranks side by side.

    Args:
        names: File name of each rank.
        metas: Theirs, in the order of the ranks.

    Raises:
        TraceError: They are not ranks of one model.
    """
    first = metas[0]
    _all_same([meta.model for meta in metas], _SAME_MODEL, "the model", names)
    num_sites = min(len(meta.sites) for meta in metas)
    num_layers = min(len(meta.cache_layers) for meta in metas)
    sites = [[meta.sites[index] for meta in metas] for index in range(num_sites)]
    layers = [[meta.cache_layers[index] for meta in metas] for index in range(num_layers)]
    for index, site in enumerate(sites):
        _all_same(site, _SAME_SITE, f"site {index}", names)
    for index, layer in enumerate(layers):
        _all_same(layer, _SAME_LAYER, f"cache layer {index}", names)
    sites = [group for group in sites if group[0].reads < num_layers]
    queries = [
        side_by_side([(one.first_head, one.num_heads, one.all_heads) for one in group])
        for group in sites
    ]
    rows = [
        _kv_heads(group, list(zip(sites, queries, strict=True)), index)
        for index, group in enumerate(layers)
    ]
    joined_layers = [_layer(group, heads) for group, heads in zip(layers, rows, strict=True)]
    joined_sites = [
        _site(group, heads, rows[group[0].reads], names)
        for group, heads in zip(sites, queries, strict=True)
    ]
    missing = _missing(metas, queries, rows)
    meta = replace(
        first,
        model=_card(metas, missing),
        sites=tuple(joined_sites),
        cache_layers=tuple(joined_layers),
        lanes=tuple(_lanes(metas)),
        not_recorded=_union([meta.not_recorded for meta in metas]),
        unseen=_union([meta.unseen for meta in metas]),
        rank=None,
    )
    return Plan(meta, tuple(queries), tuple(rows), missing)


def _all_same(
    ranks: Sequence[object], fields: Sequence[str], what: str, names: Sequence[str]
) -> None:
    for file, rank in zip(names[1:], ranks[1:], strict=True):
        for name in fields:
            here, there = getattr(ranks[0], name), getattr(rank, name)
            if name in _MAYBE_UNKNOWN and 0 in (here, there):
                continue
            if here != there:
                raise TraceError(
                    f"{file}: {what} has {name} {there!r}, but in {names[0]} it is {here!r}: "
                    "these are not ranks of one run. Name the files of one run."
                )


# -- heads -------------------------------------------------------------------------------------


def _kv_part(layer: CacheLayer) -> tuple[int, int, int]:
    return layer.first_kv_head, layer.num_kv_heads, layer.all_kv_heads


def _kv_heads(
    group: Sequence[CacheLayer], sites: Sequence[tuple[Sequence[Site], Heads]], index: int
) -> Heads:
    """The kv heads of a cache layer, such that each query head still reads the one that it read.

    Ranks that hold the same kv head share it, unless its readers would then stand elsewhere.
    """
    shared = side_by_side([_kv_part(layer) for layer in group])
    readers = [(ranks, heads) for ranks, heads in sites if ranks[0].reads == index]
    if all(_still_read(ranks, heads, shared) for ranks, heads in readers):
        return shared
    return apart([_kv_part(layer) for layer in group])


def _still_read(ranks: Sequence[Site], heads: Heads, shared: Heads) -> bool:
    if len(heads.places) % len(shared.places):
        return False
    each = len(heads.places) // len(shared.places)
    twin = {other: one for one, other in shared.twins}
    for number, (rank, own) in enumerate(heads.places):
        read = (rank, ranks[rank].kv_head(own))
        if twin.get(read, read) != shared.places[number // each]:
            return False
    return True


def _site(group: Sequence[Site], heads: Heads, rows: Heads, names: Sequence[str]) -> Site:
    first, kv_heads = group[0], len(rows.places)
    if len(heads.places) % kv_heads:
        raise TraceError(
            f"{names[0]} and the other ranks: {first.module} has {len(heads.places)} heads on "
            f"{kv_heads} kv heads in all; that can't be shown as one model."
        )
    sinks = tuple(group[rank].sinks[own] for rank, own in heads.places if group[rank].sinks)
    begin, every = _placed(heads)
    return replace(
        first,
        num_heads=len(heads.places),
        num_kv_heads=kv_heads,
        sinks=sinks,
        first_head=begin,
        all_heads=every,
    )


def _layer(group: Sequence[CacheLayer], heads: Heads) -> CacheLayer:
    """A recurrent state is held whole by every rank."""
    begin, every = _placed(heads)
    return replace(
        group[0],
        num_kv_heads=len(heads.places),
        state_bytes=max(layer.state_bytes for layer in group),
        first_kv_head=begin,
        all_kv_heads=every,
    )


def _placed(heads: Heads) -> tuple[int, int]:
    """(first, all), as META says it; 0, 0 for all of them."""
    if not heads.missing:
        return 0, 0
    together = heads.numbers[-1] - heads.numbers[0] + 1 == len(heads.numbers)
    return heads.numbers[0] if together else 0, heads.every


# -- the rest ----------------------------------------------------------------------------------


def _card(metas: Sequence[Meta], missing: Sequence[str]) -> ModelCard:
    """The card of the whole; its bytes are those of all processes together."""
    banners = []
    for meta in metas:
        own = meta.model.banner
        banners.append(own if meta.rank is None else _without(own, meta.rank.sentence))
    said_once = [*missing, *dict.fromkeys(filter(None, banners))]
    return replace(
        metas[0].model,
        device=", ".join(dict.fromkeys(meta.model.device for meta in metas)),
        weight_bytes=sum(meta.model.weight_bytes for meta in metas),
        banner="; ".join(said_once),
    )


def _without(banner: str, sentence: str) -> str:
    return banner.removesuffix(sentence).removesuffix("; ")


def _lanes(metas: Sequence[Meta]) -> list[Lane]:
    """Lanes that every rank compared; the widest tolerance."""
    found = []
    for lane in metas[0].lanes:
        others = [meta.lane(lane.name) for meta in metas]
        alike = [one for one in others if one is not None and one.dtype == lane.dtype]
        if len(alike) == len(metas):
            found.append(max(alike, key=lambda one: one.tolerance))
    return found


def _union(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for texts in lists for text in texts))


def _missing(
    metas: Sequence[Meta], queries: Sequence[Heads], rows: Sequence[Heads]
) -> tuple[str, ...]:
    """Which ranks are not here, and which heads are therefore not."""
    ranks = [meta.rank for meta in metas if meta.rank is not None]
    if not ranks:
        return ()
    size = ranks[0].size
    absent = sorted(set(range(size)) - {rank.number for rank in ranks})
    if not absent:
        return ()
    lacking = _lacking(queries, "head") + _lacking(rows, "kv head")
    who = f"rank{'s' if len(absent) > 1 else ''} {said(absent)} of {size}"
    verb = "are" if len(absent) > 1 else "is"
    what = f": without {' and '.join(lacking)}" if lacking else ""
    return (f"{who} {verb} missing{what}{_numbered(queries)}",)


def _lacking(all_heads: Sequence[Heads], noun: str) -> list[str]:
    """Missing heads, the same ones of several layers once."""
    found = dict.fromkeys((one.missing, one.every) for one in all_heads if one.missing)
    return [
        f"{noun}{'s' if len(missing) > 1 else ''} {said(missing)} of {every}"
        for missing, every in found
    ]


def _numbered(queries: Sequence[Heads]) -> str:
    """What the heads that are here are called, where they are not called by their numbers."""
    moved = dict.fromkeys(
        one.numbers for one in queries if one.numbers != tuple(range(len(one.numbers)))
    )
    if not moved:
        return ""
    return "; heads " + " or ".join(said(numbers) for numbers in moved) + " are here as 0, 1, …"
