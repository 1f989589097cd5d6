"""How two runs differ before anything was computed: the model, and what it ran with."""

from __future__ import annotations

from collections.abc import Iterator

from kvtrace.analysis.two_runs.align import readable
from kvtrace.trace import Site, Trace


def other_model(old: Trace, new: Trace) -> str:
    """Why the runs can't be of one model; empty when they can."""
    for trace in (old, new):
        if not (len(trace) and trace.meta.sites):
            what = "steps" if not len(trace) else "attention"
            return f"{trace.name} has no {what} to compare"
    mine, theirs = old.meta.sites, new.meta.sites
    cards = old.meta.model, new.meta.model
    names = f"{cards[0].name} ({cards[0].class_name}) and {cards[1].name} ({cards[1].class_name})"
    if len(mine) != len(theirs):
        return f"not the same model: {names} attend in {len(mine)} and {len(theirs)} places"
    for one, other in zip(mine, theirs, strict=True):
        if _shape(one) != _shape(other):
            return f"not the same model: layer {one.index} of {names} has {_said(one, other)}"
    counts = {card.parameter_count for card in cards if card.parameter_count}
    if len(counts) > 1:
        return f"not the same model: {names} have {' and '.join(map(str, sorted(counts)))} numbers"
    return ""


def _shape(site: Site) -> tuple[int, int, int, int]:
    return site.num_heads, site.num_kv_heads, site.key_dim, site.value_dim


def _said(one: Site, other: Site) -> str:
    def words(site: Site) -> str:
        return f"{site.num_heads} heads over {site.num_kv_heads} of {site.key_dim}"

    return f"{words(one)}, and {words(other)}"


def differing(old: Trace, new: Trace) -> Iterator[tuple[str, str, str]]:
    """How the runs differ before anything was computed."""
    for name in ("name", "class_name", "weights", "dtype", "attention", "device", "tokenizer"):
        mine, theirs = getattr(old.meta.model, name), getattr(new.meta.model, name)
        if mine != theirs:
            yield name.replace("_name", ""), mine or "–", theirs or "–"
    for name in sorted(set(old.meta.versions) | set(new.meta.versions)):
        mine, theirs = (trace.meta.versions.get(name, "–") for trace in (old, new))
        if mine != theirs:
            yield name, mine, theirs
    counts = [max((step.num_sequences for step in readable(t)), default=0) for t in (old, new)]
    if counts[0] != counts[1]:
        yield "sequences", str(counts[0]), str(counts[1])
    kinds = [", ".join(dict.fromkeys(one.kind for one in t.meta.cache_layers)) for t in (old, new)]
    if kinds[0] != kinds[1]:
        yield "cache", kinds[0], kinds[1]
    types = [", ".join(dict.fromkeys(one.dtype for one in t.meta.cache_layers)) for t in (old, new)]
    if types[0] != types[1]:
        yield "cache dtype", types[0], types[1]
