"""Same q, k, v and visibility, another output: what happened to the scores.

Every hypothesis is tried forwards: change the right scores by one number (a factor, a cap, a
slope) or let other rows be seen, mix the values, and see whether the output of the cached lane
comes out. Only the heads that are wrong have to be explained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.checks.identify import Identity
from kvtrace.analysis.checks.looks import Mixture, leaked, seen_instead
from kvtrace.analysis.checks.minimum import least
from kvtrace.analysis.checks.precision import Mixed, ran_in
from kvtrace.analysis.checks.relations import close, factor, head_order, rounded_to
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.rows import differing, only_heads
from kvtrace.analysis.checks.scene import Scene
from kvtrace.analysis.checks.visibility import said_of

Wide = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Query:
    """One query whose output is wrong, rows in slot order.

    Attributes:
        logits: Right logarithm of the weights, [heads, rows].
        raw: q·k·scale before softcap and bias, [heads, rows].
        values: [heads, rows, dim].
        output: What the cached lane made, [heads, dim].
        right: What it should be, [heads, dim].
        places: Of the rows.
        atol: What is rounding.
    """

    logits: Wide
    raw: Wide
    values: Wide
    output: Wide
    right: Wide
    places: NDArray[np.int64]
    atol: float

    def only(self, heads: NDArray[np.int64]) -> _Query:
        """Some of the heads."""
        return _Query(
            self.logits[heads],
            self.raw[heads],
            self.values[heads],
            self.output[heads],
            self.right[heads],
            self.places,
            self.atol,
        )

    @property
    def plain(self) -> bool:
        """Whether softmax of q·k·scale alone gives the right output."""
        return bool(self.misfit(self.raw, self.right).max() <= self.atol)

    def rescaled(self, factor: float) -> Wide:
        """Logits if q·k were that many times as large, and what is added to it the same."""
        return np.asarray(self.logits + (factor - 1) * self.raw, np.float64)

    def misfit(self, logits: Wide, output: Wide | None = None) -> Wide:
        """Largest error of the output (of the cached lane) if these were the logits, [heads]."""
        top = logits - logits.max(axis=-1, keepdims=True)
        weights = np.exp(top)
        weights /= weights.sum(axis=-1, keepdims=True)
        made = np.einsum("hr,hrd->hd", weights, self.values)
        return np.asarray(
            np.abs(made - (self.output if output is None else output)).max(axis=-1), np.float64
        )


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

    order = head_order(mine, theirs, atol)
    if order is not None:
        evidence = f"output heads {list(order)} stand where 0, 1, 2 … should"
        return found("HEAD-MAP", "output", evidence)
    far = float(np.abs(mine - theirs).max())
    one = _query(scene, identity, query)
    if one is not None:
        part = one.only(heads)
        named = (
            _unwritten(scene, identity, part)
            or _looked(scene, identity, part, query, heads)
            or _sums(scene, part)
            or _scores(part)
            or _mapped(scene, one)
            or _rounded(part)
            or _narrow(scene, identity, part, query, heads)
        )
        if named is not None:
            return found(*named)
    return found("UNKNOWN", "output", f"q, k, v and mask are right, output is off by {far:.3g}")


def _query(scene: Scene, identity: Identity, query: int) -> _Query | None:
    """The rows of a query; None unless it sees exactly what it should."""
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
    return _Query(
        logits,
        raw,
        values,
        scene.cached.output[:, query].astype(np.float64),
        scene.reference.output[:, query].astype(np.float64),
        places,
        2 * scene.atol.output,
    )


def _unwritten(scene: Scene, identity: Identity, one: _Query) -> tuple[str, str, str] | None:
    """All-zero rows among those mixed: they take their share of the weights and give nothing."""
    if scene.site.sinks or not one.plain:
        return None
    factors = _factors(one)
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
    scene: Scene, identity: Identity, one: _Query, query: int, heads: NDArray[np.int64]
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
    said = None if have is None else said_of(scene, query, have, wanted)
    if said is None:
        return None
    name, _, evidence = said
    evidence = f"judging by the output, and not by the mask handed to attention, {evidence}"
    return name, "mask", evidence + lowered


def _rounded(one: _Query) -> tuple[str, str, str] | None:
    """An output that is nearly right and fits in a smaller type."""
    mine, right = one.output.astype(np.float32), one.right.astype(np.float32)
    near = float(np.abs(mine - right).max()) < 0.02 * float(np.abs(right).max())
    smaller = rounded_to(mine, right) if near else None
    if smaller is None:
        return None
    return "DTYPE", "output", f"every number of the output fits in {smaller}; q, k and v are right"


def _narrow(
    scene: Scene, identity: Identity, one: _Query, query: int, heads: NDArray[np.int64]
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


def _sums(scene: Scene, one: _Query) -> tuple[str, str, str] | None:
    """Weights that do not sum to 1, or to 1 though there is a sink, read off the output."""
    if scene.site.sinks:
        return _without_sink(one)
    sums = _factors(one) or _solved_sums(one) or _sums_by_row(one)
    if sums is None or max(abs(total - 1) for total in sums) <= 0.01:
        return None
    spread = f"{min(sums):.3f} to {max(sums):.3f}"
    return "WEIGHTS-NOT-NORMALISED", "weights", f"weights of the heads sum to {spread}"


def _without_sink(one: _Query) -> tuple[str, str, str] | None:
    """The learned sink takes its share in one lane only."""
    factors = _factors(one)
    shares = np.exp(one.logits).sum(axis=1)
    if factors is None or np.abs(np.array(factors) * shares - 1).max() > 0.01:
        return None
    evidence = (
        f"the sink takes no share: the weights of the rows sum to 1, recomputed to "
        f"{shares.min():.3f} to {shares.max():.3f}"
    )
    return "SCORE-NONLINEAR", "weights", evidence


def _factors(one: _Query) -> list[float] | None:
    """The right output times a number of its own in every head."""
    pairs = zip(one.output, one.right, strict=True)
    factors = [factor(mine, right, one.atol) for mine, right in pairs]
    found = [number for number in factors if number is not None]
    return found if len(found) == len(factors) else None


def _solved_sums(one: _Query) -> list[float] | None:
    """Sum of the weights of each head, where the output determines them."""
    if one.values.shape[1] > one.values.shape[2]:
        return None
    sums = []
    for values, output in zip(one.values, one.output, strict=True):
        if np.linalg.cond(values) > 1e4:
            return None
        solved = np.linalg.lstsq(values.T, output, rcond=None)[0]
        if np.abs(values.T @ solved - output).max() > one.atol:
            return None
        sums.append(float(solved.sum()))
    return sums


def _sums_by_row(one: _Query) -> list[float] | None:
    """The same where each row's weight is the right one times a number that all heads share."""
    heads, rows, dim = one.values.shape
    if heads * dim < 2 * rows:
        return None
    weights = np.exp(one.logits)
    mixed = (weights[..., None] * one.values).transpose(0, 2, 1).reshape(heads * dim, rows)
    wanted = one.output.reshape(heads * dim)
    factors = np.linalg.lstsq(mixed, wanted, rcond=1e-6)[0]
    if np.abs(mixed @ factors - wanted).max() > one.atol:
        return None
    return [float(total) for total in weights @ factors]


