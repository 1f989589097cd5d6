"""Which part of the model a matrix product belongs to, told by where and when it ran.

Inside an attention module, before its attention call: the projections to q, k and v; after it: the
output projection. The output embedding is the head. Other weights are feed-forward layers; products
of activations alone are "other". Names of modules are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.cost.formulas import attention_flops
from kvtrace.record.cost.products import Key, Product

QKV, OUTPUT, MLP, HEAD, OTHER = "qkv", "output", "mlp", "head", "other"


def attention_owner(path: str, modules: frozenset[str]) -> str | None:
    """The innermost attention module that holds `path`, or None."""
    while True:
        if path in modules:
            return path
        path, dot, _ = path.rpartition(".")
        if not dot:
            return "" if "" in modules else None


def assign(
    products: Sequence[Product],
    calls: Sequence[AttentionCall],
    heads: frozenset[str],
    known: dict[Key, str],
) -> None:
    """Add the role of every new key to `known`.

    Args:
        products: Of one forward, in order.
        calls: Of the same forward.
        heads: Paths that hold the output embedding.
        known: Roles so far; kept: a module that runs twice has its first role.
    """
    modules = frozenset(call.module for call in calls)
    since = 0
    for product in products:
        # calls over another batch than the model's are not among those that are left
        before = min(product.calls_before, len(calls))
        if product.key not in known:
            known[product.key] = _role(product, calls, modules, (since, before), heads)
        if product.rows:
            since = before


def _role(
    product: Product,
    calls: Sequence[AttentionCall],
    modules: frozenset[str],
    between: tuple[int, int],
    heads: frozenset[str],
) -> str:
    """The role of one product, with the attention calls since the last weight: from, until."""
    path, weight, _ = product.key
    if not weight and not product.expert:
        return OTHER
    if path in heads:
        return HEAD
    since, before = between
    inside = attention_owner(path, modules)
    if inside is not None:
        return OUTPUT if before and calls[before - 1].module == inside else QKV
    mixed = sum(call.queries.shape[1] * call.values.shape[3] for call in calls[since:before])
    return OUTPUT if product.rows and mixed == product.in_features else MLP


def without_attention(products: Sequence[Product], calls: Sequence[AttentionCall]) -> list[Product]:
    """Drop q·kᵀ and weights·v where they were seen as products: the calls already count them.

    A fused attention that is none of the calls is one over something else than rows of a cache,
    and stays; one that is a call took no other products. Else one attention may take several
    products (scores as a sum over parts of the key, as in MLA); they are told by their FLOPs and
    by running next to each other. What a loop over heads, or texts, computes is one call as well.
    """
    wanted: dict[int, int] = {}
    loops: dict[int, tuple[int, int]] = {}
    joint = 0
    products, unfused = _without_fused(products, calls)
    for call in unfused:
        scores, mix = attention_flops(call)
        joint = scores if call.mixes else joint + scores
        for flops in (scores, mix if call.mixes else joint):  # one product may be both scores
            wanted[flops] = wanted.get(flops, 0) + 1
            loops[flops] = call.queries.shape[1], call.queries.shape[0]
    kept: list[Product] = []
    previous: Product | None = None
    others = _of_other_modules(products, calls)
    for number, product in enumerate(products):
        if product.key[1] or product.pairs or number in others:
            kept.append(product)
            previous = None
            continue
        together = product.flops + (previous.flops if previous else 0)
        if wanted.get(product.flops):
            wanted[product.flops] -= 1
            previous = None
        elif previous is not None and wanted.get(together):
            wanted[together] -= 1
            kept.remove(previous)
            previous = None
        else:
            kept.append(product)
            previous = product
    none = {products[number].key for number in others}
    return _without_loops(kept, wanted, loops, none)


def _without_loops(
    products: Sequence[Product],
    missing: dict[int, int],
    loops: dict[int, tuple[int, int]],
    others: set[Key],
) -> list[Product]:
    """Drop what a loop over heads, or texts, multiplied one by one.

    Args:
        products: That are left.
        missing: FLOPs of scores or a mix → of how many calls no product was seen.
        loops: The same → how many heads such a call has, and how many texts.
        others: Products that are none of an attention's.
    """
    kept = list(products)
    for flops, calls in missing.items():
        free = [one for one in kept if not (one.key[1] or one.pairs or one.key in others)]
        for count in loops[flops]:
            parts = calls * count
            found = [one for one in free if one.flops * count == flops][:parts]
            if found and len(found) == parts:
                kept = [one for one in kept if not any(one is other for other in found)]
                break
    return kept


def _without_fused(
    products: Sequence[Product], calls: Sequence[AttentionCall]
) -> tuple[list[Product], list[AttentionCall]]:
    """Products that are no fused attention of a call, and calls that none was seen of.

    They are told by their pairs: kernels may fill up features.
    """
    kept, unfused = list(products), []
    fused = [one for one in products if one.pairs]
    for call in calls:
        heads, seq = call.queries.shape[1], int(call.keys.shape[2])
        pairs = call.queries.shape[:3].numel() * seq
        found: list[Product] = []
        for parts in (1, heads, call.queries.shape[0]):
            alike = [one for one in fused if one.pairs * parts == pairs][:parts]
            found = found or (alike if len(alike) == parts else [])
        for one in found:
            fused.remove(one)
            kept.remove(one)
        if not found:
            unfused.append(call)
    return kept, unfused


def _of_other_modules(products: Sequence[Product], calls: Sequence[AttentionCall]) -> set[int]:
    """Which products are none of an attention's, whatever they cost: a recurrent scan's, say.

    Between an attention's products and its call no weight is multiplied but those of its own
    module, or of the layer around a module that has none.
    """
    weighty = {key[0] for key in (one.key for one in products) if key[1]}
    if max((one.calls_before for one in products), default=0) != len(calls):
        return set()  # calls were told late, or some of them are left out
    found: set[int] = set()
    until, apart = len(calls), True
    for number in range(len(products) - 1, -1, -1):
        path, weight, _ = products[number].key
        if products[number].calls_before != until:
            until, apart = products[number].calls_before, False
        if not weight:
            found.update([number] * apart)
        elif not apart:
            own = calls[until].module
            if not any(_is_inside(one, own) for one in weighty):
                own = own.rpartition(".")[0]
            apart = not _is_inside(path, own)
    return found


def _is_inside(path: str, module: str) -> bool:
    return not module or path == module or path.startswith(module + ".")
