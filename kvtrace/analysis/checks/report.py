"""What a check says: findings in causal order, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from kvtrace.analysis.checks.classes import (
    AFTERWARDS,
    KEPT_ROUNDED,
    KINDS,
    UNLIKE_ITS_USE,
    Kind,
)

if TYPE_CHECKING:
    from kvtrace.analysis.checks.noise import Noise

EQUAL, DIVERGED, UNCHECKED = "equal within rounding", "diverged", "could not check"


class Judged(Struct, frozen=True):
    """What a comparison comes to.

    Attributes:
        verdict: `EQUAL`, `DIVERGED` or `UNCHECKED`.
    """

    verdict: str

    @property
    def ok(self) -> bool:
        """Nothing but rounding."""
        return self.verdict == EQUAL

    @property
    def exit_code(self) -> int:
        """0 equal, 1 diverged, 3 could not check."""
        return {EQUAL: 0, DIVERGED: 1}.get(self.verdict, 3)


class Finding(Struct, frozen=True):
    """One thing that is wrong, or truly different, with its evidence.

    Attributes:
        name: Of its `Kind`.
        step, layer: Where it is first seen; layer is an index into `Meta.sites`, of the shape in
            which the place was met first.
        tensor: "q", "k", "v", "mask", "weights", "output" or "logits"; empty where it is none.
        evidence: What was seen, in numbers.
        head: Query or kv head, where it is one.
        row: Attended row (or new row, for q and output), where it is one.
        sequences: Rows of the batch that show it; empty: all.
        slot: Place in the stored array, where it is about one.
        apart: Largest relative difference of any tensor there; None where not known.
        limit: What would be rounding there, relative.
        since: What is special about where it begins, a clause; empty when nothing is known.
        code: "module, file.py:line" of the attention there, as far as known.
        spoken: What people call the layer: "decoder layer 1 cross-attention"; empty: its number.
        meant: It is how the whole cache works, or what comes of calling the model otherwise than
            it was written for: a difference but no mistake.
        site: Index of the shape of the place that shows it, where that is not the first.
        group: Query heads that read one kv head there.
    """

    name: str
    step: int
    layer: int
    tensor: str
    evidence: str
    head: int | None = None
    row: int | None = None
    sequences: tuple[int, ...] = ()
    slot: int | None = None
    apart: float | None = None
    limit: float | None = None
    since: str = ""
    code: str = ""
    spoken: str = ""
    site: int | None = None
    meant: bool = False
    group: int = 1

    @property
    def shown(self) -> int:
        """The site at which it can be looked at."""
        return self.layer if self.site is None else self.site

    @property
    def where(self) -> str:
        """The layer, in words."""
        return self.spoken or f"layer {self.layer}"

    @property
    def kind(self) -> Kind:
        """What it means and what usually causes it."""
        if self.meant and self.name == KEPT_ROUNDED.name:
            return KEPT_ROUNDED
        if self.meant:
            return replace(KINDS[self.name], cause=UNLIKE_ITS_USE, bug=False)
        after = self.name == AFTERWARDS.name and self.tensor == "logits"
        return AFTERWARDS if after else KINDS[self.name]

    @property
    def at(self) -> str:
        """Where to look, as `kvtrace open --at` takes it: a query head that reads the kv head."""
        tensor = self.tensor if self.tensor in ("q", "k", "v", "output", "weights") else "k"
        head = (self.head or 0) * (self.group if self.tensor in ("k", "v") else 1)
        row = f"/{self.sequences[0]}" if self.sequences and self.sequences[0] else ""
        return f"{self.step}/{self.shown}/{head}/{tensor}{row}"

    @property
    def whom(self) -> str:
        """Which rows of the batch, as words that follow a place; empty: all of them."""
        if not self.sequences:
            return ""
        rows = ", ".join(map(str, self.sequences))
        return f", only batch row{'s' if len(self.sequences) > 1 else ''} {rows}"

    @property
    def sentence(self) -> str:
        """One line for people."""
        place = f"step {self.step}, {self.where}{self.whom}"
        return f"{self.name} at {place}: {self.kind.means}; {self.evidence}."


class Flip(Struct, frozen=True):
    """A step whose lanes prefer different tokens.

    Attributes:
        step, sequence: Where.
        margin: How far the cached lane's token leads the next one, in logits.
        apart: How far the logits of the lanes are apart.
    """

    step: int
    sequence: int
    margin: float
    apart: float


class Report(Judged, frozen=True):
    """The answer to "rounding or bug?".

    Attributes:
        findings: In causal order.
        reason: Why this verdict: thresholds with their reason, or why it could not be checked.
        largest: Largest relative difference seen, per tensor name.
        flips: Steps whose lanes prefer different tokens.
        steps: Steps compared.
        logits: Of these, steps whose logits were compared too.
        caveats: What the verdict does not cover, a sentence each.
        trials: The runs this one is about, when it is about several; each with its own report.
        limits: What counted as rounding; None where nothing was compared, or for several runs.
        keeps_nothing: The run has no cache, so that there was nothing to check.
    """

    findings: tuple[Finding, ...] = ()
    reason: str = ""
    largest: tuple[tuple[str, float], ...] = ()
    flips: tuple[Flip, ...] = ()
    steps: int = 0
    logits: int = 0
    caveats: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    limits: Noise | None = None
    keeps_nothing: bool = False

    def __str__(self) -> str:
        """As `kvtrace check` prints it."""
        from kvtrace.analysis.checks.advice import lines

        return "\n".join(lines(self))

    def __repr__(self) -> str:
        """One line, as a prompt or a notebook shows it."""
        from kvtrace.analysis.checks.advice import headline

        return f"<Report: {headline(self)}>"


class Trial(Struct, frozen=True):
    """One run that was checked.

    Attributes:
        name: What it did, in a phrase: "prefill of 12, 16 decode steps".
        report: Of this run alone.
        trace: Path of its trace as the caller can open it; empty when it was not kept.
        essential: Whether the whole is unchecked when this one is.
    """

    name: str
    report: Report
    trace: str = ""
    essential: bool = True


def together(trials: Sequence[Trial]) -> Report:
    """One report over several runs: diverged if any is, unchecked if an essential one is."""
    reports = [one.report for one in trials]
    # a way that the model is not made for says nothing of how exact the others are
    judged = [one for one in reports if one.verdict != UNCHECKED] or reports
    needed = [one.report for one in trials if one.essential]
    if any(one.ok for one in reports):
        # another way has the cache that a call of the model does without
        needed = [one for one in needed if not one.keeps_nothing] or judged
    verdict, reason = EQUAL, next((one.reason for one in reports if one.ok), "")
    first = next((one for one in reports if one.verdict == DIVERGED), None)
    unchecked = next((one for one in needed if one.verdict == UNCHECKED), None)
    if first is not None:
        verdict, reason = DIVERGED, first.reason
    elif unchecked is not None or not needed:
        verdict = UNCHECKED
        reason = "nothing was run" if unchecked is None else unchecked.reason
    return Report(
        verdict,
        tuple(found for one in sorted(reports, key=_explained) for found in one.findings),
        reason,
        _largest(judged),
        tuple(flip for one in judged for flip in one.flips),
        sum(one.steps for one in judged),
        sum(one.logits for one in judged),
        tuple(dict.fromkeys(text for one in reports for text in one.caveats)),
        tuple(trials),
    )


def _explained(report: Report) -> bool:
    """Whether what was found in a run is no mistake: that of others is read first."""
    return report.verdict != DIVERGED


def _largest(reports: Sequence[Report]) -> tuple[tuple[str, float], ...]:
    out: dict[str, float] = {}
    for one in reports:
        for name, value in one.largest:
            out[name] = max(value, out.get(name, 0.0))
    return tuple(out.items())
