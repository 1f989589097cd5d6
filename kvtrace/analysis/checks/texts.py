"""What the steps of a text show by themselves: rows of another text, rows lost, padding inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvtrace.analysis.checks.around.survey import Survey
from kvtrace.analysis.checks.at_site import at_site
from kvtrace.analysis.checks.causes import VAGUE
from kvtrace.analysis.checks.noise import Noise
from kvtrace.analysis.checks.placed import placed
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.whole_run.encoders import cached_again, encoded_anew
from kvtrace.analysis.checks.whole_run.filled_up import filled_up
from kvtrace.analysis.checks.whole_run.forgotten import Forgotten
from kvtrace.analysis.checks.whole_run.leftover import leftover
from kvtrace.analysis.checks.whole_run.not_reordered import NotReordered
from kvtrace.analysis.checks.whole_run.padded import padded_inside
from kvtrace.analysis.checks.whole_run.rejected import Rejected
from kvtrace.errors import TraceError
from kvtrace.trace import Step, Trace


@dataclass(slots=True)
class Texts:
    """Where texts begin, and what is left of those before; both lanes may hold it.

    Attributes:
        trace, lane, limits, fresh: As `findings` was given them.
        padded: Sequences of the text under way that are padded behind or within it.
        astray: A text was taken for the rest of another, or has another's rows: its lanes are
            compared for nothing.
    """

    trace: Trace
    lane: str
    limits: Noise
    fresh: Mapping[int, int] | None
    padded: set[int] = field(default_factory=set)
    astray: bool = False
    _stale: bool = False
    _before: Step | None = None
    _lost: Forgotten = field(init=False)
    _beams: NotReordered = field(init=False)
    _rejected: Rejected = field(init=False)

    def __post_init__(self) -> None:
        self._lost, self._beams = Forgotten(self.trace), NotReordered(self.trace)
        self._rejected = Rejected(self.trace)

    def tell(self, survey: Survey) -> None:
        """Tell what the comparison of lanes does not cover."""
        survey.padded |= self.padded
        survey.apart = 0 if self._lost.named else self._lost.apart

    def add(self, step: Step, *, looking: bool) -> list[Finding]:
        """What the next step shows; of rows of another text only as long as somebody looks."""
        before, self._before = self._before, step
        if step.parent is None:
            self.padded = set()
        try:
            found = self._seen(step, before, looking=looking)
        except TraceError:
            found = []  # what can't be read is told of where lanes are compared
        return [placed(self.trace, one, None, None) for one in found]

    def _seen(self, step: Step, before: Step | None, *, looking: bool) -> list[Finding]:
        trace = self.trace
        lost, other = self._lost.add(step, before, looking=looking), None
        mixed = self._beams.add(step, before)
        self._rejected.add(step)
        # the whole run must be known: what samples may take the likeliest token for a while
        tried = looking and step.number == self.trace.numbers[-1]
        kept = self._rejected.finding if tried and not self._lost.named else None
        filled = filled_up(trace, step, before)
        self.padded |= set(filled.sequences if filled else ())
        self.padded |= set(padded_inside(trace, step))
        if looking and not self._stale:
            other = (
                encoded_anew(trace, step)
                or cached_again(trace, step)
                or leftover(trace, step, before, self.fresh)
            )
        if other is not None and step.parent is None and self._known_better(step, other):
            other = None
        self._stale = self._stale or other is not None
        self.astray = other is not None and step.parent is not None and step.new > 1
        self.astray = self.astray or (mixed is not None and self._beams.moved)
        return [one for one in (lost, mixed, filled, kept, other) if one is not None]

    def _known_better(self, step: Step, found: Finding) -> bool:
        """Whether comparing lanes tells whose rows were there before a text began."""
        everyone = list(range(step.num_sequences))
        said = at_site(self.trace, step, found.layer, everyone, self.lane, self.limits)
        names = {one.name for one in said} - {*VAGUE, found.name}
        if found.name == "WRONG-LAYER" and any(one.name == found.name for one in said):
            return True  # and they tell which rows, and where it begins
        # the tokens of another prompt may be the same ones
        return bool(names & {"WRONG-LAYER", "WRONG-BATCH-ROW"} if self.fresh else names)
