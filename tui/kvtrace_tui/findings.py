"""What there is to find in a trace, as steps with a sentence each. Pure, but not quick."""

from __future__ import annotations

from kvtrace.text import safe
from kvtrace.trace import Trace
from kvtrace_tui.breakpoints import Findings

_LONGEST = 600


def of(trace: Trace, lane: str) -> Findings:
    """Findings noted in the trace and those of comparing its lanes, by step; made safe."""
    # the checks are loaded when they are first needed, which is after the first picture
    from kvtrace.analysis.checks.verdict import check

    found = {
        (note.step or 0, safe(note.text, _LONGEST))
        for note in trace.notes
        if note.kind == "finding"
    }
    first = trace.numbers[0] if trace.numbers else 0
    noted = {text for _, text in found}
    try:
        for one in check(trace, lane).findings:
            if f"{one.name}: {one.evidence}" not in noted:
                found.add((one.step, safe(one.sentence, _LONGEST)))
    except Exception as error:
        # whatever a file makes the checks stumble over, it can still be looked at
        found.add((first, safe(f"could not check: {error}", _LONGEST)))
    return tuple(sorted(found))
