"""Why an action can't be done right now, in words for the user. No Textual here."""

from __future__ import annotations

from collections.abc import Callable

from kvtrace.errors import KvtraceError
from kvtrace.trace import NO_ATTENTION
from kvtrace_tui.desk import moves
from kvtrace_tui.desk.desk import Desk, Recording

Reason = Callable[[Desk], str | None]

_OVER = (Recording.INCOMPLETE, Recording.FAILED)


def needs_trace(desk: Desk) -> str | None:
    """Nothing was recorded, or nothing yet."""
    if desk.trace is not None and desk.trace.numbers:
        return None
    if desk.trace is None or desk.recording.grows:
        return "nothing is recorded yet"
    return "this trace has no steps: nothing was recorded"


def at_last(desk: Desk) -> str | None:
    """There is no later step."""
    missing = needs_trace(desk)
    if missing or desk.trace is None or desk.cursor.step < desk.trace.numbers[-1]:
        return missing
    more = {
        Recording.RUNNING: "the next one is being computed",
        Recording.GROWING: "somebody else's recorder writes the next one",
        Recording.INCOMPLETE: "the recording was cut off here",
    }
    return f"this is the last step: {more.get(desk.recording, 'the recording ends here')}"


def no_later(desk: Desk) -> str | None:
    """There is no later step, and none can be computed."""
    return None if desk.recording is Recording.PAUSED else at_last(desk)


def over(desk: Desk) -> str | None:
    """There is no later step, and none will come."""
    return needs_trace(desk) if desk.recording.grows else at_last(desk)


def at_first(desk: Desk) -> str | None:
    """There is no earlier step."""
    missing = needs_trace(desk)
    if missing or desk.trace is None or desk.cursor.step > desk.trace.numbers[0]:
        return missing
    return "this is the first step"


def blind(desk: Desk) -> str | None:
    """No attention was seen at all."""
    if desk.trace is None or desk.trace.meta.sites:
        return None
    return NO_ATTENTION


def needs_lane(desk: Desk) -> str | None:
    """There is no other lane."""
    if (missing := needs_trace(desk)) is not None or desk.trace is None:
        return missing
    if desk.trace.meta.lanes:
        return None
    if (unseen := blind(desk)) is not None:
        return f"{unseen}: there is nothing to compare"
    if desk.trace.ending is None and desk.recording not in _OVER:
        return "other lanes are computed when the run is over: try again then"
    return "only the cached lane was recorded: record with --recompute once to compare"


def needs_lanes(desk: Desk) -> str | None:
    """There are no three lanes to choose two of."""
    missing = needs_lane(desk)
    if missing or desk.trace is None or len(desk.trace.meta.lanes) > 1:
        return missing
    return (
        f"only the {desk.trace.meta.lanes[0].name} lane was recorded beside the cached one: "
        "record with referee=True, or kvtrace check, for a third"
    )


def needs_batch(desk: Desk) -> str | None:
    """There is one sequence only."""
    if (missing := needs_trace(desk)) is not None or desk.trace is None:
        return missing
    try:
        more = desk.trace.step(desk.cursor.step).num_sequences > 1
    except KvtraceError as error:
        return str(error)
    return None if more else "this step has one sequence only"


def needs_recorder(desk: Desk) -> str | None:
    """Nothing records."""
    if desk.recording.live:
        return None
    return "no recorder is running: this is what was recorded"


def needs_waiting(desk: Desk) -> str | None:
    """Nothing records, or it goes on already and is followed."""
    if desk.recording is Recording.RUNNING and desk.following:
        return "the recorder is running: space pauses it"
    return needs_recorder(desk)


def needs_pause(desk: Desk) -> str | None:
    """The recorder does not wait for us."""
    missing = needs_recorder(desk) or needs_trace(desk)
    if missing or desk.recording is Recording.PAUSED:
        return missing
    return "the recorder is running: pause it first (space)"


def no_axis(direction: str) -> Reason:
    """The focused pane has nothing in that direction."""

    def reason(desk: Desk) -> str | None:
        missing = needs_trace(desk)
        if missing or getattr(desk.traits, direction) is not None:
            return missing
        other = "up and down" if direction == "across" else "left and right"
        return f"{desk.traits.title} moves {other} only"

    return reason


def at_zoom(by: int) -> Reason:
    """It can't be enlarged or shrunk further."""

    def reason(desk: Desk) -> str | None:
        if moves.zoomed(desk.cursor, by) != desk.cursor:
            return None
        return "this is the largest" if by > 0 else "all of it is shown already"

    return reason


def not_back(desk: Desk) -> str | None:
    """There is nothing to go back from."""
    busy = desk.maximised or desk.playing or bool(desk.message)
    return None if busy else "nothing to go back from: q quits"


def ok(desk: Desk) -> str | None:
    """Always possible."""
    return None
