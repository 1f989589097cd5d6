"""What a check says: findings in causal order, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrace.analysis.checks.classes import KINDS, Kind

EQUAL, DIVERGED, UNCHECKED = "equal within rounding", "diverged", "could not check"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or truly different, with its evidence.

    Attributes:
        name: Of its `Kind`.
        step, layer: Where it is first seen; layer is an index into `Meta.sites`.
        tensor: "q", "k", "v", "mask", "weights" or "output".
        evidence: What was seen, in numbers.
        head: Query or kv head, where it is one.
        row: Attended row (or new row, for q and output), where it is one.
        sequences: Rows of the batch that show it; empty: all.
    """

    name: str
    step: int
    layer: int
    tensor: str
    evidence: str
    head: int | None = None
    row: int | None = None
    sequences: tuple[int, ...] = ()

    @property
    def kind(self) -> Kind:
        """What it means and what usually causes it."""
        return KINDS[self.name]

    @property
    def at(self) -> str:
        """Where to look: step/layer/head/tensor, as `kvtrace open --at` takes it."""
        tensor = self.tensor if self.tensor in ("q", "k", "v") else "k"
        return f"{self.step}/{self.layer}/{self.head or 0}/{tensor}"

    @property
    def sentence(self) -> str:
        """One line for people."""
        whom = ""
        if self.sequences:
            rows = ", ".join(map(str, self.sequences))
            whom = f", only batch row{'s' if len(self.sequences) > 1 else ''} {rows}"
        place = f"step {self.step}, layer {self.layer}{whom}"
        return f"{self.name} at {place}: {self.kind.means}; {self.evidence}."


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to "rounding or bug?".

    Attributes:
        verdict: `EQUAL`, `DIVERGED` or `UNCHECKED`.
        findings: In causal order.
        reason: Why this verdict: thresholds with their reason, or why it could not be checked.
        largest: Largest relative difference seen, per tensor name.
        flips: Steps whose lanes prefer different tokens, with the margin.
        steps: Steps compared.
    """

    verdict: str
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    largest: tuple[tuple[str, float], ...] = ()
    flips: tuple[tuple[int, float], ...] = ()
    steps: int = 0

    @property
    def ok(self) -> bool:
        """Nothing but rounding."""
        return self.verdict == EQUAL

    @property
    def exit_code(self) -> int:
        """0 equal, 1 diverged, 3 could not check."""
        return {EQUAL: 0, DIVERGED: 1}.get(self.verdict, 3)
