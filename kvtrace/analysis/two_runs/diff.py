"""Two runs of one model: where they part first, and how the difference grows through the layers.

The first run is taken as right: "old", the one before the change. Rows are aligned by tokens and
compared in causal order: position, layer, tensor. Reads one stretch of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.analysis.checks.noise import Noise, noise
from kvtrace.analysis.checks.report import DIVERGED, EQUAL, UNCHECKED, Finding
from kvtrace.analysis.two_runs.align import Pair, paired, paths, readable, stretches, unreadable
from kvtrace.analysis.two_runs.flips import Flip, Flips, flips
from kvtrace.analysis.two_runs.logits import LogitsPart, Rounding, kept, logits_part
from kvtrace.analysis.two_runs.rows import Parting, Rows
from kvtrace.analysis.two_runs.stage import diagnosed
from kvtrace.errors import TraceError
from kvtrace.trace import Site, Trace

LANE = "recomputed"

_NOTHING_RECORDED = "no rows of these tokens were recorded in both"

_ROUND_OTHERWISE = ("dtype", "attention", "device", "torch")
"""What two runs may differ in, so that numbers are rounded elsewhere."""

_TIMES = 4.0
"""Measured: at most 2.1, on tiny models of 24 architectures with 4 and with 12 layers."""


class TokensPart(Struct, frozen=True):
    """Where the runs were fed different tokens.

    Attributes:
        sequence, position: Of the token.
        old, new: Its id in each run; None: the run ended before.
        chosen: By the runs; else the prompts part.
        margin: How far the old run's choice led its next one, in logits; None where unknown.
    """

    sequence: int
    position: int
    old: int | None
    new: int | None
    chosen: bool
    margin: float | None


class Diff(Struct, frozen=True):
    """What two runs have in common.

    Attributes:
        verdict: `EQUAL`, `DIVERGED` or `UNCHECKED`.
        reason: What counts as rounding, or why they can't be compared.
        settings: What differs between the runs themselves: (name, old, new).
        tokens: Tokens that both were fed, over all sequences.
        parts: Where the tokens part; empty when they never do.
        first: First place that differs by more than rounding.
        finding: What kind of difference it looks like, taking the old run as right.
        growth: Largest relative difference, [sites, 4]; NaN where nothing was compared.
        limits: What counts as rounding, [sites, 4].
        logits: The first logits that differ, where all attention is equal.
        unread: What is damaged, in words: it was not compared, or says nothing of rounding.
        kept: Of how many tokens, those with the highest, logits were compared after each step.
    """

    verdict: str
    reason: str
    settings: tuple[tuple[str, str, str], ...] = ()
    tokens: int = 0
    parts: tuple[TokensPart, ...] = ()
    first: Parting | None = None
    finding: Finding | None = None
    growth: NDArray[np.float64] | None = None
    limits: NDArray[np.float64] | None = None
    logits: LogitsPart | None = None
    unread: tuple[str, ...] = ()
    kept: int = 0
    _traces: tuple[Trace, Trace] | None = None

    @property
    def traces(self) -> tuple[Trace, Trace]:
        """Old and new."""
        if self._traces is None:
            raise ValueError("a diff of no traces")
        return self._traces

    @property
    def ok(self) -> bool:
        """Nothing but rounding."""
        return self.verdict == EQUAL

    @property
    def exit_code(self) -> int:
        """0 equal, 1 diverged, 3 could not check."""
        return {EQUAL: 0, DIVERGED: 1}.get(self.verdict, 3)

    def __str__(self) -> str:
        """As `kvtrace diff` prints it."""
        from kvtrace.analysis.two_runs.told import lines

        return "\n".join(lines(self))

    def __repr__(self) -> str:
        """One line, as a prompt or a notebook shows it."""
        from kvtrace.analysis.two_runs.told import headline

        return f"<Diff: {headline(self)}>"


def diff(old: Trace, new: Trace) -> Diff:
    """Compare the cached lanes of two traces, as far as both can be read.

    Args:
        old: Taken as right: the run before the change.
        new: The run that may differ.
    """
    return replace(_compared(old, new), _traces=(old, new))


def _compared(old: Trace, new: Trace) -> Diff:
    settings = tuple(_settings(old, new))
    why = _other_model(old, new)
    if why:
        return Diff(UNCHECKED, why, settings)
    pairs, told = _aligned(old, new)
    parts = tuple(_parts(old, pairs))
    total = _shared(pairs)
    steps = tuple(word for trace in (old, new) for word in unreadable(trace))
    if not total:
        return Diff(
            UNCHECKED, _nothing_shared(old, new, parts), settings, parts=parts, unread=steps
        )
    limits, reason, lanes = _limits(old, new, settings)
    rows = Rows(old, new, limits)
    first: Parting | None = None
    whose: Pair | None = None
    chosen = Flips()
    for pair in pairs:
        here = flips(old, new, pair)
        for stretch in stretches(pair.old, pair.new, pair.shared):
            found = rows.compare(stretch, here)
            if found is not None and (first is None or found.position < first.position):
                first, whose, chosen = found, pair, here
    lost = (*steps, *rows.unread)
    unread = (*lost, *lanes)
    if np.isnan(rows.growth).all():
        why = "no rows of these tokens can be read in both" if lost else _NOTHING_RECORDED
        return Diff(UNCHECKED, why, settings, total, unread=unread)
    compared = rows.growth, limits
    if first is not None and whose is not None:
        finding = diagnosed(old, new, first, whose, pairs, told=told)
        finding = _with_choice(finding, chosen.before(old.site(first.layer).layer, first.position))
        more = (parts, first, finding, *compared)
        return Diff(DIVERGED, reason, settings, total, *more, unread=unread)
    if rows.tie is not None:
        tie = Finding("TIE", rows.tie.step, 0, "", rows.tie.said)
        return Diff(
            UNCHECKED, _undecided(tie), settings, total, parts, None, tie, *compared, None, unread
        )
    same = not (lost or np.nan_to_num(rows.growth).any())
    seen = float(np.nanmax(rows.growth))
    rounding = Rounding(same, float(limits.min() if same else limits.max()), seen)
    behind = (logits_part(old, new, (pair.old, pair.new), pair.shared, rounding) for pair in pairs)
    logits = next(filter(None, behind), None)
    verdict = _equal(total, reason, parts, lost) if logits is None else (DIVERGED, reason)
    most = kept(old, new)
    return Diff(*verdict, settings, total, parts, None, None, *compared, logits, unread, most)


def _undecided(tie: Finding) -> str:
    """Why runs are not compared whose rounding chose otherwise."""
    return (
        f"{tie.kind.name}: {tie.evidence}; what comes before differs by rounding alone, so that "
        "decided, and what follows is another matter in each run and was not compared"
    )


def _with_choice(finding: Finding | None, flip: Flip | None) -> Finding | None:
    """A difference that attention does not explain, with a choice before it that was another."""
    if finding is None or flip is None or finding.name != "UPSTREAM":
        return finding
    return replace(finding, evidence=f"{finding.evidence}; {flip.said}")


def _equal(
    total: int, reason: str, parts: tuple[TokensPart, ...], lost: tuple[str, ...]
) -> tuple[str, str]:
    """(verdict, reason) where nothing that was compared differs."""
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        return (
            UNCHECKED,
            f"what can be read is equal within rounding, but not all can: {lost[0]}{more}",
        )
    prompts = next((one for one in parts if not one.chosen), None)
    if prompts is None:
        return EQUAL, reason
    why = f"the prompts part at position {prompts.position}; the {total} tokens before are equal"
    return UNCHECKED, f"{why} within rounding"


def _aligned(old: Trace, new: Trace) -> tuple[list[Pair], bool]:
    """Sequences of both, and whether their places are positions that were told.

    Positions may be what differs: then more tokens agree in the order in which they were fed.
    """
    by_position, by_order = (
        paired(paths(old, told=told), paths(new, told=told)) for told in (True, False)
    )
    more = _shared(by_order) > _shared(by_position)
    return (by_order, False) if more else (by_position, True)


def _shared(pairs: list[Pair]) -> int:
    """Tokens that both runs were fed."""
    return sum(len(pair.shared) for pair in pairs)


def _limits(
    old: Trace, new: Trace, settings: tuple[tuple[str, str, str], ...]
) -> tuple[NDArray[np.float64], str, tuple[str, ...]]:
    """What is rounding: the less exact run decides; last, what could not be asked for it.

    Lanes of one run share its weights and its kernels. Two runs whose types or kernels differ
    round what those share as well.
    """
    (mine, lost), (theirs, gone) = _noise(old), _noise(new)
    larger = theirs if theirs.threshold.max() > mine.threshold.max() else mine
    limits, reason = np.fmax(mine.threshold, theirs.threshold), larger.reason
    names = [name for name, *_ in settings if name in _ROUND_OTHERWISE]
    wide = {trace.meta.model.dtype for trace in (old, new)} <= {"float32", "float64"}
    if not names or (wide and "dtype" not in names):
        return limits, reason, (*lost, *gone)
    why = f"; {_TIMES:.0f} times that, as the runs differ in {' and '.join(names)}"
    return _TIMES * limits, reason + why, (*lost, *gone)


def _noise(trace: Trace) -> tuple[Noise, tuple[str, ...]]:
    """What is rounding in a run, without its lanes where those are damaged."""
    try:
        return noise(trace, LANE), ()
    except TraceError as error:
        return noise(trace, LANE, referee=False), (str(error),)


def _other_model(old: Trace, new: Trace) -> str:
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


def _settings(old: Trace, new: Trace) -> Iterator[tuple[str, str, str]]:
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


def _parts(old: Trace, pairs: list[Pair]) -> Iterator[TokensPart]:
    for pair in pairs:
        mine, theirs, positions = pair.old, pair.new, pair.shared
        rest = sorted((set(mine) | set(theirs)) - set(positions))
        if not rest:
            continue
        at = rest[0]
        here = mine[at].token if at in mine else None
        there = theirs[at].token if at in theirs else None
        chosen = bool(positions) and all(
            at not in path or path[at].step != path[positions[-1]].step for path in (mine, theirs)
        )
        margin = None
        if chosen and here is not None:
            last = mine[positions[-1]]
            top = old.step(last.step).top
            margin = top[last.sequence].margin if last.sequence < len(top) else None
        yield TokensPart(pair.sequence, at, here, there, chosen, margin)


def _nothing_shared(old: Trace, new: Trace, parts: tuple[TokensPart, ...]) -> str:
    if not parts:
        return "the runs have no tokens in common"
    one = parts[0]
    words = [
        "nothing" if token is None else repr(trace.token_text(token))
        for trace, token in ((old, one.old), (new, one.new))
    ]
    return f"the prompts differ from the first token on: {words[0]} and {words[1]}"