def _scores(one: _Query) -> tuple[str, str, str] | None:
    """One number that turns the right scores into those of the cached lane."""
    if one.logits.shape[1] < 2:
        return None
    grid = np.geomspace(1 / 64, 64, 97)
    both = [_plain_scale(one, output, grid) for output in (one.output, one.right)]
    if all(misfit <= one.atol for _, misfit in both):
        s = both[0][0] / both[1][0]
        if abs(s - 1) > 1e-3:
            return "SCALE", "weights", f"q·k is scaled by {s:.4g} × as much as when recomputed"
    s, misfit = least(lambda x: float(one.misfit(x * one.logits).max()), grid)
    if misfit <= one.atol and abs(s - 1) > 1e-3:
        return "SCALE", "weights", f"log-weights = {s:.4g} × the recomputed ones"
    s, misfit = least(lambda x: float(one.misfit(one.rescaled(x)).max()), grid)
    if misfit <= one.atol and abs(s - 1) > 1e-3:
        return "SCALE", "weights", f"q·k = {s:.4g} × the recomputed one, what is added is the same"
    return _line(one) or _nonlinear(one)


def _plain_scale(one: _Query, output: Wide, grid: Wide) -> tuple[float, float]:
    """(factor, misfit) of the multiple of q·k that best explains an output."""
    return least(lambda x: float(one.misfit(x * one.raw, output).max()), grid)


def _line(one: _Query) -> tuple[str, str, str] | None:
    """A term linear in the position, with a slope of its own in every head."""
    if one.logits.shape[1] < 3:
        return None
    ramp = one.places - one.places.mean()
    slopes = []
    for head in range(len(one.logits)):

        def off(slope: float, head: int = head) -> float:
            return float(one.misfit(one.logits + slope * ramp)[head])

        slope, misfit = least(off, np.linspace(-2, 2, 161))
        if misfit > one.atol:
            return None
        slopes.append(slope)
    if max(map(abs, slopes)) < 1e-3:
        return None
    shown = ", ".join(f"{slope:+.3g}" for slope in slopes[:4])
    return "SCORE-BIAS", "weights", f"scores differ by {shown} a position (first heads)"


def _nonlinear(one: _Query) -> tuple[str, str, str] | None:
    """A cap or clamp that one lane has and the other has not."""
    reach = float(np.abs(one.raw).max())
    if one.misfit(one.raw).max() <= one.atol:
        return "SCORE-NONLINEAR", "weights", "the cached lane uses q·k·scale without cap or bias"
    shapes: tuple[tuple[str, Callable[[float], Wide]], ...] = (
        ("softcap", lambda cap: cap * np.tanh(one.raw / cap)),
        ("clamp", lambda cap: np.clip(one.raw, -cap, cap)),
    )
    for what, bent in shapes:

        def off(cap: float, bent: Callable[[float], Wide] = bent) -> float:
            return float(one.misfit(bent(cap)).max())

        cap, misfit = least(off, np.geomspace(reach / 64, reach * 8, 97))
        if misfit <= one.atol:
            return "SCORE-NONLINEAR", "weights", f"a {what} of {cap:.4g} explains the scores"
    return None


def _mapped(scene: Scene, one: _Query) -> tuple[str, str, str] | None:
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


def _reads(scene: Scene, one: _Query, head: int, other: int) -> bool:
    """Whether a head's output follows from the kv head that `other` belongs to."""
    group = scene.site.num_heads // scene.site.num_kv_heads
    rows = np.flatnonzero(scene.cached.visible[-1])[: one.values.shape[1]]
    keys = scene.cached.keys[other // group][rows].astype(np.float64)
    query = scene.cached.queries[head, -1].astype(np.float64)
    scores = keys @ query * scene.site.scale
    weights = np.exp(scores - scores.max())
    made = weights / weights.sum() @ one.values[other]
    return bool(np.abs(made - one.output[head]).max() <= one.atol)
