"""Same q, k, v and visibility, another output: what happened to the scores.

Every hypothesis is tried forwards: change the right scores by one number (a factor, a cap, a
slope) or let other rows be seen, mix the values, and see whether the output of the cached lane
comes out. Only the heads that are wrong have to be explained.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.identify import Identity
from kvtrace.analysis.checks.scenes.query import Query
from kvtrace.analysis.checks.scenes.relations import close, head_order, rounded_to
from kvtrace.analysis.checks.scenes.rows import (
    counted,
    differing,
    only_heads,
    pair,
    supposed_inside,
)
from kvtrace.analysis.checks.scenes.scene import Scene
from kvtrace.analysis.checks.wrong_output.added import other_bias
from kvtrace.analysis.checks.wrong_output.carried import follows
from kvtrace.analysis.checks.wrong_output.mixed_rows import Mixture, best_only, leaked, seen_instead
from kvtrace.analysis.checks.wrong_output.one_number import bent
from kvtrace.analysis.checks.wrong_output.precision import Mixed, ran_in
from kvtrace.analysis.checks.wrong_output.sums import factors_of, unlike_one
from kvtrace.analysis.checks.wrong_output.visibility import said_of

_WHOLE = 1e-3
"""How near to 1 weights sum where nothing but rows takes a share."""


def check_arithmetic(scene: Scene, identity: Identity) -> Finding | None:
    """Output that differs although everything before it is right."""
    live = scene.live
    mine, theirs = scene.cached.output[:, live], scene.reference.output[:, live]
    atol = scene.atol.output
    if close(mine, theirs, atol):
        return None
    wrong = np.flatnonzero((np.abs(mine - theirs) > atol).any(axis=(0, 2)))
    query = int(live[wrong[-1]])

    heads = differing(mine[:, wrong[-1:]], theirs[:, wrong[-1:]], atol)
    head, which = only_heads(heads, len(mine), "head")

    def found(name: str, tensor: str, evidence: str) -> Finding:
        at = (scene.step, scene.layer, tensor)
        return Finding(name, *at, evidence + which, head, query)

    if follows(scene):
        coarse = _coarse(scene)
        return None if coarse is None else found(*coarse)
    order = head_order(mine, theirs, atol)
    if order is not None:
        evidence = f"output heads {list(order)} stand where 0, 1, 2 … should"
        return found("HEAD-MAP", "output", evidence)
    far = float(np.abs(mine - theirs).max())
    named = _of_scores(scene, identity, query, heads)
    if named is not None:
        return found(*named)
    return found("UNKNOWN", "output", f"q, k, v and mask are right, output is off by {far:.3g}")


def _of_scores(
    scene: Scene, identity: Identity, query: int, heads: NDArray[np.int64]
) -> tuple[str, str, str] | None:
    """(kind, tensor, evidence) of what happened to the scores of a query; None: not to be told."""
    one = _query(scene, identity, query)
    if one is None:
        return None
    part = one.only(heads)
    whole = np.abs(np.exp(part.logits).sum(axis=1) - 1).max() < _WHOLE
    fits = whole and part.misfit(part.logits).max() <= part.atol
    return (
        (_coarse(scene) if fits else None)
        or _unwritten(scene, identity, part)
        or _looked(scene, identity, part, query, heads)
        or unlike_one(scene, part)
        or other_bias(scene, part, query, heads)
        or bent(part)
        or _mapped(scene, one)
        or _rounded(part)
        or _narrow(scene, identity, part, query, heads)
    )


def _query(scene: Scene, identity: Identity, query: int) -> Query | None:
    """The rows of a query; None unless it sees exactly what it should, by a softmax."""
    if scene.site.rule != "softmax":
        return None
    rows = np.flatnonzero(scene.cached.visible[query])
    places = identity.place[rows]
    if not len(rows) or (places < 0).any() or len(set(places.tolist())) != len(rows):
        return None
    if set(places.tolist()) != set(np.flatnonzero(scene.reference.visible[query]).tolist()):
        return None
    group = scene.site.num_heads // scene.site.num_kv_heads
    keys = np.repeat(scene.cached.keys[:, rows], group, axis=0).astype(np.float64)
    values = np.repeat(scene.cached.values[:, rows], group, axis=0).astype(np.float64)
    raw = np.einsum("hd,hrd->hr", scene.cached.queries[:, query], keys) * scene.site.scale
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(scene.weights(query)[:, places].astype(np.float64)), -80.0)
    return Query(
        logits,
        raw,
        values,
        scene.cached.output[:, query].astype(np.float64),
        scene.reference.output[:, query].astype(np.float64),
        places,
        _near(scene, query),
        np.array(scene.site.sinks, np.float64) if scene.site.sinks else None,
    )


def _near(scene: Scene, query: int) -> float:
    """How near an explanation must come: in narrow types a difference is little more than rounding.

    So much of it must be explained that it is not by chance.
    """
    mine, right = scene.cached.output[:, query], scene.reference.output[:, query]
    far, atol = float(np.abs(mine - right).max()), scene.atol.output
    return min(2 * atol, max(atol / 4, far / 3))


def _unwritten(scene: Scene, identity: Identity, one: Query) -> tuple[str, str, str] | None:
    """All-zero rows among those mixed: they take their share of the weights and give nothing."""
    if scene.site.sinks or not one.plain:
        return None
    factors = factors_of(one)
    if factors is None or min(factors) <= 0 or max(factors) >= 1:
        return None
    total = np.exp(one.raw).sum(axis=1)
    rows = total * (1 / np.array(factors) - 1)
    count = int(np.rint(np.median(rows)))
    if count < 1 or np.abs(rows - count).max() > 0.02 * count:
        return None
    if count == 1 and not (identity.key_is_zero & identity.value_is_zero).any():
        evidence = "each head's weights sum to Σ/(1 + Σ), Σ the sum of exp(score): 1 is added"
        return "WEIGHTS-NOT-NORMALISED", "weights", evidence
    evidence = f"judging by the output, {count} all-zero rows are visible"
    return "ZERO-ROWS-VISIBLE", "mask", evidence


def _looked(
    scene: Scene, identity: Identity, one: Query, query: int, heads: NDArray[np.int64]
) -> tuple[str, str, str] | None:
    """Other rows were mixed than the mask lets through that was seen."""
    wanted = set(one.places.tolist())
    logits, values, places = one.logits, one.values, one.places
    if one.plain:
        rows = np.flatnonzero((identity.place >= 0) & ~np.isin(identity.place, places))
        rows = rows[np.unique(identity.place[rows], return_index=True)[1]]
        group = scene.site.num_heads // scene.site.num_kv_heads
        keys = scene.cached.keys[heads // group][:, rows].astype(np.float64)
        asked = scene.cached.queries[heads, query].astype(np.float64)
        more = np.einsum("hd,hrd->hr", asked, keys) * scene.site.scale
        logits = np.concatenate((one.raw, more), axis=1)
        added = scene.cached.values[heads // group][:, rows].astype(np.float64)
        values = np.concatenate((one.values, added), axis=1)
        places = np.concatenate((places, identity.place[rows]))
    order = np.argsort(places)
    own = frozenset(int(place) for place in scene.places[: query + 1])
    mix = Mixture(
        logits[:, order],
        values[:, order],
        one.output,
        places[order],
        np.isin(places[order], list(wanted)),
        own,
        scene.padding,
        one.atol,
    )
    have, lowered = seen_instead(mix), ""
    if have is None and one.plain and (leak := leaked(mix)) is not None:
        have = leak[0]
        lowered = f", with scores that are only {leak[1]:.3g} lower: the mask adds too little"
    if have is None and (count := best_only(mix)) is not None:
        evidence = f"judging by the output, each head mixes only its {count} highest scored rows"
        return "MASK", "mask", f"{evidence} of {len(wanted)}"
    said = None if have is None else said_of(scene, query, have, wanted)
    if said is None:
        return None
    name, _, evidence = said
    evidence = f"judging by the output, and not by the mask handed to attention, {evidence}"
    return name, "mask", evidence + lowered


def _rounded(one: Query) -> tuple[str, str, str] | None:
    """An output that is nearly right and fits in a smaller type."""
    mine, right = one.output.astype(np.float32), one.right.astype(np.float32)
    near = float(np.abs(mine - right).max()) < 0.02 * float(np.abs(right).max())
    smaller = rounded_to(mine, right) if near else None
    if smaller is None:
        return None
    return "DTYPE", "output", f"every number of the output fits in {smaller}; q, k and v are right"


def _narrow(
    scene: Scene, identity: Identity, one: Query, query: int, heads: NDArray[np.int64]
) -> tuple[str, str, str] | None:
    """An output that comes out where attention, or a part of it, runs in a smaller type."""
    rows = np.flatnonzero(scene.cached.visible[query])
    group = scene.site.num_heads // scene.site.num_kv_heads
    mixed = Mixed(
        scene.cached.queries[heads, query].astype(np.float64),
        scene.cached.keys[heads // group][:, rows].astype(np.float64),
        one.values,
        one.logits,
        scene.site.scale,
        one.output,
        one.right,
    )
    said = ran_in(mixed)
    return None if said is None else ("DTYPE", "output", f"judging by the output, {said}")


def _coarse(scene: Scene) -> tuple[str, str, str] | None:
    """Cached rows in a smaller type, each within rounding of the right ones: their sum is not."""
    for tensor in ("k", "v"):
        rows = scene.seen[supposed_inside(scene, scene.seen)]
        mine, right, _ = pair(scene, tensor, rows[~np.isin(scene.supposed[rows], scene.places)])
        smaller = rounded_to(mine, right) if mine.size else None
        if smaller is not None:
            evidence = f"every number of {counted(mine.shape[1])} of {tensor} fits in {smaller}"
            return "DTYPE", tensor, evidence
    return None


def _mapped(scene: Scene, one: Query) -> tuple[str, str, str] | None:
    """Query heads that read another kv head than they should."""
    site = scene.site
    group = site.num_heads // site.num_kv_heads
    if site.num_kv_heads < 2:
        return None
    reads = []
    for head in range(site.num_heads):
        fits = [kv for kv in range(site.num_kv_heads) if _reads(scene, one, head, kv * group)]
        if not fits:
            return None
        reads.append(head // group if head // group in fits else fits[0])
    if reads == [head // group for head in range(site.num_heads)]:
        return None
    return "HEAD-MAP", "output", f"query heads read kv heads {reads}"


def _reads(scene: Scene, one: Query, head: int, other: int) -> bool:
    """Whether a head's output follows from the kv head that `other` belongs to."""
    group = scene.site.num_heads // scene.site.num_kv_heads
    rows = np.flatnonzero(scene.cached.visible[-1])[: one.values.shape[1]]
    keys = scene.cached.keys[other // group][rows].astype(np.float64)
    query = scene.cached.queries[head, -1].astype(np.float64)
    scores = keys @ query * scene.site.scale
    weights = np.exp(scores - scores.max())
    made = weights / weights.sum() @ one.values[other]
    return bool(np.abs(made - one.output[head]).max() <= one.atol)
