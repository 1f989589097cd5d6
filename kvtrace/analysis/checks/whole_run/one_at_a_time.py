"""Models that take one token at a time once they hold rows: several at once break them, rightly.

Many people's forwards take a prompt, then single tokens. Given several tokens on top of cached
rows they hide nothing of them, or all that is older, or what the square mask of a prompt hides:
what they do with a prompt, or with a single token, is done to several. That is no mistake as long
as nobody calls them so, and it is told, not blamed. A mask that stands where the cached rows end
was written for several tokens: then whatever else is wrong is wrong.
"""

from __future__ import annotations

from msgspec.structs import replace

from kvtrace.analysis.checks.report import DIVERGED, UNCHECKED, Finding, Report
from kvtrace.trace import Trace

_OF_SINGLE_TOKENS = ("MASK-FUTURE", "MASK-TOP-LEFT", "HISTORY-LOST", "UNKNOWN")
"""What no signature fits is no fault either, as long as nothing shows that anybody calls it so."""


def excused(trace: Trace, report: Report) -> Report:
    """A report on a run that nothing shows the model to be written for.

    Args:
        trace: The run, in which several tokens were fed at once to a cache that held rows.
        report: What its check says.
    """
    bugs = [one for one in report.findings if one.kind.bug]
    if report.verdict != DIVERGED or not bugs or not _of_single_tokens(trace, bugs[0]):
        return report
    first = replace(bugs[0], meant=True)
    reason = (
        f"once it holds rows it takes one token at a time: given several, {first.kind.means} "
        f"({first.name} at step {first.step}, {first.where}). Nothing shows that it was written "
        "for several; if it was, ask for `chunks`"
    )
    return replace(report, verdict=UNCHECKED, findings=(first,), reason=reason, flips=())


def _of_single_tokens(trace: Trace, found: Finding) -> bool:
    """Whether it begins where several tokens go on a text, and is what such a model does then."""
    step = trace.step(found.step)
    if found.step == trace.numbers[0] or step.new == 1:
        return False
    # who keeps one row of several looks as if another text began
    return step.parent is None or found.name in _OF_SINGLE_TOKENS
