"""One run, recorded and checked: what it was called, and where."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct
from torch import nn

import kvtrace
from confusion.variants import Variant
from kvtrace.analysis.checks import UNCHECKED, Report, check
from kvtrace.files import open_trace
from kvtrace.trace import Trace
from kvtrace_fixtures.zoo.drive import drive, warm

NOTHING, UNSEEN = "(nothing)", "(could not check)"


class Outcome(Struct, frozen=True):
    """What a check said of a run.

    Attributes:
        planted: The kind that is right; NOTHING for a healthy model.
        called: The first finding's kind, NOTHING, or UNSEEN.
        placed: Step and layer are right; None where they are not known beforehand.
        what: Which run.
        words: What was said.
        witness: For an alarm: how far the model's logits with and without its cache are apart,
            seen without kvtrace; None where nobody looked.
    """

    planted: str
    called: str
    placed: bool | None
    what: str
    words: str
    witness: float | None = None

    @property
    def right(self) -> bool:
        """Called by its name."""
        return self.called == self.planted


def recorded(model: nn.Module, run: Callable[[], None], *, each: bool = False) -> Trace:
    """A trace of whatever `run` does with the model, with both other lanes."""
    path = Path(tempfile.mkdtemp(prefix="confusion-")) / "a.kvt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with kvtrace.record(
            model, path, recompute="each" if each else "once", referee=True, keep_rows=True
        ):
            run()
    trace = open_trace(path)
    path.unlink()  # what is open stays readable
    path.parent.rmdir()
    return trace


def called(report: Report) -> str:
    """The name of its first finding; of what is no bug, only where there is nothing else."""
    if report.findings:
        bugs = [one for one in report.findings if one.kind.bug]
        return (bugs or report.findings)[0].name
    return UNSEEN if report.verdict == UNCHECKED else NOTHING


def scored(variant: Variant) -> Outcome:
    """Run a variant of a zoo bug."""
    model, run = variant.model(), variant.bug.run
    if run == "again":
        warm(model, variant.course)
    hook = variant.hook(model)
    trace = recorded(model, lambda: drive(model, variant.course, run, hook), each=run == "each")
    report = check(trace)
    name = called(report)
    placed = None
    if name == variant.bug.kind and variant.step is not None:
        first = next(one for one in report.findings if one.name == name)
        here = first.step, trace.site(first.layer).layer
        placed = here == (variant.step, variant.layer)
    words = next((one.sentence for one in report.findings if one.name == name), report.reason)
    what = f"{variant.bug.name} {variant.sizes} {variant.course} {variant.layers} {variant.since}"
    return Outcome(variant.bug.kind, name, placed, f"{what} seed {variant.seed}", words)
