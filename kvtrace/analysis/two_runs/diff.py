"""Two runs of one model: where they part first, and how the difference grows through the layers.

The first run is taken as right: "old", the one before the change. Rows are aligned by tokens and
compared in causal order: position, layer, tensor. Reads one stretch of rows at a time.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.analysis.checks.report import DIVERGED, EQUAL, UNCHECKED, Finding, Judged
from kvtrace.analysis.two_runs.align import Pair, stretches, unreadable
from kvtrace.analysis.two_runs.flips import Flip, Flips, flips
from kvtrace.analysis.two_runs.limits import limits
from kvtrace.analysis.two_runs.logits import LogitsPart, Rounding, kept, logits_part
from kvtrace.analysis.two_runs.rows import Parting, Rows
from kvtrace.analysis.two_runs.settings import differing, other_model
from kvtrace.analysis.two_runs.stage import diagnosed
from kvtrace.analysis.two_runs.tokens import (
    TokensPart,
    aligned,
    nothing_shared,
    parted,
    shared,
)
from kvtrace.trace import Trace

_NOTHING_RECORDED = "no rows of these tokens were recorded in both"


class Diff(Judged, frozen=True):
    """What two runs have in common.

    Attributes:
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
    settings = tuple(differing(old, new))
    why = other_model(old, new)
    if why:
        return Diff(UNCHECKED, why, settings)
    pairs, told = aligned(old, new)
    parts = tuple(parted(old, pairs))
    total = shared(pairs)
    steps = tuple(word for trace in (old, new) for word in unreadable(trace))
    if not total:
        why = nothing_shared(old, new, parts)
        return Diff(UNCHECKED, why, settings, parts=parts, unread=steps)
    threshold, reason, lanes = limits(old, new, settings)
    rows = Rows(old, new, threshold)
    first = _first(rows, old, new, pairs)
    lost = (*steps, *rows.unread)
    unread = (*lost, *lanes)
    if np.isnan(rows.growth).all():
        why = "no rows of these tokens can be read in both" if lost else _NOTHING_RECORDED
        return Diff(UNCHECKED, why, settings, total, unread=unread)
    found = Diff(
        DIVERGED,
        reason,
        settings,
        total,
        parts,
        growth=rows.growth,
        limits=threshold,
        unread=unread,
    )
    if first is not None:
        finding = diagnosed(old, new, first.parting, first.pair, pairs, told=told)
        return replace(found, first=first.parting, finding=_with_choice(finding, first.choice(old)))
    if rows.tie is not None:
        tie = Finding("TIE", rows.tie.step, 0, "", rows.tie.said)
        return replace(found, verdict=UNCHECKED, reason=_undecided(tie), finding=tie)
    same = not (lost or np.nan_to_num(rows.growth).any())
    seen = float(np.nanmax(rows.growth))
    rounding = Rounding(same, float(threshold.min() if same else threshold.max()), seen)
    behind = (logits_part(old, new, (pair.old, pair.new), pair.shared, rounding) for pair in pairs)
    logits = next(filter(None, behind), None)
    if logits is None:
        verdict, reason = _equal(total, reason, parts, lost)
        found = replace(found, verdict=verdict, reason=reason)
    return replace(found, logits=logits, kept=kept(old, new))


class _First(Struct, frozen=True):
    """The first place that differs by more than rounding, in which sequences, and their choices."""

    parting: Parting
    pair: Pair
    choices: Flips

    def choice(self, old: Trace) -> Flip | None:
        """A choice that fell otherwise before it."""
        layer = old.site(self.parting.layer).layer
        return self.choices.before(layer, self.parting.position)


def _first(rows: Rows, old: Trace, new: Trace, pairs: list[Pair]) -> _First | None:
    """Compare all rows; where the first of them differs."""
    first: _First | None = None
    for pair in pairs:
        here = flips(old, new, pair)
        for stretch in stretches(pair.old, pair.new, pair.shared):
            found = rows.compare(stretch, here)
            if found is not None and (first is None or found.position < first.parting.position):
                first = _First(found, pair, here)
    return first


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
